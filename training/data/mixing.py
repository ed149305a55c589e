"""Rows of several data sets in one order, by the rules of `datasets.interleave_datasets`."""

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Literal, TypeVar

Stopping = Literal["first_exhausted", "all_exhausted"]
T = TypeVar("T")


def in_turn(sources: Sequence[Callable[[], Iterator[T]]]) -> Iterator[T]:
    """One item of each source in turn, until all are exhausted."""
    left = [source() for source in sources]
    while left:
        for stream in tuple(left):
            some = False
            for item in islice(stream, 1):
                some = True
                yield item
            if not some:
                left.remove(stream)


def drawn(
    sources: Sequence[Callable[[], Iterator[T]]],
    probabilities: Sequence[float],
    stopping: Stopping,
    choose: random.Random,
) -> Iterator[T]:
    """Draw the source of each item by its probability, until the first source is exhausted, or, where exhausted ones
    begin again, until all have been."""
    streams = [source() for source in sources]
    over: set[int] = set()
    while True:
        (number,) = choose.choices(range(len(sources)), weights=probabilities)
        some = False
        for item in islice(streams[number], 1):
            some = True
            yield item
        if some:
            continue
        over.add(number)
        if stopping == "first_exhausted" or len(over) == len(sources):
            return
        streams[number] = sources[number]()


def shuffled(items: Iterator[T], draw: random.Random, size: int) -> Iterator[T]:
    """The items in random order: each is drawn from the next `size`."""
    held = list(islice(items, size))
    draw.shuffle(held)
    for item in items:
        place = draw.randrange(len(held))
        item, held[place] = held[place], item
        yield item
    yield from held
