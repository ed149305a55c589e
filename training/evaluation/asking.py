"""What a benchmark asks of a model, wherever that is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """How likely the model finds the end of a text."""

    logprob: float
    """Of its last tokens together."""
    greedy: bool
    """Whether each of them is the likeliest there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToWrite:
    """A text to go on with."""

    prompt_ids: Sequence[int]
    stops: Sequence[str]
    """Texts before the first of which the answer ends."""
    max_tokens: int
    sampling: Mapping[str, Any]
    """`temperature`, `top_p`, `top_k`."""


class Model(Protocol):
    """A model under test. Answers come in the order of what was asked."""

    max_length: int
    """Tokens of a text at most."""
    end_token_id: int
    """What texts begin with where nothing comes before them."""

    def encode(self, text: str, *, add_special_tokens: bool | None = None) -> list[int]: ...

    def end_text(self) -> str:
        """What the model ends its answers with."""
        ...

    def chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> str:
        """The text that the chat template makes. Raises InvalidRequest where there is none."""
        ...

    def score(self, texts: Sequence[tuple[Sequence[int], int]]) -> list[Scored]:
        """Each text with the number of its last tokens that are scored. Raises TuneserveError."""
        ...

    def write(self, asked: Sequence[ToWrite]) -> list[str]:
        """Raises TuneserveError."""
        ...

    def close(self) -> None: ...


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop, and whether there is one."""
    ends = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
    return (text[: min(ends)], True) if ends else (text, False)


Told = Callable[[int, int], None]
"""Called with how many questions have been answered, and how many there are."""
