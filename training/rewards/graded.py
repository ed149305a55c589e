"""One of OpenAI's graders as a reward."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from engines.errors import InvalidRequest, TuneserveError
from training.params.graders import AsksModel, Multi, OneGrader, parse_grader
from training.params.refusal import Refusal
from training.params.rlhf import RlhfParams
from training.rewards.graders.grading import Graded, Grading, check_grader, models_of, references_of
from training.rewards.graders.judging import Question, Reply
from training.rewards.types import Answered

AskAll = Callable[[Sequence[Question]], Sequence[Reply | TuneserveError]]
"""Has the base model answer several questions; or says why it does not."""


Read = Callable[[Answered], dict[str, Any]]
"""Makes OpenAI's `sample` of an answer."""


class GraderReward:
    """Judges by a grader. An answer that it could not grade has the reward 0, as OpenAI has it."""

    def __init__(self, grader: OneGrader, ask: AskAll, read: Read) -> None:
        """Raises InvalidRequest where the grader can judge nothing."""
        self.name = grader.label
        self._parts = [name for name, _ in grader.parts()] if isinstance(grader, Multi) else []
        self.last: list[Graded] = []
        """What was said of the answers that were judged last."""
        self._ask = ask
        self._read = read
        self._replies: dict[str, Reply | TuneserveError] = {}
        self._grading = Grading(grader, self._reply)

    def __call__(self, answers: Sequence[Answered]) -> list[float | None]:
        judged = [(self._read(answer), answer.item) for answer in answers]
        questions = {question.key: question for each in judged for question in self._grading.questions(*each)}
        if questions:  # all at once, as one model answers them
            self._replies = dict(zip(questions, self._ask([*questions.values()]), strict=True))
        self.last = [self._grading(*each) for each in judged]
        return [graded.reward for graded in self.last]

    def parts(self) -> dict[str, list[float]]:
        """Which answers it could not grade, and what each grader of a `multi` says."""
        failed = [float(bool(graded.errors())) for graded in self.last]
        parts = {name: [graded.parts[name].reward for graded in self.last] for name in self._parts}
        return {f"rewards/{self.name}/errors": failed} | {
            f"rewards/{self.name}.{name}/mean": rewards for name, rewards in parts.items()
        }

    def _reply(self, question: Question) -> Reply:
        reply = self._replies[question.key]
        if isinstance(reply, TuneserveError):
            raise reply
        return reply


def asks_base(params: RlhfParams) -> bool:
    """Whether the base model judges."""
    return params.grader is not None and bool(models_of(parse_grader(params.grader)))


def refusals(params: RlhfParams) -> list[Refusal]:
    """Why a training cannot be judged by its grader."""
    return [] if params.grader is None else [("grader", reason) for reason in _reasons(params)][:1]


def _reasons(params: RlhfParams) -> Iterator[str]:
    grader = parse_grader(params.grader)
    yield from _reasons_of_models(grader, params)
    try:
        check_grader(grader)
    except InvalidRequest as error:
        yield error.message.rstrip(".")
        return
    for namespace, (first, *_) in references_of(grader):
        if namespace == "sample" and first == "output_audio":
            yield f"sample.{first}: answers are texts in a training"


def _reasons_of_models(grader: OneGrader, params: RlhfParams) -> Iterator[str]:
    model = params.model or ""
    for name in models_of(grader):
        if name not in (model, Path(model).name):
            yield f"it asks the model {name!r}, and in a training no other than the base model answers"
    for _, part in grader.parts():
        if isinstance(part, AsksModel) and part.sampling_params and part.sampling_params.reasoning_effort:
            yield "sampling_params.reasoning_effort has no effect in a training: leave it out"
