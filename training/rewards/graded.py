"""One of OpenAI's graders as a reward."""

from collections.abc import Sequence

from engines.errors import InvalidRequest, UnsupportedParameter
from training.params.graders import OneGrader, parse_grader
from training.params.refusal import Refusal
from training.params.rlhf import RlhfParams
from training.rewards.graders.grading import Graded, Grading, check_grader, models_of, references_of, sample_of
from training.rewards.graders.judging import Question, Reply
from training.rewards.types import Answered


class GraderReward:
    """Judges by a grader. An answer that it could not grade has the reward 0, as OpenAI has it."""

    def __init__(self, grader: OneGrader) -> None:
        """Raises InvalidRequest where the grader can judge nothing."""
        self.name = grader.label
        self.last: list[Graded] = []
        """What was said of the answers that were judged last."""
        self._grading = Grading(grader, _no_model)

    def __call__(self, answers: Sequence[Answered]) -> list[float | None]:
        self.last = [self._grading(sample_of(answer.text, ended=answer.ended), answer.item) for answer in answers]
        return [graded.reward for graded in self.last]


def grader_reward(params: RlhfParams) -> GraderReward | None:
    """Raises InvalidRequest."""
    return None if params.grader is None else GraderReward(parse_grader(params.grader))


def refusals(params: RlhfParams) -> list[Refusal]:
    """Why a training cannot be judged by its grader."""
    if params.grader is None:
        return []
    grader = parse_grader(params.grader)
    if models := models_of(grader):
        return [("grader", f"it asks the model {models[0]!r}, and in a training no other model answers")]
    try:
        check_grader(grader)
    except InvalidRequest as error:
        return [("grader", error.message.rstrip("."))]
    for namespace, (first, *_) in references_of(grader):
        if namespace == "sample" and first in ("output_tools", "output_audio"):
            return [("grader", f"sample.{first}: answers are texts in a training")]
    return []


def _no_model(question: Question) -> Reply:
    raise UnsupportedParameter("no model answers in a training", param="grader")
