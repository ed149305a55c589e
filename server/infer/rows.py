"""The rows of a data set to answer, in their order, and what is asked of each. Read twice and never held: first to
count them, then as they are asked."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from engines.errors import InvalidRequest
from training.data.aside import rows_aside
from training.data.columns import read
from training.data.problems import BadData
from training.data.rows import Account, usable
from training.data.samples import Conversation, Prompt, Text
from training.data.sources import Param, Source, sources
from training.params.infer import AnswerParams

OF_TRAINING = ("weight",)
"""Fields of messages that no endpoint knows."""


@dataclass(frozen=True, slots=True)
class Row:
    index: int
    """Its number among those that are answered, from 0."""
    row: Mapping[str, Any]
    """As the data has it."""

    @property
    def asks(self) -> Conversation | Text:
        sample = read(self.row, "prompts")
        assert isinstance(sample, Prompt), "that is how it was read"
        return sample.whole

    @property
    def label(self) -> str | None:
        """The answer that the data gives; None where it gives none."""
        whole = self.asks
        if isinstance(whole, Text):
            return whole.completion or None
        answer = whole.messages[whole.context :]
        content = answer[0].get("content") if answer else None
        return content if isinstance(content, str) and content else None


class Rows:
    """Those of `val_dataset`, or of `dataset`, that are to be answered."""

    def __init__(self, params: AnswerParams, *, all_of_dataset: bool) -> None:
        """Count them. `all_of_dataset`: not only what a training would set aside. Raises BadData, InvalidRequest."""
        self._params = params
        param: Param = "val_dataset" if params.val_dataset else "dataset"
        self._sets = [_Set(source, params) for source in sources(params, param)]
        if not self._sets:
            raise BadData("there is no data to answer: name a file, a folder or a data set of the hub", param=param)
        whole = sum(each.length for each in self._sets)
        chosen: Sequence[int] = range(whole)
        if param == "dataset" and not all_of_dataset:
            chosen = _aside(params, whole)
        if params.val_dataset_sample is not None and params.val_dataset_sample < len(chosen):
            drawn = random.Random(params.data_seed).sample(range(len(chosen)), params.val_dataset_sample)
            chosen = [chosen[position] for position in sorted(drawn)]
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._chosen)

    @property
    def notes(self) -> list[str]:
        """What is to be told of rows that were left out."""
        return [note for each in self._sets for note in each.account.told.notes(each.source.name, lambda name: True)]

    def __iter__(self) -> Iterator[Row]:
        wanted = iter(self._chosen)
        next_wanted, index = next(wanted, None), 0
        for position, row in enumerate(row for each in self._sets for row in each):
            if position == next_wanted:
                yield Row(index, row)
                next_wanted, index = next(wanted, None), index + 1
            if next_wanted is None:
                return


class _Set:
    """One of the data sets, with as many rows of it as its name says."""

    def __init__(self, source: Source, params: AnswerParams) -> None:
        self.source = source
        self.account = Account()
        self._params = params
        there = sum(1 for _ in usable(source, params, "prompts", self.account))
        self.length = there if source.count is None else source.count
        times, rest = divmod(self.length, there)
        self._times = times
        self._rest = frozenset(random.Random(params.data_seed).sample(range(there), rest))

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """All rows as often as all are wanted, then those that were drawn of them."""
        for _ in repeat(None, self._times):
            yield from self._all()
        if self._rest:
            yield from (row for position, row in enumerate(self._all()) if position in self._rest)

    def _all(self) -> Iterator[Mapping[str, Any]]:
        for _, row in usable(self.source, self._params, "prompts", Account()):
            yield json.loads(json.dumps(row, default=str))  # what JSON has no words for, as text


def _aside(params: AnswerParams, whole: int) -> list[int]:
    """What a training with these parameters sets aside. Raises InvalidRequest."""
    count = rows_aside(params, whole)
    if not count:
        message = f"{params.split_dataset_ratio:g} of {whole} rows is none: raise it, or leave it out to answer all"
        raise InvalidRequest(message, param="split_dataset_ratio")
    order = list(range(whole))
    random.Random(params.data_seed).shuffle(order)
    return sorted(order[:count])


def messages_of(conversation: Conversation) -> list[dict[str, Any]]:
    """What stands before the answer, as an endpoint takes it."""
    before = conversation.messages[: conversation.context]
    return [{name: value for name, value in message.items() if name not in OF_TRAINING} for message in before]
