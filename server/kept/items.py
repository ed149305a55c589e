"""Items of responses and conversations: what was read and said, in order."""

from collections.abc import Sequence
from typing import Any

from engines.errors import NotFound
from server.kept.encoding import encode
from server.store.pages import Order

Item = dict[str, Any]
"""A message, a call, an output of one: an item of OpenAI's Responses API, with its `id`."""


def encoded(items: Sequence[Item]) -> dict[str, str]:
    """The text of each, by its id."""
    return {item["id"]: encode(item) for item in items}


def page_of_items(items: Sequence[Item], *, after: str | None, limit: int, order: Order) -> tuple[list[Item], bool]:
    """At most `limit` of the items, and whether more follow. Raises NotFound where there is none `after`."""
    ordered = list(items) if order == "asc" else list(reversed(items))
    if after is not None:
        place = next((place for place, item in enumerate(ordered) if item["id"] == after), None)
        if place is None:
            raise NotFound(f"There is no {after[:100]!r} to go on after.", param="after")
        ordered = ordered[place + 1 :]
    return ordered[:limit], len(ordered) > limit


def page_to_wire(items: Sequence[Item], more: bool) -> dict[str, Any]:
    """As OpenAI lists items."""
    first, last = (items[0]["id"], items[-1]["id"]) if items else ("", "")
    return {"object": "list", "data": list(items), "first_id": first, "last_id": last, "has_more": more}
