"""One slot is always left to the adapters that are not pinned."""

import pytest

from engines.adapters.pins import max_pinned, with_pin
from engines.errors import InvalidAdapter


def test_every_slot_but_one_can_be_pinned() -> None:
    pinned: set[str] = set()
    for version in "abc"[: max_pinned(4)]:
        pinned = with_pin(pinned, version, True, num_slots=4)
    assert pinned == {"a", "b", "c"}
    with pytest.raises(InvalidAdapter, match="3 adapters are pinned") as refused:
        with_pin(pinned, "d", True, num_slots=4)
    assert refused.value.param == "pinned"


def test_what_is_pinned_already_needs_no_more_room() -> None:
    assert with_pin({"a"}, "a", True, num_slots=2) == {"a"}


def test_a_pin_that_is_taken_back_leaves_its_room_to_another() -> None:
    assert with_pin(with_pin({"a"}, "a", False, num_slots=2), "b", True, num_slots=2) == {"b"}


@pytest.mark.parametrize("num_slots", [0, 1])
def test_a_single_slot_is_never_pinned(num_slots: int) -> None:
    with pytest.raises(InvalidAdapter):
        with_pin(set(), "a", True, num_slots=num_slots)
