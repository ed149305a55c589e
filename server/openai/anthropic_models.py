"""Cards of models as Anthropic's clients read them."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from engines.errors import InvalidRequest

Card = dict[str, Any]
LIMIT, MAX_LIMIT = 20, 1000
"""Cards of a page: where the client does not say, and at most."""


def to_anthropic(card: Card) -> Card:
    """A card in Anthropic's words. Its times are ISO's."""
    return {
        "id": card["id"],
        "type": "model",
        "display_name": card["id"],
        "created_at": datetime.fromtimestamp(card["created"], UTC).isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "max_input_tokens": card["max_model_len"],
        "max_tokens": card["max_model_len"],
    }


def page(cards: list[Card], query: Mapping[str, str]) -> dict[str, Any]:
    """The cards that `limit`, `after_id` and `before_id` ask for. Raises InvalidRequest."""
    ids, limit = [card["id"] for card in cards], _limit(query)
    if "before_id" in query:
        end = _place("before_id", query, ids)
        start = max(0, end - limit)
        more = start > 0
    else:
        start = _place("after_id", query, ids) + 1 if "after_id" in query else 0
        end = start + limit
        more = end < len(cards)
    data = [to_anthropic(card) for card in cards[start:end]]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"data": data, "has_more": more, "first_id": first, "last_id": last}


def _limit(query: Mapping[str, str]) -> int:
    text = query.get("limit", str(LIMIT))
    if not (text.isascii() and text.isdecimal() and len(text) < 5 and 1 <= int(text) <= MAX_LIMIT):
        raise InvalidRequest(f"'limit' is a number from 1 to {MAX_LIMIT}.", param="limit")
    return int(text)


def _place(name: str, query: Mapping[str, str], ids: list[str]) -> int:
    if query[name] not in ids:
        raise InvalidRequest(f"{name!r} is the id of no model in the list.", param=name)
    return ids.index(query[name])
