"""Whose request is still taken where the queue is full."""

import math

from engines.fairness.places import Places
from engines.types import PoolingRequest


def of(share: str | None, weight: float = 1.0) -> PoolingRequest:
    return PoolingRequest(request_id="r", prompt_ids=[1], share=share, weight=weight)


def test_one_share_alone_has_no_more_places_than_there_are() -> None:
    places = Places(4)
    for _ in range(4):
        places.take(of("a"))
    assert not places.are_left(of("a"))


def test_each_share_may_come_to_its_part_by_weight_beside_one_that_has_all() -> None:
    places = Places(9)
    for _ in range(9):
        places.take(of("greedy"))
    taken = 0
    while places.are_left(of("b", weight=2.0)):
        places.take(of("b", weight=2.0))
        taken += 1
    assert taken == 6
    assert not places.are_left(of("greedy"))


def test_the_more_shares_come_the_smaller_is_what_each_adds() -> None:
    places = Places(100)
    for _ in range(100):
        places.take(of("greedy"))
    taken = 0
    for number in range(50):
        while places.are_left(of(f"share-{number}")):
            places.take(of(f"share-{number}"))
            taken += 1
    assert taken <= sum(math.ceil(100 / shares) for shares in range(2, 52))


def test_places_are_given_back() -> None:
    places = Places(2)
    for share in ("a", "a", "b"):
        places.take(of(share))
    assert not places.are_left(of("b"))
    places.leave(of("b"))
    assert places.are_left(of("b"))
    places.leave(of("a"))
    places.leave(of("a"))
    assert not places.are_left(of("b"))
