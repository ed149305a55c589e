"""What a grader says of an answer: checked once, then asked as often as there are answers."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from engines.errors import InvalidRequest, TuneserveError
from training.params.graders import (
    AnyGrader,
    AsksModel,
    LabelModel,
    Multi,
    OneGrader,
    PythonCode,
    ScoreModel,
    StringCheck,
    TextSimilarity,
)
from training.rewards.graders.errors import GradeError
from training.rewards.graders.formula import Formula
from training.rewards.graders.judging import Ask, Cosine, Question, TokenUsage, question_of, reward_of
from training.rewards.graders.sandbox import Sandbox
from training.rewards.graders.similarity import COSINE, check_metric, similarity
from training.rewards.graders.templates import references, render


@dataclass(frozen=True, slots=True, kw_only=True)
class Graded:
    """What one grader says of one answer."""

    reward: float
    """0 where there is an error."""
    error: GradeError | None = None
    seconds: float = 0.0
    usage: Mapping[str, TokenUsage] = field(default_factory=dict)
    """Tokens, by the models that were asked."""
    parts: Mapping[str, "Graded"] = field(default_factory=dict)
    """Of a `multi`, what each of its graders says."""

    def errors(self) -> list[GradeError]:
        """Its own, and those of its parts."""
        own = [] if self.error is None else [self.error]
        return own + [error for part in self.parts.values() for error in part.errors()]


def sample_of(text: str, *, ended: bool = True, calls: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """An answer as graders see it: OpenAI's `sample`. `output_json` is None where the text is no JSON. `calls`: the
    tools that it calls, in OpenAI's form."""
    output_json = None
    with suppress(ValueError, RecursionError):
        output_json = json.loads(text)
    message: dict[str, Any] = {"role": "assistant", "content": text}
    reason = "stop" if ended else "length"
    if calls:
        message |= {"content": text or None, "tool_calls": list(calls)}
        reason = "tool_calls" if ended else "length"
    return {
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        "output_text": text,
        "output_json": output_json,
        "output_tools": list(calls),
        "output_audio": None,
    }


class Grading:
    """A grader, ready to judge. Closed, it has left no process behind."""

    def __init__(self, grader: OneGrader, ask: Ask, cosine: Cosine | None = None) -> None:
        """Raises InvalidRequest, whose `param` is a path within the grader, where it can judge nothing."""
        check_grader(grader, embeds=cosine is not None)
        self._grader = grader
        self._ask = ask
        self._cosine = cosine
        self._sandboxes = {each.source: Sandbox(each.source) for each in python_graders(grader)}

    def __call__(self, sample: Mapping[str, Any], item: Mapping[str, Any]) -> Graded:
        """May be called by several threads at a time."""
        if isinstance(self._grader, Multi):
            return self._multi(self._grader, sample, item)
        return self._single(self._grader, sample, item)

    def questions(self, sample: Mapping[str, Any], item: Mapping[str, Any]) -> list[Question]:
        """What it will ask models about an answer."""
        found = []
        for _, part in self._grader.parts():
            if isinstance(part, AsksModel):
                with suppress(GradeError, RecursionError):  # which grading it tells
                    found.append(question_of(part, item=item, sample=sample))
        return found

    def pairs(self, sample: Mapping[str, Any], item: Mapping[str, Any]) -> list[tuple[str, str]]:
        """The texts whose embeddings it will compare."""
        found = []
        for _, part in self._grader.parts():
            if isinstance(part, TextSimilarity) and part.evaluation_metric == COSINE:
                with suppress(GradeError, RecursionError):  # which grading it tells
                    found.append(_two_texts(part, sample, item))
        return found

    def close(self) -> None:
        for sandbox in self._sandboxes.values():
            sandbox.close()

    def _multi(self, grader: Multi, sample: Mapping[str, Any], item: Mapping[str, Any]) -> Graded:
        begun = time.monotonic()
        parts = {name: self._single(part, sample, item) for name, part in grader.parts()}
        usage: dict[str, TokenUsage] = {}
        for part in parts.values():
            for model, tokens in part.usage.items():
                usage[model] = usage.get(model, TokenUsage()) + tokens
        reward, error = 0.0, None
        try:
            formula = Formula(grader.calculate_output, frozenset(parts))
            reward = formula({name: part.reward for name, part in parts.items()})
        except GradeError as wrong:
            error = wrong
        return Graded(reward=reward, error=error, seconds=time.monotonic() - begun, usage=usage, parts=parts)

    def _single(self, grader: AnyGrader, sample: Mapping[str, Any], item: Mapping[str, Any]) -> Graded:
        begun = time.monotonic()
        reward, error, usage = 0.0, None, {}
        try:
            match grader:
                case StringCheck() | TextSimilarity():
                    reward = self._compared(grader, *_two_texts(grader, sample, item))
                case ScoreModel() | LabelModel():
                    text, usage[grader.model] = self._asked(grader, sample, item)
                    reward = reward_of(grader, text)
                case PythonCode():
                    reward = self._sandboxes[grader.source].grade(sample, item)
        except GradeError as wrong:
            error = wrong
        except RecursionError:
            error = GradeError("sample_parse_error", "the sample's JSON is nested too deep")
        return Graded(reward=reward, error=error, seconds=time.monotonic() - begun, usage=usage)

    def _compared(self, grader: StringCheck | TextSimilarity, input: str, reference: str) -> float:
        if isinstance(grader, StringCheck):
            return _checked(grader, input, reference)
        if grader.evaluation_metric != COSINE:
            return similarity(grader.evaluation_metric, input, reference)
        assert self._cosine is not None, "checked"
        try:
            return min(1.0, max(0.0, self._cosine(input, reference)))
        except TuneserveError as failed:
            raise GradeError("other_error", f"their embeddings: {failed.message}") from None

    def _asked(
        self, grader: ScoreModel | LabelModel, sample: Mapping[str, Any], item: Mapping[str, Any]
    ) -> tuple[str, TokenUsage]:
        question = question_of(grader, item=item, sample=sample)
        try:
            reply = self._ask(question)
        except TuneserveError as failed:
            raise GradeError("model_grader_server_error", f"{grader.model!r}: {failed.message}") from None
        return reply.text, reply.usage


def check_grader(grader: OneGrader, *, embeds: bool = False) -> None:
    """Raises InvalidRequest, whose `param` is a path within the grader, where it can judge nothing. `embeds`: whether a
    model makes embeddings for it."""
    for name, part in grader.parts():
        within = f"graders.{name}." if isinstance(grader, Multi) else ""
        for path, text in _texts(part):
            try:
                references(text)
            except InvalidRequest as error:
                raise InvalidRequest(f"{within}{path}: {error.message}", param=f"{within}{path}") from None
        try:
            if isinstance(part, TextSimilarity):
                check_metric(part.evaluation_metric, embeds=embeds)
        except InvalidRequest as error:
            raise type(error)(f"{within}{error.message}", param=f"{within}{error.param}") from None
        if isinstance(part, PythonCode):
            _check_source(part.source, f"{within}source")
    if isinstance(grader, Multi):
        Formula(grader.calculate_output, frozenset(grader.named))


def models_of(grader: OneGrader) -> list[str]:
    """The models that it asks."""
    return [part.model for _, part in grader.parts() if isinstance(part, AsksModel)]


def compares_embeddings(grader: OneGrader) -> bool:
    return any(isinstance(part, TextSimilarity) and part.evaluation_metric == COSINE for _, part in grader.parts())


def python_graders(grader: OneGrader) -> list[PythonCode]:
    return [part for _, part in grader.parts() if isinstance(part, PythonCode)]


def references_of(grader: OneGrader) -> list[tuple[str, tuple[str | int, ...]]]:
    """All that its texts refer to."""
    return [reference for _, part in grader.parts() for _, text in _texts(part) for reference in references(text)]


def _texts(grader: AnyGrader) -> list[tuple[str, str]]:
    """Its texts with references, and the fields where they stand."""
    match grader:
        case StringCheck() | TextSimilarity():
            return [("input", grader.input), ("reference", grader.reference)]
        case ScoreModel() | LabelModel():
            return [(f"input[{i}].content", text) for i, one in enumerate(grader.input) for text in one.texts()]
        case PythonCode():
            return []


def _check_source(source: str, param: str) -> None:
    """What can be told without running or parsing it here: whether it is text that has a function `grade`."""
    if "def grade" not in source and "grade =" not in source:
        raise InvalidRequest(f"{param}: there is no function grade(sample, item).", param=param)


def _two_texts(
    grader: StringCheck | TextSimilarity, sample: Mapping[str, Any], item: Mapping[str, Any]
) -> tuple[str, str]:
    """Raises GradeError."""
    input, reference = (render(text, item=item, sample=sample) for text in (grader.input, grader.reference))
    return input, reference


def _checked(grader: StringCheck, input: str, reference: str) -> float:
    match grader.operation:
        case "eq":
            return float(input == reference)
        case "ne":
            return float(input != reference)
        case "like":
            return float(reference in input)
        case "ilike":
            return float(reference.casefold() in input.casefold())
