"""What a training learns from as batches that any model takes, for adapters whose first values are computed of it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from training.data.encode import IGNORED
from training.data.samples import Learns
from training.trainers.batches.collate import Padded, answer_of

Sample = dict[str, Any]
IDS = ("input_ids", "labels")


@dataclass(frozen=True, slots=True)
class DataExamples:
    """`Examples` of a data set: the answers, of pairs the chosen ones, of prompts that have none the prompts."""

    rows: Iterable[Mapping[str, Any]]
    learns: Learns
    """What the rows are (see `training.data.prepare.COLUMNS`)."""
    pad_token_id: int

    def __call__(self, size: int, max_length: int | None = None) -> Iterator[dict[str, Any]]:
        found = (sample for row in self.rows for sample in _samples(row, self.learns))
        cut = (sample | {name: sample[name][:max_length] for name in IDS if name in sample} for sample in found)
        learned = (sample for sample in cut if self.learns == "classes" or any(_learned(sample)))
        while batch := list(islice(learned, size)):
            yield self._batch(batch)

    def _batch(self, samples: list[Sample]) -> dict[str, Any]:
        padded = Padded(self.pad_token_id)
        if self.learns != "classes":
            batch = padded(samples)
        else:
            batch = padded([answer_of(sample["input_ids"], ()) for sample in samples])
            labels = torch.tensor([sample["label"] for sample in samples])
            batch["labels"] = labels.float() if labels.dim() > 1 else labels
        return {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}


def _samples(row: Mapping[str, Any], learns: Learns) -> Iterator[Sample]:
    if learns == "pairs":
        yield answer_of(row["prompt_ids"], row["chosen_ids"])
    elif learns in ("labels", "prompts"):
        answer = row["completion_ids"]
        yield answer_of(row["prompt_ids"], answer) if answer else answer_of((), row["prompt_ids"])
    elif learns == "classes":
        yield {"input_ids": list(row["input_ids"]), "label": row["label"]}
    else:
        start = 0
        for length in row.get("seq_lengths", (len(row["input_ids"]),)):  # of packed rows
            yield {name: list(row[name][start : start + length]) for name in IDS}
            start += length


def _learned(sample: Sample) -> Iterator[bool]:
    return (label != IGNORED for label in sample["labels"][1:])
