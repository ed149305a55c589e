"""Graders that ask a model: what it is asked, and what its answer says."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from training.params.graders import AsksModel, GraderSampling, LabelModel, ScoreModel
from training.rewards.graders.errors import GradeError
from training.rewards.graders.templates import render

STEPS = {
    "type": "array",
    "maxItems": 8,
    "items": {
        "type": "object",
        "properties": {"description": {"type": "string"}, "conclusion": {"type": "string"}},
        "required": ["description", "conclusion"],
        "additionalProperties": False,
    },
}
"""The reasoning before a result, as OpenAI's guide describes it."""
DEFAULT_TOKENS = 2048
"""Most tokens of a reply, unless the grader says how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a model is asked."""

    model: str
    messages: Sequence[Mapping[str, Any]]
    """As chat completions have them."""
    schema: Mapping[str, Any]
    """JSON Schema of the answer."""
    sampling: GraderSampling
    max_tokens: int

    @property
    def key(self) -> str:
        """The same for questions that are the same."""
        return json.dumps([self.model, self.messages, self.schema, self.sampling.model_dump(), self.max_tokens])


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUsage:
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: "TokenUsage") -> "TokenUsage":
        return TokenUsage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    text: str
    usage: TokenUsage = field(default_factory=TokenUsage)


Ask = Callable[[Question], Reply]
"""Has a model answer. Several threads may call it at a time. Raises TuneserveError."""
Cosine = Callable[[str, str], float]
"""The cosine of two texts' embeddings. Raises TuneserveError."""


def question_of(grader: AsksModel, *, item: Mapping[str, Any], sample: Mapping[str, Any]) -> Question:
    """Raises GradeError."""
    messages = []
    for message in grader.input:
        texts = [render(text, item=item, sample=sample) for text in message.texts()]
        content = texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]
        messages.append({"role": message.role, "content": content})
    sampling = grader.sampling_params or GraderSampling()
    return Question(
        model=grader.model,
        messages=messages,
        schema=_schema(grader),
        sampling=sampling,
        max_tokens=sampling.max_completions_tokens or DEFAULT_TOKENS,
    )


def _schema(grader: AsksModel) -> dict[str, Any]:
    result = {"enum": grader.labels} if isinstance(grader, LabelModel) else {"type": "number"}
    return {
        "type": "object",
        "properties": {"steps": STEPS, "result": result},
        "required": ["steps", "result"],
        "additionalProperties": False,
    }


def reward_of(grader: ScoreModel | LabelModel, text: str) -> float:
    """What a reply says, brought into the range. Raises GradeError."""
    try:
        answer = json.loads(text)
        result = answer["result"]
    except (ValueError, KeyError, TypeError, RecursionError):
        told = f"{grader.model!r} did not answer in the format: {text[-100:]!r}"
        raise GradeError("model_grader_parse_error", told) from None
    if isinstance(grader, LabelModel):
        return float(result in grader.passing_labels)
    if isinstance(result, bool) or not isinstance(result, int | float):
        raise GradeError("model_grader_parse_error", f"{grader.model!r} answered {result!r}, and not a number")
    lowest, highest = grader.range
    return min(highest, max(lowest, result))
