"""Whether an answer passes the criteria of an eval."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from engines.errors import InvalidRequest, TuneserveError
from server.evals.records import ItemStatus, labels_of
from server.pools import Pool
from training.params.graders import LabelModel, OneGrader, ScoreModel, StringCheck, TextSimilarity
from training.rewards.graders.grading import Graded, Grading
from training.rewards.graders.judging import Question, Reply, TokenUsage

Key = TypeVar("Key")
Told = TypeVar("Told")
MIDDLE = 0.5
"""From which grade on a criterion counts as passed whose grader says nothing: the middle of most ranges."""
AskModel = Callable[[Question], Awaitable[Reply]]
"""Has a served model answer. Raises TuneserveError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """What the embeddings of two texts have in common."""

    cosine: float
    model: str
    """Which made them."""
    usage: TokenUsage


Compare = Callable[[str, str], Awaitable[Likeness]]
"""Raises TuneserveError."""


def check_criterion(criterion: OneGrader, param: str) -> None:
    """What evals want beyond what a grader is. Raises InvalidRequest."""
    if isinstance(criterion, TextSimilarity) and criterion.pass_threshold is None:
        raise InvalidRequest(f"{param}.pass_threshold: a text_similarity needs one here.", param=param)
    if isinstance(criterion, StringCheck | LabelModel) and criterion.pass_threshold is not None:
        raise InvalidRequest(f"{param}.pass_threshold: a {criterion.type} passes or fails by itself.", param=param)


def passes(criterion: OneGrader, reward: float) -> bool:
    if isinstance(criterion, StringCheck | LabelModel):
        return reward >= 1
    if criterion.pass_threshold is not None:
        return reward >= criterion.pass_threshold
    if isinstance(criterion, ScoreModel):
        lowest, highest = criterion.range
        return reward >= (lowest + highest) / 2
    return reward >= MIDDLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the criteria say of one answer."""

    status: ItemStatus
    results: list[dict[str, Any]]
    """As output items show them."""
    tokens: list[tuple[str, TokenUsage]]
    """The models that were asked, each question once, and what each answer took."""


REPLIES: ContextVar[Mapping[str, Reply | TuneserveError]] = ContextVar("replies")
"""What models have said of the answer that a thread grades."""
LIKENESSES: ContextVar[Mapping[tuple[str, str], Likeness | TuneserveError]] = ContextVar("likenesses")
"""How much the embeddings of texts have in common that it compares."""


class Judge:
    """The criteria of a run. Closed, it has left no process behind."""

    def __init__(self, criteria: list[OneGrader], ask: AskModel, compare: Compare, pool: Pool) -> None:
        """`pool` has the threads that grade: none of them waits for a model. Raises InvalidRequest."""
        self._criteria = criteria
        self._labels = labels_of(criteria)
        self._ask = ask
        self._compare = compare
        self._pool = pool
        self._closed = False
        self._gradings = [Grading(each, _reply, _cosine) for each in criteria]

    async def __call__(self, sample: Mapping[str, Any], item: Mapping[str, Any]) -> Verdict:
        """Raises QueueFull where too much is graded."""
        asked = {each.key: each for grading in self._gradings for each in grading.questions(sample, item)}
        pairs = {pair: pair for grading in self._gradings for pair in grading.pairs(sample, item)}
        replies = await _all(self._ask, {key: (question,) for key, question in asked.items()})
        likenesses = await _all(self._compare, pairs)
        REPLIES.set(replies)
        LIKENESSES.set(likenesses)
        grading = asyncio.ensure_future(self._pool.run(self._grade, sample, item))
        try:
            graded = await asyncio.shield(grading)
        finally:  # its processes are not closed under a thread that would start them again
            await asyncio.wait((grading,))
        tokens = [(asked[key].model, reply.usage) for key, reply in replies.items() if isinstance(reply, Reply)]
        tokens += [(each.model, each.usage) for each in likenesses.values() if isinstance(each, Likeness)]
        return Verdict(status=self._status(graded), results=self._results(graded), tokens=tokens)

    def _status(self, graded: list[Graded]) -> ItemStatus:
        if any(each.errors() for each in graded):
            return "error"
        passed = all(passes(each, said.reward) for each, said in zip(self._criteria, graded, strict=True))
        return "pass" if passed else "fail"

    def _grade(self, sample: Mapping[str, Any], item: Mapping[str, Any]) -> list[Graded]:
        return [grading(sample, item) for grading in self._gradings if not self._closed]

    def _results(self, graded: list[Graded]) -> list[dict[str, Any]]:
        """As output items show them. A grader that failed says why."""
        return [
            _result(label, criterion, said)
            for label, criterion, said in zip(self._labels, self._criteria, graded, strict=True)
        ]

    def stop(self) -> None:
        """Begin no more grades."""
        self._closed = True

    def close(self) -> None:
        """Comes when nothing is graded any more."""
        for grading in self._gradings:
            grading.close()


async def _all(
    ask: Callable[..., Awaitable[Told]], asked: Mapping[Key, tuple[Any, ...]]
) -> dict[Key, Told | TuneserveError]:
    """What comes of `ask` with the arguments of each key, all at once."""
    told: dict[Key, Told | TuneserveError] = {}

    async def one(key: Key, arguments: tuple[Any, ...]) -> None:
        try:
            told[key] = await ask(*arguments)
        except TuneserveError as error:
            told[key] = error

    async with asyncio.TaskGroup() as asking:
        for key, arguments in asked.items():
            asking.create_task(one(key, arguments))
    return told


def _reply(question: Question) -> Reply:
    """Called in the threads that grade, which have the context of the call. Raises TuneserveError."""
    reply = REPLIES.get()[question.key]
    if isinstance(reply, TuneserveError):
        raise reply
    return reply


def _cosine(text: str, reference: str) -> float:
    """Likewise."""
    likeness = LIKENESSES.get()[text, reference]
    if isinstance(likeness, TuneserveError):
        raise likeness
    return likeness.cosine


def _result(label: str, criterion: OneGrader, said: Graded) -> dict[str, Any]:
    errors = said.errors()
    told: dict[str, Any] = {} if not errors else {"error": {"code": errors[0].kind, "message": errors[0].details}}
    parts = {name: part.reward for name, part in said.parts.items()}
    return {
        "name": label,
        "type": criterion.type,
        "score": said.reward,
        "passed": not errors and passes(criterion, said.reward),
        "sample": {"sub_rewards": parts} if parts else None,
        **told,
    }
