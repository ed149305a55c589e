"""What judges answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """An answer with all that a judge may look at."""

    prompt_ids: Sequence[int]
    token_ids: Sequence[int]
    text: str
    """The answer, without special tokens."""
    ended: bool = True
    """Whether it ended by itself, and was not cut."""
    item: Mapping[str, Any] = field(default_factory=dict)
    """The row of the data that asked: OpenAI's `item`."""


class Reward(Protocol):
    """Judges answers: higher is better."""

    name: str
    """As metrics have it: `rewards/NAME/mean`."""

    def __call__(self, answers: Sequence[Answered]) -> list[float | None]:
        """One for each answer; None where it does not apply to one. Raises TuneserveError."""
        ...


@runtime_checkable
class InParts(Protocol):
    """A reward that says more of the answers that it judged last than a number for each."""

    def parts(self) -> Mapping[str, Sequence[float]]:
        """Metrics of them, a number for each answer. Their names are always the same."""
        ...
