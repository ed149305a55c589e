"""How long the texts of a training are, which its largest batch is made of."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from training.data.encode import IGNORED
from training.data.samples import Learns

LOOKED_AT = 10_000
"""Rows whose lengths are taken, where there are more."""


@dataclass(frozen=True, slots=True)
class Lengths:
    longest: int
    """Tokens of the longest text, of those that are padded to it."""
    learned: int
    """Tokens that are learned of the longest sample."""
    learned_on_average: float
    """Those of a sample."""
    rows: int = 1
    """Samples."""
    different: int = 1
    """Lengths that texts have."""
    different_learned: int = 1
    """Numbers of tokens that are learned of a sample."""


def lengths_of(rows: Collection[Mapping[str, Any]], learns: Learns, *, drawn: int = 0) -> Lengths:
    """`drawn`: the most tokens of an answer that the model gives while it learns; 0: it gives none."""
    found = [_lengths(row, learns, drawn) for row in islice(rows, LOOKED_AT)]
    return Lengths(
        longest=max(longest for longest, _ in found),
        learned=max(learned for _, learned in found),
        learned_on_average=sum(learned for _, learned in found) / len(found),
        rows=len(rows),
        different=max(drawn, len({longest for longest, _ in found})),
        different_learned=max(drawn, len({learned for _, learned in found})),
    )


def _lengths(row: Mapping[str, Any], learns: Learns, drawn: int) -> tuple[int, int]:
    """Tokens of the longest text of a sample, and those that are learned of it."""
    match learns:
        case "answers" | "text":
            return len(row["input_ids"]), sum(label != IGNORED for label in row["labels"][1:])
        case "classes":
            return len(row["input_ids"]), 0
        case "pairs":
            prompt, answers = len(row["prompt_ids"]), (len(row["chosen_ids"]), len(row["rejected_ids"]))
            return prompt + max(answers), sum(answers)
    answer = max(drawn, len(row["completion_ids"]))
    return len(row["prompt_ids"]) + answer, answer
