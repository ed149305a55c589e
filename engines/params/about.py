"""What the program does with a parameter, said where the parameter is defined: `Annotated[int, About(TRAINING, ...)]`.

Refusals, help, the reference page, the bodies of jobs and what is handed on to libraries follow from it.
"""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

DEPLOY, TRAINING, MERGE, EXPORT = ("deploy",), ("training",), ("merge",), ("export",)
INFER, EVAL, PAGE = ("infer",), ("eval",), ("page",)
EVERY_ENGINE = ("pt", "vllm", "lmdeploy")

NOT_SUPPORTED = "not supported in this version"
BY_REQUEST = "a request over HTTP says so itself"
ANSWERS_ONLY = "only sft with predict_with_generate, and methods that draw answers, write text: leave it out"
NOBODY_READS = "a training writes no text for anybody to read: leave it out"
FOR_IMAGES = "images are not supported in this version: leave it out"
A_FILE = "it names files or code of the server's machine"
THE_MODEL = "the model that is served is the one that is trained"
THE_SERVER = "the server says so itself, for all jobs"
SELF_COGNITION = "it is for self-cognition data, which no uploaded file is"


@dataclass(frozen=True, slots=True)
class About:
    readers: tuple[str, ...] = ()
    """Kinds of commands that read it. Where neither a command nor what it runs (an engine, a method, a tuner) reads a
    parameter, every value but its default is refused."""
    _: KW_ONLY
    engines: tuple[str, ...] = ()
    """Engines whose configuration is made of it."""
    choices: tuple[Any, ...] = ()
    """Values that are supported in this version, where its type has more."""
    same_as: str | None = None
    """Name of the parameter that means the same to `deploy`, which takes one of the two."""
    trainer: bool = False
    """Whether it is handed to transformers' TrainingArguments as it is, under the same name."""
    prepares: bool = False
    """Whether prepared data depends on it."""
    one_run: bool = False
    """Whether it belongs to one run only, so that no checkpoint hands it on to the next."""
    names: Literal["model", "data", "adapter", "checkpoint"] | None = None
    """What a job of the API may name by it."""
    path: bool = False
    """Whether it names a file, a folder or code of this machine, and is for the command line alone."""
    text: bool = False
    """Whether its text is never a path. What takes text and says neither this nor `names` is closed to the API."""
    secret: bool = False
    """Whether it gives access to something: it stands in no file, row of a database, log or message, and no client of
    the API chooses it."""
    variable: str | None = None
    """Environment variable by which a worker process gets it, where it is a secret."""
    processes: bool = False
    """Whether it is a number of processes, of which the API allows as many as there are processors."""
    api_choices: tuple[str, ...] = ()
    """Words that jobs of the API may choose from."""
    not_in_training: str | None = None
    """Why no training reads it, or none of a task's methods, where there is more to say than that."""
    not_in_deploy: str | None = None
    """Why `deploy` does not read it, where there is more to say than that."""
    not_in_lmdeploy: str | None = None
    """Why the engine lmdeploy does not read it, where there is more to say than that."""
    not_in_api: str | None = None
    """Why neither jobs nor fine-tuning jobs may choose it."""
    not_in_fine_tuning: str | None = None
    """Why fine-tuning jobs may not choose it, though jobs may."""
    openai: str | None = None
    """The hyperparameter of OpenAI's API that means the same."""
    as_served: bool = False
    """Whether a fine-tuning job takes it from the served model: it is to see the same prompts and weights."""
    most: int | None = None
    """The largest value that fine-tuning jobs may choose."""

    def read_by(self, readers: tuple[str, ...]) -> bool:
        return not set(readers).isdisjoint(self.readers)


NOTHING = About()


def about(field: FieldInfo) -> About:
    return next((each for each in field.metadata if isinstance(each, About)), NOTHING)


def facts(model: type[BaseModel]) -> Iterator[tuple[str, About]]:
    """Every parameter of `model`, and what is said of it."""
    return ((name, about(field)) for name, field in model.model_fields.items())


def secrets(model: type[BaseModel]) -> frozenset[str]:
    """The parameters of `model` that are secrets."""
    return frozenset(name for name, said in facts(model) if said.secret)


def closed_to_api(field: FieldInfo) -> str | None:
    """Why jobs of the API may not choose this parameter; None where they may."""
    said = about(field)
    if said.not_in_api or said.secret or said.path:
        return said.not_in_api or (THE_SERVER if said.secret else A_FILE)
    return NOT_SUPPORTED if takes_text(field) and not (said.text or said.names or said.api_choices) else None


def closed_to_fine_tuning(field: FieldInfo) -> str | None:
    """Why fine-tuning jobs may not choose this parameter: nothing looks up what they would name by it."""
    said = about(field)
    return closed_to_api(field) or said.not_in_fine_tuning or (A_FILE if said.names else None)


def takes_text(field: FieldInfo) -> bool:
    return str in kinds(field.annotation)


def kinds(annotation: Any) -> frozenset[Any]:
    """An annotation with all that it is made of."""
    return frozenset([annotation]).union(*map(kinds, get_args(annotation)))


def unsupported_choice(field: FieldInfo, value: Any) -> str | None:
    """Why `value` is refused; None where it is supported."""
    choices = about(field).choices
    if not choices or value in choices:
        return None
    return f"{spelled(value)} is {NOT_SUPPORTED}; choose {' or '.join(map(spelled, choices))}"


def spelled(value: Any) -> str:
    """A value as the command line has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
