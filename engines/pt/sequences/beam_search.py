"""Beam search as bookkeeping: which beams go on with which tokens, and which outputs are the best. No tensors.

The rules are those of transformers' `generate(num_beams=..., do_sample=False, early_stopping=False)`.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished output."""

    token_ids: tuple[int, ...]
    score: float
    """The sum of its logprobs divided by length ** length_penalty."""
    stopped: bool
    """Whether its last token is an end token; otherwise it reached the longest length."""


@dataclass(frozen=True, slots=True)
class _Beam:
    token_ids: tuple[int, ...]
    logprob: float


@dataclass(frozen=True, slots=True)
class _Step:
    parent: int
    token_id: int
    logprob: float
    """Log probability of the whole beam with this token."""


class BeamSearch:
    """The search for one prompt. It begins with one beam, the prompt itself; each `advance` makes the next beams."""

    def __init__(
        self, num_beams: int, length_penalty: float, eos_token_ids: Collection[int], max_new_tokens: int, n: int
    ) -> None:
        """`eos_token_ids` are all tokens that end an output; `n` of the hypotheses are wanted, at most `num_beams`."""
        assert 1 <= n <= num_beams
        self._num_beams = num_beams
        self._length_penalty = length_penalty
        self._eos_token_ids = frozenset(eos_token_ids)
        self._max_new_tokens = max_new_tokens
        self._n = n
        self._running = [_Beam((), 0.0)]
        self._finished: list[Hypothesis] = []

    @property
    def candidates(self) -> int:
        """Number of best continuations of each beam that `advance` must see to find the best of all.

        Enough that `num_beams` of them go on even where every beam could end with each of the end tokens.
        """
        return max(2, 1 + len(self._eos_token_ids)) * self._num_beams

    def advance(self, continuations: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, int]]:
        """Return (parent beam, token) for each of the next beams, best first; none where the search has ended.

        continuations: for each beam in the order last returned, its best (token, logprob), best first; a beam that
        cannot go on has none.
        """
        assert len(continuations) == len(self._running)
        best = self._best_continuations(continuations)
        # Only the best `num_beams` may finish: the others are there so that enough go on.
        self._finish([step for step in best[: self._num_beams] if self._ends(step)])
        going_on = [step for step in best if not self._ends(step)][: self._num_beams]
        self._running = [self._extended(step) for step in going_on]
        if not self._can_improve():
            self._running = []
            return []
        return [(step.parent, step.token_id) for step in going_on]

    def hypotheses(self) -> list[Hypothesis]:
        """The best outputs, best first, once the search has ended; fewer than n where constraints left fewer."""
        return self._finished[: self._n]

    def _best_continuations(self, continuations: Sequence[Sequence[tuple[int, float]]]) -> list[_Step]:
        steps = [
            _Step(parent, token_id, beam.logprob + logprob)
            for parent, (beam, own) in enumerate(zip(self._running, continuations, strict=True))
            for token_id, logprob in own
        ]
        return sorted(steps, key=lambda step: -step.logprob)[: self.candidates]

    def _ends(self, step: _Step) -> bool:
        length = len(self._running[step.parent].token_ids) + 1
        return step.token_id in self._eos_token_ids or length >= self._max_new_tokens

    def _extended(self, step: _Step) -> _Beam:
        return _Beam((*self._running[step.parent].token_ids, step.token_id), step.logprob)

    def _finish(self, steps: list[_Step]) -> None:
        for step in steps:
            beam = self._extended(step)
            score = self._score(beam)
            self._finished.append(Hypothesis(beam.token_ids, score, step.token_id in self._eos_token_ids))
        self._finished = sorted(self._finished, key=lambda hypothesis: -hypothesis.score)[: self._num_beams]

    def _score(self, beam: _Beam) -> float:
        return float(beam.logprob / len(beam.token_ids) ** self._length_penalty)

    def _can_improve(self) -> bool:
        """Whether the best beam, were it to end now, would beat the worst of enough finished outputs."""
        if not self._running:
            return False
        if len(self._finished) < self._num_beams:
            return True
        return self._score(self._running[0]) > self._finished[-1].score
