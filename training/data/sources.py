"""What the parameters `dataset` and `val_dataset` name, and the rows of it."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from engines.errors import InvalidRequest
from engines.params.common import BaseParams
from training.data import self_cognition
from training.data.described import Description, described
from training.data.problems import BadData
from training.data.read import GZIP, PARQUET, READERS, TXT, Unreadable, form_of, name_of, read_file, without_nulls

Param = Literal["dataset", "val_dataset"]
KINDS = f"{', '.join(READERS)} (all but parquet also {GZIP})"
SHARD = r"-\d+-of-\d+$"
"""What the hub adds to the name of a split for each of its files."""


@dataclass(frozen=True, slots=True)
class Found:
    """A row, or why there is none."""

    place: str
    """Where the row is, for messages: `line 3 of train.jsonl`."""
    row: Any = None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One of the data sets that are named, as `params` has it read."""

    name: str
    param: Param
    count: int | None
    """Number of rows to take; None: all."""
    files: tuple[Path, ...] = ()
    hub: "HubSet | None" = None
    function: Callable[[], Iterable[Any]] | None = None
    """What yields the rows of a set that a file of `custom_register_path` registers."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Name in the data -> the name that it is known by."""
    hidden: frozenset[str] = frozenset()
    """Columns that are not read."""

    def rows(self, params: BaseParams) -> Iterator[Found]:
        """Where no row follows that can be told, the last one has the problem. Raises InvalidRequest."""
        named = self_cognition.names(params)
        for found in self._rows(params):
            row = found.row
            if self.columns and isinstance(row, Mapping):
                row = self._renamed(row)
            yield Found(found.place, row if named is None else self_cognition.named(row, named), found.problem)

    def _renamed(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Columns that are called as one which is renamed are left out."""
        others = self.hidden.union(self.columns.values()) - self.columns.keys()
        return {self.columns.get(name, name): value for name, value in row.items() if name not in others}

    def _rows(self, params: BaseParams) -> Iterator[Found]:
        if self.function is not None:
            rows: Iterable[Any] = self.function()
        elif self.hub is not None:
            rows = self.hub.rows(params)
        else:
            for path in self.files:
                yield from _file_rows(path)
            return
        for number, row in enumerate(rows, start=1):
            yield Found(f"row {number} of {self.name}", row)


@dataclass(frozen=True, slots=True)
class HubSet:
    id: str
    parts: tuple[str, ...] = ()
    """Names of subsets (which the hub calls configurations) and of splits."""
    splits: tuple[str, ...] = ("train",)
    """Splits to read where `parts` names none."""

    def rows(self, params: BaseParams) -> Iterator[Any]:
        """Raises BadData."""
        try:
            import datasets
        except ImportError as error:
            raise InvalidRequest("data sets of the hub need the package datasets: install tuneserve[train]") from error
        for subset, split in self._chosen(params):
            with self._told():
                found = datasets.load_dataset(
                    self.id,
                    subset,
                    split=split,
                    streaming=params.streaming,
                    download_mode=params.download_mode,
                    token=params.hub_token,
                )
            for row in found:
                yield {name: without_nulls(value) for name, value in row.items()}

    def _chosen(self, params: BaseParams) -> list[tuple[str | None, str]]:
        """Subsets and splits to read, each of the first with each of the second."""
        import datasets

        if not self.parts:
            return [(None, split) for split in self.splits]
        with self._told():
            known = datasets.get_dataset_config_names(self.id, token=params.hub_token)
        subsets: list[str | None] = [part for part in self.parts if part in known]
        splits = [part for part in self.parts if part not in known]
        chosen: list[tuple[str | None, str]] = []
        for subset in subsets or [None]:
            if splits:
                with self._told():
                    there = datasets.get_dataset_split_names(self.id, subset, token=params.hub_token)
                for split in splits:
                    if split not in there:
                        names = f"its subsets are {', '.join(known)}, its splits {', '.join(there)}"
                        raise BadData(f"{self.id!r} has neither a subset nor a split {split!r}: {names}")
            chosen += [(subset, split) for split in splits or self.splits]
        return chosen

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Raises BadData for whatever the hub, the network or a script of the data set raises."""
        try:
            yield
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise BadData(f"{self.id!r} is no file or folder here, and cannot be had from the hub: {reason}") from error


def sources(params: BaseParams, param: Param) -> list[Source]:
    """The data sets that `param` names. Raises BadData for a name that cannot be one."""
    known = described(params)
    return [_source(name, param, known) for name in getattr(params, param)]


def _source(name: str, param: Param, known: Mapping[str, Description]) -> Source:
    place, count = _count(name, param)
    whole, subset = place, None
    if whole not in known and whole not in self_cognition.NAMES and not Path(whole).expanduser().exists():
        head, colon, tail = whole.rpartition(":")
        whole, subset = (head, tail) if colon and head and tail else (whole, None)
    description = known.get(whole, Description(path=whole))
    if description.problem is not None:
        raise InvalidRequest(description.problem, param="custom_dataset_info")
    count = description.count if count is None else count
    read_as = {"columns": description.columns, "hidden": description.hidden}
    base: dict[str, Any] = {"name": name, "param": param, "count": count, **read_as}
    if description.function is not None:
        if subset is not None:
            raise BadData(f"{whole!r} is made by a function, and has no subset {subset!r}", param=param)
        return Source(**base, function=description.function)
    if whole in self_cognition.NAMES and whole not in known:
        if subset not in (None, *self_cognition.FILES):
            raise BadData(f"{whole!r} has the subsets en and zh, not {subset!r}", param=param)
        return Source(**base, files=tuple(f for name, f in self_cognition.FILES.items() if subset in (None, name)))
    if description.hub_id is not None:
        return Source(**base, hub=HubSet(description.hub_id, _parts(subset) or description.parts, description.splits))
    path = Path(description.path or whole).expanduser()
    if path.exists():
        return Source(**base, files=_files(path, subset, param))
    if form_of(path) or path.is_absolute() or whole.startswith((".", "~")) or whole.count("/") > 1:
        raise BadData(f"there is no file {str(path)!r}", param=param)
    return Source(**base, hub=HubSet(whole, _parts(subset), description.splits))


def _parts(subset: str | None) -> tuple[str, ...]:
    """What follows the colon: several names are separated by slashes."""
    return tuple(subset.split("/")) if subset else ()


def _count(name: str, param: Param) -> tuple[str, int | None]:
    place, sharp, count = name.rpartition("#")
    if not sharp or Path(name).expanduser().exists():
        return name, None
    if not count.isdecimal() or int(count) < 1:
        raise BadData(f"{name!r}: after # there must be a number of rows, not {count!r}", param=param)
    return place, int(count)


def _files(path: Path, subset: str | None, param: Param) -> tuple[Path, ...]:
    """The files of a folder: of its subset, which is a folder or a file's name in it, and only for training. Text files
    only where there are no others."""
    if path.is_file():
        if subset is not None:
            raise BadData(f"{str(path)!r} is a file, and has no subset {subset!r}", param=param)
        if form_of(path) is None:
            raise BadData(
                f"{path.name!r}: a data set is a file of {KINDS}, not {path.suffix or 'without an end'!r}", param=param
            )
        return (path,)
    inside = path / subset if subset is not None and (path / subset).is_dir() else path
    found = sorted(file for file in inside.rglob("*") if form_of(file) and file.is_file())
    found = [file for file in found if form_of(file) != TXT] or found  # a licence beside the data
    if subset is not None and inside == path:
        found = [file for file in found if re.sub(SHARD, "", name_of(file)) == subset]
    if not found:
        what = f"the subset {subset!r} of {str(path)!r}" if subset else repr(str(path))
        raise BadData(f"{what} holds no file of {KINDS}", param=param)
    for_training = [file for file in found if "train" in file.relative_to(path).as_posix().lower()]
    return tuple(for_training or found)


def _file_rows(path: Path) -> Iterator[Found]:
    unit = "row" if form_of(path) == PARQUET else "line"
    try:
        for read in read_file(path):
            yield Found(f"{unit} {read.line} of {path.name}", read.value, read.problem)
    except Unreadable as error:
        yield Found(f"{unit} {error.line} of {path.name}", problem=str(error))
    except OSError as error:
        yield Found(path.name, problem=f"it cannot be read: {error.strerror}")
