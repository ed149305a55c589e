"""Rows that are read, encoded and packed while training: by each process, and each loader in it, a share of their own.

A stream has no end: it goes through its data again and again, in another order each time, until training has made its
steps. So no process runs out of rows before another. In one pass over the data every row is one process's.
"""

import random
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count, islice
from typing import Any

import torch.distributed
from torch.utils.data import IterableDataset, get_worker_info

from training.data.encode import Encoded, Encoder, TooLong
from training.data.mixing import drawn, in_turn, shuffled
from training.data.packing import pack_stream
from training.data.problems import BadData, BadRow
from training.data.rows import Account, Told, usable
from training.data.sources import Source
from training.params.sft import SftParams
from training.processes import Processes

SHUFFLED = 1000
"""Samples held in memory for shuffling."""

Placed = tuple[Source, str, Any]
"""A row, and where it is."""


class Stream(IterableDataset):  # type: ignore[misc]  # torch is untyped here
    """The samples of this process, without end."""

    def __init__(self, found: Sequence[Source], params: SftParams, encoder: Encoder) -> None:
        self._found = found
        self._params = params
        self._encoder = encoder
        self._processes = Processes.of_environment()
        self._accounts = [Account() for _ in found]

    def __iter__(self) -> Iterator[Encoded]:
        """Raises BadData where nothing can be used, or there are fewer rows than processes."""
        for number in count():
            some = False
            for sample in shuffled(self.one_pass(number), random.Random(self._seed(number)), SHUFFLED):
                some = True
                yield sample
            if not some:
                if self._loader()[0]:
                    return  # the first loader of the process has rows, or says that there are none
                problem = sum((account.told for account in self._accounts), Told()).first
                why = f"no row can be used. {problem}" if problem else "there are fewer rows than processes"
                raise BadData(why, param="dataset")

    def of_all(self) -> "Stream":
        """The samples of all processes, the same in each of them."""
        found = Stream(self._found, self._params, self._encoder)
        found._processes = Processes()
        return found

    def one_pass(self, number: int = 0) -> Iterator[Encoded]:
        """This process's share of all data, once. Raises BadData."""
        samples = self._samples(number)
        if not self._params.packing:
            return samples
        assert self._encoder.max_length is not None
        return pack_stream(samples, self._encoder.max_length)

    def notes(self) -> list[str]:
        """Notes on the rows that were read. All processes of a training must call it together."""
        everyones = _gathered([account.told for account in self._accounts])
        return [
            note
            for source, told in zip(self._found, zip(*everyones, strict=True), strict=True)
            for note in sum(told, Told()).notes(source.name, self._encoder.reads)
        ]

    def _samples(self, number: int) -> Iterator[Encoded]:
        loader, loaders = self._loader()
        mine, shares = self._processes.rank + self._processes.count * loader, self._processes.count * loaders
        for position, (source, place, row) in enumerate(self._rows(number, told=number == 0 and mine == 0)):
            if position % shares != mine:
                continue
            try:
                yield from self._encoder.encode(row)
            except BadRow as error:
                problem = f"{place[:1].upper()}{place[1:]}: {error}"
                if self._params.strict and not isinstance(error, TooLong):
                    raise BadData(problem, param=source.param) from error
                if number == 0:
                    self._accounts[self._found.index(source)].drop(problem)

    def _rows(self, number: int, *, told: bool) -> Iterator[Placed]:
        """All rows of one pass, in the same order in all processes. `told`: what becomes of them is to be told."""
        sources = [
            partial(self._source_rows, source, [account] if told else [])
            for source, account in zip(self._found, self._accounts, strict=True)
        ]
        if self._params.interleave_prob is None:
            return in_turn(sources)
        choose = random.Random(self._seed(number))
        return drawn(sources, self._params.interleave_prob, self._params.stopping_strategy, choose)

    def _source_rows(self, source: Source, accounts: list[Account]) -> Iterator[Placed]:
        """`accounts` has the account of the first reading, or nothing."""
        rows = usable(source, self._params, self._encoder.learns, accounts.pop() if accounts else Account())
        return ((source, place, row) for place, row in islice(rows, source.count))

    def _seed(self, number: int) -> str:
        return f"{self._params.data_seed} {number}"

    def _loader(self) -> tuple[int, int]:
        """Which of the process's loaders this is, and how many there are."""
        worker = get_worker_info()
        return (0, 1) if worker is None else (worker.id, worker.num_workers)


def _gathered(value: Any) -> list[Any]:
    """The values of all processes."""
    if not torch.distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
