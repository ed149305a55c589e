"""Ids of responses, and those of items, which have the response's in them: an item is found by its id alone."""

import re

RESPONSE = "resp_"
ITEM = re.compile(r"[a-z]+_([0-9a-f]+)_(?:in)?\d+")


def response_of(item_id: str) -> str | None:
    """The id of the response whose input or output has such an item; None where this server has not made the id."""
    named = ITEM.fullmatch(item_id)
    return None if named is None else RESPONSE + named[1]
