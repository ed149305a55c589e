"""Pinned adapters are never swapped out of their slots. One slot is always left to the others."""

from collections.abc import Set as AbstractSet

from engines.errors import InvalidAdapter


def max_pinned(num_slots: int) -> int:
    """Number of adapters that may be pinned at a time."""
    return num_slots - 1


def with_pin(pinned: AbstractSet[str], version: str, pin: bool, *, num_slots: int) -> set[str]:
    """The pinned versions once `version` is pinned, or is not.

    Raises InvalidAdapter where there is no room for a pin.
    """
    others = {*pinned} - {version}
    if pin and len(others) >= max_pinned(num_slots):
        message = f"{len(others)} adapters are pinned, and max_loras leaves room for no more"
        raise InvalidAdapter(message, param="pinned")
    return others | {version} if pin else others
