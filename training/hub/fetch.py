"""Fetch what a job of the API names on the Hugging Face hub into the job's own folder, where it is read as any folder.

Only what is read is fetched: files of data, or configuration, tokenizer and safetensors. No code, no pickle, no link.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.errors import TuneserveError
from engines.params.about import facts
from engines.params.base import Params
from training.hub.checked import check_adapter, check_model, of_adapter, of_model
from training.hub.repository import HubFile, NotFetched, Repository, download, look_up, name_of
from training.hub.sets import choose
from training.params.hub import SCHEME, Fetch, listed

log = logging.getLogger(__name__)

MAX_FILES = 10_000
"""Files of one job."""
MIB, GIB = 1 << 20, 1 << 30


def fetch(params: Params, order: Fetch) -> dict[str, Any]:
    """The parameters that name something on the hub, with the folders of what was fetched.

    Raises NotFetched and InvalidAdapter, whose `param` is the parameter; OSError.
    """
    shutil.rmtree(order.folder, ignore_errors=True)
    fetching = _Fetching(order, anew=getattr(params, "download_mode", None) == "force_redownload")
    found: dict[str, Any] = {}
    for name, said in facts(type(params)):
        if said.names in FETCHED and any(each.startswith(SCHEME) for each in listed(params, name)):
            revision = getattr(params, f"{name}_revision", None)
            try:
                each = [fetching.one(said.names, text, revision) for text in listed(params, name)]
            except TuneserveError as error:
                raise type(error)(f"{name}: {error.message}", param=name) from error
            found[name] = each[0] if isinstance(getattr(params, name), str) else each
    _make_room(order.cache, order.max_bytes)
    return found


@dataclass(slots=True)
class _Fetching:
    order: Fetch
    anew: bool
    """Whether data that is in the cache is fetched again."""
    count: int = 0
    size: int = 0
    number: int = 0

    def one(self, kind: str | None, text: str, revision: str | None) -> str:
        """The folder of what `text` names, followed by the number of rows to take, as in `text`."""
        if not text.startswith(SCHEME):
            return text
        id, sharp, rows = text.removeprefix(SCHEME).partition("#")
        id, _, parts = id.partition(":")
        self.number += 1
        target = self.order.folder / str(self.number) / name_of(id)
        FETCHED[kind](self, id, revision, parts, target)
        return f"{target}{sharp}{rows}"

    def data(self, id: str, revision: str | None, parts: str, target: Path) -> None:
        repository = look_up("dataset", id)
        try:
            chosen = choose(list(repository.files), repository.configs, parts.split("/") if parts else ())
        except NotFetched as error:
            raise NotFetched(f"{id!r}: {error.message}") from error
        self.admit(repository, (file for each in chosen for file in each.files))
        for number, each in enumerate(chosen):  # of a folder, what is called `train` is read
            self.take(repository, each.files, target / "train" / f"{number:03}")

    def model(self, id: str, revision: str | None, parts: str, target: Path) -> None:
        self.files(look_up("model", id, revision), of_model, target)
        check_model(id, target)

    def adapter(self, id: str, revision: str | None, parts: str, target: Path) -> None:
        self.files(look_up("model", id), of_adapter, target)
        check_adapter(id, target)

    def files(self, repository: Repository, wanted: Callable[[str], bool], target: Path) -> None:
        names = [name for name in repository.files if wanted(name)]
        self.admit(repository, names)
        self.take(repository, names, target)

    def admit(self, repository: Repository, names: Iterable[str]) -> None:
        """Count these files. Raises NotFetched where the job would have more than it may, before any is fetched."""
        files = [repository.files[name] for name in names]
        size = sum(file.size for file in files)
        self.count += len(files)
        self.size += size
        if self.count > MAX_FILES:
            raise NotFetched(f"{repository.id!r}: a job fetches at most {MAX_FILES} files, and these are {self.count}")
        if self.size > self.order.max_bytes:
            most = f"at most {self.order.max_bytes / GIB:.3g} GiB (job_hub_max_size)"
            raise NotFetched(f"{repository.id!r}: a job may fetch {most}, and this one {self.size / GIB:.3g} GiB")
        log.info("Fetching %s at %s: %d files, %.1f MiB", repository.id, repository.commit, len(files), size / MIB)

    def take(self, repository: Repository, names: Iterable[str], folder: Path) -> None:
        kept = self.order.cache / f"{repository.kind}s" / repository.id.replace("/", "--") / repository.commit
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if self.anew and repository.kind == "dataset":
                (kept / name).unlink(missing_ok=True)
            _link_or_download(repository, repository.files[name], kept / name, target)
        with suppress(OSError):  # some disks know no links
            os.utime(kept)


FETCHED: dict[str | None, Callable[[_Fetching, str, str | None, str, Path], None]] = {
    "data": _Fetching.data,
    "model": _Fetching.model,
    "adapter": _Fetching.adapter,
}
"""What a parameter may name on the hub -> how it is fetched."""


def _link_or_download(repository: Repository, file: HubFile, kept: Path, target: Path) -> None:
    """A file has two names, the job's and the cache's: whichever goes, the other stays."""
    with suppress(OSError):
        os.link(kept, target)
        return
    download(repository, file, target)
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        os.link(target, kept)


def _make_room(cache: Path, room: int) -> None:
    """Delete the least recently used commits, until the cache has at most `room` bytes."""
    with suppress(OSError):
        commits = sorted(cache.glob("*/*/*"), key=lambda commit: -commit.stat().st_mtime)
        for commit in commits:
            room -= sum(file.stat().st_size for file in commit.rglob("*") if file.is_file())
            if room < 0:
                shutil.rmtree(commit, ignore_errors=True)
