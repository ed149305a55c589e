"""Data sets that a file gives a name: ms-swift's `custom_dataset_info`, LLaMA-Factory's `dataset_info.json`, and rows
that a Python file of `custom_register_path` makes."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.errors import InvalidRequest
from engines.params.common import BaseParams
from training.data.messages import ROLES, SHAREGPT_ROLES
from training.data.shapes import ANSWERS, QUESTIONS
from training.plugins import load


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What is said of a name."""

    path: str | None = None
    hub_id: str | None = None
    parts: tuple[str, ...] = ()
    """Subsets on the hub."""
    splits: tuple[str, ...] = ("train",)
    count: int | None = None
    """Number of rows to take; None: all."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Name in the data -> the name that it is known by."""
    hidden: frozenset[str] = frozenset()
    """Columns that are not read, whatever they are called."""
    function: Callable[[], Iterable[Any]] | None = None
    problem: str | None = None
    """Why it cannot be read."""


def described(params: BaseParams) -> dict[str, Description]:
    """Raises InvalidRequest."""
    found: dict[str, Description] = {}
    for name in params.custom_dataset_info:
        path = Path(name).expanduser()
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise InvalidRequest(f"{name!r} cannot be read: {error}", param="custom_dataset_info") from error
        found |= _of_llamafactory(content, path) if _is_of_llamafactory(content) else _of_swift(content, path)
    registered = load(params.custom_register_path).datasets
    return found | {name: Description(function=function) for name, function in registered.items()}


def _refused(file: Path, why: str) -> InvalidRequest:
    return InvalidRequest(f"{file.name}: {why}", param="custom_dataset_info")


def _check_keys(entry: Mapping[str, Any], known: Iterable[str], file: Path) -> None:
    unknown = sorted(entry.keys() - set(known))
    if unknown:
        raise _refused(file, f"{', '.join(unknown)} cannot be read; what can be is {', '.join(sorted(known))}")


def _names(value: Any, what: str, file: Path) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value.values()):
        raise _refused(file, f"{what} must be an object from names to names")
    return value


# ---- ms-swift's

SWIFT_KEYS = {"dataset_name", "dataset_path", "hf_dataset_id", "columns", "split", "tags", "help"}


def _of_swift(content: Any, file: Path) -> dict[str, Description]:
    return dict(_swift_entry(entry, file) for entry in (content if isinstance(content, list) else [content]))


def _swift_entry(entry: Any, file: Path) -> tuple[str, Description]:
    if not isinstance(entry, dict):
        raise _refused(file, "each entry must be an object")
    _check_keys(entry, SWIFT_KEYS, file)
    path, hub_id = entry.get("dataset_path"), entry.get("hf_dataset_id")
    if (path is None) == (hub_id is None) or not isinstance(path or hub_id, str):
        raise _refused(file, "each entry must say either dataset_path or hf_dataset_id")
    columns, splits = _names(entry.get("columns", {}), "columns", file), entry.get("split", ["train"])
    if not isinstance(splits, list) or not all(isinstance(split, str) for split in splits):
        raise _refused(file, "split must be a list of names")
    where = None if path is None else str(file.parent / Path(path).expanduser())
    name = entry.get("dataset_name") or hub_id or where
    return str(name), Description(path=where, hub_id=hub_id, splits=tuple(splits), columns=columns)


# ---- LLaMA-Factory's

LLAMAFACTORY_KEYS = {
    "file_name", "hf_hub_url", "formatting", "ranking", "subset", "split", "num_samples", "columns", "tags",
    "ms_hub_url", "om_hub_url", "file_sha1",
}  # fmt: skip
LLAMAFACTORY_COLUMNS = {
    "prompt": "instruction", "query": "input", "response": "output", "history": "history", "messages": "conversations",
    "system": "system", "tools": "tools", "chosen": "chosen", "rejected": "rejected", "kto_tag": "kto_tag",
    "images": "images", "videos": "videos", "audios": "audios",
}  # fmt: skip
"""Their names for columns -> what a row calls them here."""
NOT_TEXT = {"images", "videos", "audios"}
READ_OTHERWISE = frozenset({*LLAMAFACTORY_COLUMNS.values(), *QUESTIONS, *ANSWERS, "messages", "text", "completion"})
"""Columns that would be read beside those that a description names. LLaMA-Factory reads what is named alone."""
TAGS = {"role_tag": ("from", "role"), "content_tag": ("value", "content")}
SPEAKERS = {
    "user_tag": "user", "assistant_tag": "assistant", "observation_tag": "tool", "function_tag": "assistant",
    "system_tag": "system",
}  # fmt: skip
"""Their names for who speaks -> the role."""


def _is_of_llamafactory(content: Any) -> bool:
    """Whether it is an object of descriptions by name, and not one description."""
    return isinstance(content, dict) and bool(content) and all(isinstance(entry, dict) for entry in content.values())


def _of_llamafactory(content: Mapping[str, dict[str, Any]], file: Path) -> dict[str, Description]:
    return {name: _llamafactory_entry(name, entry, file) for name, entry in content.items()}


def _llamafactory_entry(name: str, entry: Mapping[str, Any], file: Path) -> Description:
    """Such a file lists every set of somebody: one that cannot be read is refused when it is named."""
    try:
        return _llamafactory_set(name, entry, file)
    except InvalidRequest as error:
        return Description(problem=error.message)


def _llamafactory_set(name: str, entry: Mapping[str, Any], file: Path) -> Description:
    _check_keys(entry, LLAMAFACTORY_KEYS, file)
    path, hub_id = entry.get("file_name"), entry.get("hf_hub_url")
    if not isinstance(path or hub_id, str):
        raise _refused(file, f"{name} must say file_name or hf_hub_url")
    columns = _names(entry.get("columns", {}), f"columns of {name}", file)
    _check_keys(columns, LLAMAFACTORY_COLUMNS, file)
    _check_tags(_names(entry.get("tags", {}), f"tags of {name}", file), file)
    subset, split, count = entry.get("subset"), entry.get("split", "train"), entry.get("num_samples")
    if not (isinstance(subset, str | None) and isinstance(split, str) and isinstance(count, int | None)):
        raise _refused(file, f"subset and split of {name} must be names, num_samples a number")
    return Description(
        path=None if path is None else str(file.parent / Path(path).expanduser()),
        hub_id=hub_id if path is None else None,
        parts=() if subset is None else (subset, split),
        splits=(split,),
        count=count,
        columns=dict(_renamed(columns)),
        hidden=READ_OTHERWISE - NOT_TEXT if columns else frozenset(),
    )


def _renamed(columns: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """A prompt alone is a text to go on from, as in pre-training."""
    for theirs, name in columns.items():
        yield name, "text" if columns.keys() == {"prompt"} else LLAMAFACTORY_COLUMNS[theirs]


def _check_tags(tags: Mapping[str, str], file: Path) -> None:
    """Raises InvalidRequest for turns that are written in a way that is not read."""
    _check_keys(tags, {*TAGS, *SPEAKERS}, file)
    roles = SHAREGPT_ROLES | {role: role for role in ROLES}
    for tag, value in tags.items():
        known = TAGS[tag] if tag in TAGS else [name for name, role in roles.items() if role == SPEAKERS[tag]]
        if value not in known:
            raise _refused(file, f"{tag} {value!r} cannot be read; what can be is {', '.join(known)}")
