"""What judges an answer, as OpenAI's graders: https://platform.openai.com/docs/guides/graders."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, field_validator, model_validator

MAX_TEMPLATE = 1 << 18
"""Characters of a text with references."""
MAX_SOURCE = 256_000
"""Characters of a Python grader, as OpenAI has it."""
MAX_MESSAGES = 64
MAX_PARTS = 64
MAX_LABELS = 256
MAX_GRADERS = 16
"""Graders of a `multi`."""
MAX_FORMULA = 1000
MAX_REPLY = 1 << 17
"""Tokens that a grading model may write."""
METRICS = Literal[
    "cosine",
    "fuzzy_match",
    "bleu",
    "gleu",
    "meteor",
    "rouge_1",
    "rouge_2",
    "rouge_3",
    "rouge_4",
    "rouge_5",
    "rouge_l",
]

GraderName = Annotated[str, Field(min_length=1, max_length=256)]
Template = Annotated[str, Field(max_length=MAX_TEMPLATE)]
"""A text in which `{{item.NAME}}` and `{{sample.NAME}}` stand for parts of the row and of the answer."""


class GraderModel(BaseModel):
    """Nothing is guessed, and nothing unknown is ignored."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True, defer_build=True
    )


class Named(GraderModel):
    name: GraderName | None = None
    pass_threshold: float | None = None
    """From which grade on OpenAI's evals count an answer as passed. Rewards do not depend on it."""

    @property
    def label(self) -> str:
        """What metadata and metrics call it."""
        return self.name or str(getattr(self, "type", ""))

    def parts(self) -> "Iterator[tuple[str, AnyGrader]]":
        """The graders that judge, with their names: itself, or those of a `multi`."""
        yield self.label, self  # type: ignore[misc]  # each that can be made is one of the union


class StringCheck(Named):
    """1 or 0, by comparing two texts."""

    type: Literal["string_check"]
    input: Template
    reference: Template
    operation: Literal["eq", "ne", "like", "ilike"]
    """`eq`: the same; `ne`: another; `like`: the input contains the reference; `ilike`: whatever the case."""


class TextSimilarity(Named):
    """From 0 to 1, by how much two texts have in common."""

    type: Literal["text_similarity"]
    input: Template
    reference: Template
    evaluation_metric: METRICS


class TextPart(GraderModel):
    type: Literal["input_text", "output_text", "text"]
    text: Template


Part = Template | TextPart


class GraderMessage(GraderModel):
    role: Literal["user", "assistant", "system", "developer"]
    content: Part | Annotated[list[Part], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]
    type: Literal["message"] = "message"

    def texts(self) -> list[str]:
        """The texts with references that it is made of."""
        parts = self.content if isinstance(self.content, list) else [self.content]
        return [part if isinstance(part, str) else part.text for part in parts]


GraderMessages = Annotated[list[GraderMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]


class GraderSampling(GraderModel):
    seed: int | None = None
    top_p: float | None = Field(None, gt=0, le=1)
    temperature: float | None = Field(None, ge=0, le=2)
    max_completions_tokens: int | None = Field(None, ge=1, le=MAX_REPLY)
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None


class AsksModel(Named):
    model: GraderName
    """The model that is asked."""
    input: GraderMessages
    sampling_params: GraderSampling | None = None


class ScoreModel(AsksModel):
    """A number within `range`, by what a model answers."""

    type: Literal["score_model"]
    range: Annotated[list[float], Field(min_length=2, max_length=2)] = [0.0, 1.0]
    """The lowest and the highest score."""

    @field_validator("range")
    @classmethod
    def _ascends(cls, range: list[float]) -> list[float]:
        if range[0] >= range[1]:
            raise ValueError("the first number is the lowest score, and the second the highest")
        return range


class LabelModel(AsksModel):
    """1 where the label that a model chooses is one of `passing_labels`, else 0."""

    type: Literal["label_model"]
    labels: Annotated[list[GraderName], Field(min_length=1, max_length=MAX_LABELS, fail_fast=True)]
    passing_labels: Annotated[list[GraderName], Field(max_length=MAX_LABELS, fail_fast=True)]

    @model_validator(mode="after")
    def _labels_pass(self) -> Self:
        if unknown := sorted(set(self.passing_labels) - set(self.labels)):
            raise ValueError(f"passing_labels: {unknown[0]!r} is none of the labels")
        return self


class PythonCode(Named):
    """What a function of Python's returns: `def grade(sample, item) -> float`."""

    type: Literal["python"]
    source: Annotated[str, Field(min_length=1, max_length=MAX_SOURCE)]
    image_tag: Annotated[str, Field(max_length=64)] | None = None
    """OpenAI's image whose packages the code expects. The packages here are those of the server's machine."""


SingleGrader = Annotated[
    StringCheck | TextSimilarity | ScoreModel | LabelModel | PythonCode, Field(discriminator="type")
]


def _form(graders: Any) -> str:
    if isinstance(graders, list):
        return "list"
    is_one = not isinstance(graders, Mapping) or isinstance(graders.get("type"), str)
    return "one" if is_one else "named"


class Multi(Named):
    """A formula of other graders' results."""

    type: Literal["multi"]
    graders: Annotated[
        Annotated[dict[GraderName, SingleGrader], Field(min_length=1, max_length=MAX_GRADERS), Tag("named")]
        | Annotated[list[SingleGrader], Field(min_length=1, max_length=MAX_GRADERS, fail_fast=True), Tag("list")]
        | Annotated[SingleGrader, Tag("one")],
        Discriminator(_form),
    ]
    """By the names that the formula has for them, as OpenAI's guide writes it; or a list or a single one, as its
    reference does, which have their own names there."""
    calculate_output: Annotated[str, Field(min_length=1, max_length=MAX_FORMULA)]

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        if isinstance(self.graders, list) and len(self.named) < len(self.graders):
            raise ValueError("graders: each in a list needs a name of its own")
        return self

    @property
    def named(self) -> "dict[str, AnyGrader]":
        """The graders, by the names that the formula has for them."""
        if isinstance(self.graders, dict):
            return dict(self.graders)
        listed = self.graders if isinstance(self.graders, list) else [self.graders]
        return {each.label: each for each in listed}

    def parts(self) -> "Iterator[tuple[str, AnyGrader]]":
        yield from self.named.items()


AnyGrader = StringCheck | TextSimilarity | ScoreModel | LabelModel | PythonCode
Grader = Annotated[
    StringCheck | TextSimilarity | ScoreModel | LabelModel | PythonCode | Multi,
    Field(discriminator="type"),
]
OneGrader = AnyGrader | Multi


def parse_grader(grader: Any) -> OneGrader:
    """Raises pydantic's ValidationError."""
    one: OneGrader = _GRADER.validate_python(grader)
    return one


_GRADER: TypeAdapter[Any] = TypeAdapter(Grader, config=ConfigDict(defer_build=True))


def asking(grader: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The same grader, which asks another model."""
    changed = {name: model if name == "model" else value for name, value in grader.items()}
    match grader.get("graders"):
        case Mapping() as one if "type" in one:
            changed["graders"] = asking(one, model)
        case Mapping() as named:
            changed["graders"] = {name: asking(one, model) for name, one in named.items()}
        case list() as several:
            changed["graders"] = [asking(one, model) for one in several]
    return changed
