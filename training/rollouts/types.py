"""Answers that the model in training gives, to be judged and learned from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from engines.errors import TuneserveError
from engines.types import Structured


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One answer to a prompt."""

    prompt_ids: Sequence[int]
    token_ids: Sequence[int]
    """With the end-of-sequence token, where it ended with one."""
    log_probs: Sequence[float]
    """Of each token when it was drawn, as `token_log_probs(temperature=...)` has it: under the model of that step, at
    the temperature that it was drawn with (0: at 1), over all tokens, whatever top_k, top_p, min_p, penalties and a
    constraint left. They are the engine's numbers, which computes in the model's own type."""
    ended: bool
    """Whether it ended by itself, and was not cut at the most tokens it may have."""
    version: int
    """Number of the policy that gave it: how often the weights had been taken over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How answers are drawn."""

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    """0: off."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    structured: Structured | None = None
    """What each answer is held to, token by token."""


class Rollouts(Protocol):
    """What draws answers from the model in training."""

    @property
    def version(self) -> int:
        """Number of the policy that answers come from."""
        ...

    def draw(
        self, prompts: Sequence[Sequence[int]], n: int, drawing: Drawing, *, seed: int, places: Sequence[int] = ()
    ) -> list[list[Rollout]]:
        """`n` answers to each prompt, of the policy as it was last taken over. The same seed, prompts and weights give
        the same answers. `places`: where each prompt stands among those that all processes draw for, so that its
        answers are the same however they are divided; as they come unless given.

        Raises EngineFailure; InvalidRequest where a prompt leaves no room for an answer; what the owner's check between
        steps raises.
        """
        ...

    def take_over(self) -> None:
        """Draw from the weights as they are now; `version` is one more."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the base model is asked, to judge an answer."""

    prompt_ids: Sequence[int]
    schema: str
    """JSON Schema that the reply is held to, as JSON."""
    drawing: Drawing
    seed: int


class JudgingRollouts(Rollouts, Protocol):
    """Whose base model judges, too."""

    def ask_base(self, asked: Sequence[Asked]) -> list[list[int] | TuneserveError]:
        """The tokens of a reply to each, by the model without what it has learned; or why there is none.

        Raises EngineFailure.
        """
        ...
