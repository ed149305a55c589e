"""A public repository of the Hugging Face hub: no token is ever sent, even where the machine has one.

The hub's answers are not trusted: paths stay within the repository, and no file is larger than announced or differs
from its digest.
"""

import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal

from engines.errors import InvalidRequest

Kind = Literal["model", "dataset"]
COMMIT = re.compile(r"[0-9a-f]{7,64}")
SECONDS = 30.0
"""Seconds of silence after which a connection is given up."""
BUSY = (429, 500, 502, 503, 504)
"""Answers after which it is asked again."""
TRIES = 5
"""Connections for one file, each of which goes on where the last one broke off."""
BROKEN = (ConnectionError, ValueError, TypeError, LookupError, AttributeError)
"""What huggingface_hub raises where it is offline, for impossible names, and for malformed cards."""
WITHOUT_TOKEN = (
    "jobs read the hub without a token: what is private or gated goes into a folder of job_roots, put there by whoever "
    "runs the server"
)


class NotFetched(InvalidRequest):
    """What a job names on the hub is not public, or not what a job may read."""

    code = "not_fetched"


@dataclass(frozen=True, slots=True)
class HubFile:
    path: str
    """Path within the repository."""
    size: int
    """Size in bytes."""
    sha256: str | None
    blob: str | None
    """Git's name of the content, for a file that is not in large file storage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """One commit of a repository."""

    kind: Kind
    id: str
    commit: str
    files: dict[str, HubFile] = field(default_factory=dict)
    """By path, without those that lead out of the repository or have no size."""
    configs: Any = None
    """What the card of a data set says of its subsets, of any type: nothing has checked it."""


def look_up(kind: Kind, id: str, revision: str | None = None) -> Repository:
    """Raises NotFetched."""
    from huggingface_hub import HfApi

    hub = HfApi(token=False)
    ask = hub.dataset_info if kind == "dataset" else hub.model_info
    with told(id):
        info: Any = ask(id, revision=revision, files_metadata=True, timeout=SECONDS)
        card = info.card_data.to_dict() if info.card_data else {}
    if info.id.lower() != id.lower():
        raise NotFetched(f"{id!r} has become {info.id!r} on the hub: name that one")
    if not info.sha or not COMMIT.fullmatch(info.sha):
        raise NotFetched(f"the hub names no commit of {id!r}")
    files = {}
    for each in info.siblings or ():
        if is_safe(each.rfilename) and each.size is not None:
            sha256 = each.lfs.sha256 if each.lfs else None
            files[each.rfilename] = HubFile(each.rfilename, each.size, sha256, None if sha256 else each.blob_id)
    return Repository(kind=kind, id=id, commit=info.sha, files=files, configs=card.get("configs"))


def is_safe(path: str) -> bool:
    """Whether it is a path that stays within any folder, on any system."""
    parts = path.split("/")
    short = len(path) <= 1000 and all(len(part.encode(errors="replace")) <= 200 for part in parts)
    return short and path.isprintable() and "\\" not in path and not any(part in ("", ".", "..") for part in parts)


def download(repository: Repository, file: HubFile, target: Path) -> None:
    """Write the file to `target`, whole or not at all. Raises NotFetched; OSError where the disk does not take it."""
    partial = target.with_name(".partial")
    try:
        with partial.open("wb") as to:
            _receive(repository, file, to)
        partial.chmod(0o444)  # jobs share it
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)


def _receive(repository: Repository, file: HubFile, to: BinaryIO) -> None:
    import httpx2

    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    where = f"{file.path[:100]!r} of {repository.id!r}"
    have = 0
    for number in range(TRIES):
        before = have
        with told(repository.id), suppress(httpx2.TransportError):
            for block in _blocks(repository, file, start=have):
                have += len(block)
                if have > file.size:
                    raise NotFetched(f"{where} is larger than the {file.size} bytes that the hub announced")
                digest.update(block)
                to.write(block)
        if have == file.size:
            break
        if have == before and number + 1 < TRIES:
            time.sleep(2.0**number)
    if have < file.size:
        raise NotFetched(f"{where} broke off after {have} of {file.size} bytes")
    announced = file.sha256 or file.blob
    if announced and digest.hexdigest() != announced:
        raise NotFetched(f"{where} is not the file that the hub announced")


def _blocks(repository: Repository, file: HubFile, *, start: int) -> Iterator[bytes]:
    """The bytes as they are sent, which nothing unpacks."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = hf_hub_url(repository.id, file.path, repo_type=repository.kind, revision=repository.commit)
    headers = build_hf_headers(token=False) | {"accept-encoding": "identity"}
    if start:
        headers["range"] = f"bytes={start}-"
    with get_session().stream("GET", url, headers=headers, timeout=SECONDS) as reply:
        if reply.status_code in BUSY:
            return
        hf_raise_for_status(reply)
        if start and reply.status_code != 206:
            raise NotFetched(f"{file.path[:100]!r} of {repository.id!r} broke off, and the hub cannot go on with it")
        yield from reply.iter_raw()


@contextmanager
def told(id: str) -> Iterator[None]:
    """Raises NotFetched for what the hub and the network raise."""
    import httpx2
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        yield
    except NotFetched:
        raise
    except (*BROKEN, HfHubHTTPError, httpx2.HTTPError) as error:
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        if isinstance(error, GatedRepoError | RepositoryNotFoundError):
            reason = f"it is not there for everybody ({WITHOUT_TOKEN})"
        raise NotFetched(f"{id!r} cannot be had from the hub: {reason}") from error


def name_of(id: str) -> str:
    return PurePosixPath(id).name
