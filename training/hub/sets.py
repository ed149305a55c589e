"""Which files of a data set's repository are its subsets and splits.

The card says so in its `configs`, by patterns that are compared with the names of the repository's files and never
become paths; without a card, the names of files and folders do, as in `datasets`: `train-00000-of-00002.parquet`,
`en/test.jsonl`.
"""

import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

from training.data.read import TXT, form_of
from training.data.sources import KINDS
from training.hub.repository import NotFetched, is_safe

DEFAULT = "default"
TRAIN = "train"
KEYWORDS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
"""Words in the names of files and folders -> the split that they mean, as in `datasets`."""
SHARD = re.compile(r"(?P<split>\w+(\.\w+)*)-\d+-of-\d+\.")
NO_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""What `datasets` writes beside data."""
READ = frozenset({"config_name", "data_files", "data_dir"})
IDLE = frozenset({"default", "description", "features", "version", "homepage", "citation", "license"})
"""What a card may say that changes nothing here."""
MAX_PATTERN = 300
"""Characters of a pattern of a card."""
MAX_PATTERNS = 1000
"""Patterns of a split."""

Splits = Mapping[str, tuple[str, ...]]
"""Name of a split -> its files."""
Subsets = Mapping[str, Callable[[], Splits]]
"""Name of a subset -> what finds its splits, called only where it is chosen: a card may name thousands."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A split of a subset."""

    subset: str
    split: str
    files: tuple[str, ...]
    """All of one format."""


def choose(files: Collection[str], configs: Any, parts: Iterable[str]) -> list[Chosen]:
    """The subsets in `parts`, each with each of the splits in it. Without subsets, the default one; without splits,
    the training data.

    Raises NotFetched where something is not there, or where `configs`, of the card, asks for what is not honoured.
    """
    data = [file for file in files if _is_data(file)]
    subsets = _of_card(data, configs) if configs else _of_folders(data)
    parts = tuple(parts)
    wanted = [part for part in parts if part in subsets] or [_default(subsets, configs)]
    splits = [part for part in parts if part not in subsets] or [TRAIN]
    return [_chosen(subset, split, subsets) for subset in wanted for split in splits]


def _chosen(subset: str, split: str, subsets: Subsets) -> Chosen:
    there = subsets[subset]()
    if split not in there:
        names = f"its subsets are {_listed(subsets)}, its splits {_listed(there)}"
        raise NotFetched(f"there is neither a subset nor a split {split!r}: {names}")
    return Chosen(subset, split, _of_one_form(there[split], f"the split {split!r} of {subset!r}"))


def _default(subsets: Subsets, configs: Any) -> str:
    named = [_name_of(config) for config in configs if config.get("default")] if configs else []
    for name in (*named, DEFAULT, *([next(iter(subsets))] if len(subsets) == 1 else [])):
        if name in subsets:
            return str(name)
    raise NotFetched(f"say which subset, behind a colon: {_listed(subsets)}")


def _listed(names: Iterable[str]) -> str:
    first = [name[:60] for name in names][:50]
    return ", ".join(first) or "none"


def _of_one_form(files: Iterable[str], what: str) -> tuple[str, ...]:
    """The files that are read: those of the most frequent format; texts only where there is nothing else."""
    forms = {file: _form(file) for file in files}
    counted = Counter(form for form in forms.values() if form)
    if not counted:
        ends = _listed(sorted({PurePosixPath(file).suffix or file for file in forms}))
        raise NotFetched(f"{what} holds no file of {KINDS}, but {ends}")
    form = max(counted, key=lambda each: (each != TXT, counted[each]))
    return tuple(sorted(file for file in forms if forms[file] == form))


def _form(file: str) -> str | None:
    form = form_of(Path(file))
    return ".json" if form == ".jsonl" else form


# ---- without a card


def _of_folders(files: Collection[str]) -> Subsets:
    """All files, and those of each folder."""
    folders = {part for file in files for part in PurePosixPath(file).parts[:-1]}

    def inside(name: str) -> Splits:
        return _splits([file for file in files if name in PurePosixPath(file).parts[:-1]])

    return {DEFAULT: partial(_splits, files)} | {name: partial(inside, name) for name in sorted(folders)}


def _is_data(file: str) -> bool:
    path = PurePosixPath(file)
    return not any(part.startswith((".", "__")) for part in path.parts) and path.name not in NO_DATA


def _splits(files: Collection[str]) -> Splits:
    """Splits by the names of files; where no name says one, all are for training."""
    readable = [file for file in files if _form(file)] or files
    found: dict[str, list[str]] = {}
    for file in sorted(readable):
        if split := _split(file):
            found.setdefault(split, []).append(file)
    return {split: tuple(them) for split, them in found.items()} or {TRAIN: tuple(sorted(readable))}


def _split(file: str) -> str | None:
    path = PurePosixPath(file)
    if shard := SHARD.match(path.name):
        return shard["split"]
    words = (word for part in reversed(path.parts) for word in re.split(r"[^a-z]+", part.lower()))
    return next((KEYWORDS[word] for word in words if word in KEYWORDS), None)


# ---- by the card


def _of_card(files: Collection[str], configs: Any) -> Subsets:
    if not isinstance(configs, list) or not all(isinstance(config, dict) for config in configs):
        raise NotFetched("its card has `configs` that are no list of objects")
    return {_name_of(config): partial(_of_config, config, files) for config in configs}


def _name_of(config: dict[str, Any]) -> str:
    name = config.get("config_name", DEFAULT)
    if not isinstance(name, str):
        raise NotFetched("its card has a `config_name` that is no text")
    return name


def _of_config(config: dict[str, Any], files: Collection[str]) -> Splits:
    if unread := sorted(str(key) for key in config if key not in READ | IDLE):
        name = _name_of(config)
        raise NotFetched(f"its card has {name[:60]!r} read with {_listed(unread)}, which is not honoured here")
    folder = config.get("data_dir") or ""
    if folder and not (isinstance(folder, str) and is_safe(folder)):
        raise _leads_out(folder)
    said = config.get("data_files")
    if said is None:
        return _splits([file for file in files if file.startswith(f"{folder}/")] if folder else files)
    return {split: tuple(dict.fromkeys(_matching(patterns, folder, files))) for split, patterns in _patterns(said)}


def _patterns(said: Any) -> Iterator[tuple[str, list[Any]]]:
    """Each split with its patterns, in the three ways in which cards say it."""
    if isinstance(said, dict):
        said = [{"split": split, "path": path} for split, path in said.items()]
    said = said if isinstance(said, list) else [said]
    if not all(isinstance(each, dict) for each in said):
        yield TRAIN, said
        return
    for each in said:
        path = each.get("path")
        yield str(each.get("split", TRAIN)), path if isinstance(path, list) else [path]


def _matching(patterns: list[Any], folder: str, files: Collection[str]) -> Iterator[str]:
    if len(patterns) > MAX_PATTERNS:
        raise NotFetched(f"its card has {len(patterns)} patterns for one split, and at most {MAX_PATTERNS} are read")
    for pattern in patterns:
        plain = isinstance(pattern, str) and len(pattern) <= MAX_PATTERN and pattern.removeprefix("./")
        if not plain or not is_safe(plain) or ":" in plain:
            raise _leads_out(pattern)
        whole = PurePosixPath(folder, plain).parts
        yield from (file for file in files if _matches(whole, PurePosixPath(file).parts))


def _matches(pattern: tuple[str, ...], path: tuple[str, ...]) -> bool:
    """`**` stands for any number of folders, and at the end for all that is in them."""

    @cache
    def match(p: int, at: int) -> bool:
        if p == len(pattern):
            return at == len(path)
        if pattern[p] == "**":
            return match(p + 1, at) or (at < len(path) and match(p, at + 1))
        return at < len(path) and fnmatch.fnmatchcase(path[at], pattern[p]) and match(p + 1, at + 1)

    return match(0, 0)


def _leads_out(path: Any) -> NotFetched:
    return NotFetched(f"its card names {str(path)[:100]!r} as data, which is no file of the repository")
