"""A form for the parameters of a job, made of the classes that flags and bodies are made of."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic.fields import FieldInfo

from engines.params.about import about, closed_to_api, spelled
from engines.params.sections import sections
from engines.params.shapes import Shape, default_of, shape_of
from training.params.dry_run import DryRunParams
from training.params.task import TASKS, params_of
from training.refusals.supported import supported

FIRST = (
    "model", "adapters", "dataset", "val_dataset", "eval_dataset", "rlhf_type", "train_type", "num_train_epochs",
    "learning_rate", "per_device_train_batch_size", "lora_rank", "max_length", "merge_lora", "quant_method",
    "quant_bits", "max_new_tokens",
)  # fmt: skip
"""What most jobs are given, in this order."""
SET_BY_BUTTON = frozenset(DryRunParams.model_fields)


@dataclass(frozen=True, slots=True)
class Entry:
    """One parameter, as the form asks for it."""

    name: str
    section: str
    shape: Shape
    choices: tuple[str, ...]
    """What can be chosen from; empty: anything."""
    default: str
    """As one would write it; empty: none."""
    help: str
    starred: bool
    names: str | None
    """What it names: a model, data, an adapter, a checkpoint."""

    @property
    def placeholder(self) -> str:
        return self.default or str(self.shape)


@cache
def entries(task: str) -> tuple[Entry, ...]:
    """What a job of this type may be given over the API, the most general first."""
    params = params_of(TASKS[task])
    return tuple(
        _entry(name, section.title, field, starred=name in section.group.starred)
        for section in sections(params)
        for name, field in section.fields.items()
        if name in supported(params) and not closed_to_api(field) and name not in SET_BY_BUTTON
    )


def first(task: str) -> tuple[Entry, ...]:
    """What is shown at once."""
    found = {entry.name: entry for entry in entries(task)}
    return tuple(found[name] for name in FIRST if name in found)


def searched(task: str) -> tuple[Entry, ...]:
    """All, those with a star before the rest."""
    return tuple(sorted(entries(task), key=lambda entry: not entry.starred))


def entry(task: str, name: str) -> Entry:
    """Raises ValueError."""
    found = {each.name: each for each in entries(task)}
    if name not in found:
        raise ValueError(f"{name!r} is no parameter of {task}")
    return found[name]


def _entry(name: str, section: str, field: FieldInfo, *, starred: bool) -> Entry:
    said, shape = about(field), shape_of(field.annotation)
    return Entry(
        name=name,
        section=section,
        shape=shape,
        choices=tuple(spelled(each) for each in said.choices if each is not None)
        or _choices(said.api_choices or shape.choices, shape),
        default=default_of(field) or "",
        help=" ".join((field.description or "").split()),
        starred=starred,
        names=said.names,
    )


def _choices(words: tuple[Any, ...], shape: Shape) -> tuple[str, ...]:
    """All that it takes, where that can be listed."""
    truths = ("true", "false") if bool in shape.kinds else ()
    if shape.kinds - {bool} - ({str} if words else set()):
        return ()
    return tuple(dict.fromkeys((*map(spelled, words), *truths)))


def read_value(entry: Entry, text: str) -> Any:
    """The JSON value that was written: a list has its values one after another, as on the command line. Raises
    ValueError."""
    kinds = entry.shape.kinds
    if dict in kinds and text.lstrip().startswith("{"):
        return json.loads(text)
    if tuple in kinds:
        return [_number(word) for word in shlex.split(text)] if not entry.names else shlex.split(text)
    if bool in kinds and text in ("true", "false"):
        return text == "true"
    return _number(text) if kinds & {int, float} else text


def _number(text: str) -> Any:
    """The number, where it is one: what is none is refused by the server, in its words."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


# ---- the request


def blank(task: str, model: str | None) -> str:
    """The body of a request, as text, before anything was chosen."""
    return written({"type": task, "parameters": {} if model is None else {"model": model}})


def written(body: Mapping[str, Any]) -> str:
    return json.dumps(body, indent=2, ensure_ascii=False)


def read_body(text: str) -> dict[str, Any]:
    """The body that was written. Raises ValueError."""
    try:
        body = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"the request is not JSON: {error}") from None
    match body:
        case {"type": str(), "parameters": dict()}:
            return dict(body)
        case _:
            raise ValueError('the request must have "type" and "parameters"')


def with_model(text: str, model: str | None) -> str:
    """The request with this model to train, where nothing was chosen yet. Raises ValueError."""
    body = read_body(text)
    return text if set(body["parameters"]) - {"model"} else blank(body["type"], model)


def with_value(text: str, entry: Entry, value: str) -> str:
    """The request with this parameter as it was written in the form; empty takes it out. Raises ValueError."""
    body = read_body(text)
    rest = {name: each for name, each in body["parameters"].items() if name != entry.name}
    given = {entry.name: read_value(entry, value)} if value.strip() else {}
    return written(body | {"parameters": rest | given})


def with_data(text: str, file: str) -> str:
    """The request with this file added to its data. Raises ValueError."""
    body = read_body(text)
    data = body["parameters"].get("dataset") or []
    named = [data] if isinstance(data, str) else list(data)
    return written(body | {"parameters": body["parameters"] | {"dataset": [*named, file]}})


def as_dry_run(body: Mapping[str, Any]) -> dict[str, Any]:
    return {**body, "parameters": {**body["parameters"], "dry_run": True}}


def as_command(body: Mapping[str, Any]) -> str:
    """What would do the same on the command line."""
    words = ["tuneserve", str(body["type"])]
    for name, value in body["parameters"].items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *(each if isinstance(each, str) else json.dumps(each) for each in values)]
    return shlex.join(words)
