"""Private copies of adapters, named by their content: what was checked is what is served, whatever becomes of the
source.

    copies/<hash>/     the files of one adapter that determine its outputs, shared by all that are alike
    partial/           what is being copied or removed: after a crash, rubbish

A copy appears and goes by one rename, so one that is there is whole.
"""

import asyncio
import errno
import hashlib
import os
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from engines.adapters.disk import sync
from engines.adapters.folder import MAX_CONFIG_BYTES, MAX_LABELS, content_hash, read_adapter, refuse_inserted
from engines.adapters.spec import CONFIG, MODEL_CONFIG, WEIGHTS, AdapterSpec
from engines.capabilities import AdapterSupport
from engines.errors import InvalidAdapter, NotFound
from engines.text.templates import TEMPLATES

CHUNK = 1 << 20
"""Bytes copied at a time."""
BYTES_PER_NUMBER = 8
"""Bytes of the widest number, float64."""
LARGEST_TEMPLATE = 16 << 20
"""Bytes of a file with a chat template: some hold a tokenizer's tokens too."""
LONGEST_HEADER = 100 << 20
"""Bytes that safetensors allows a header."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    id: str
    """Hash of the files, and the name of the copy's folder."""
    content_hash: str
    """Hash of what determines the outputs; the name of the base model, for one, does not."""
    spec: AdapterSpec


class Snapshots:
    """The copies under one folder, and how many use each. One process at a time has the folder to itself."""

    def __init__(self, folder: Path) -> None:
        self._copies = folder / "copies"
        self._partial = folder / "partial"
        self._users: Counter[str] = Counter()
        self._broken: set[str] = set()  # copies in use that cannot be read
        self._moving = asyncio.Lock()

    def open(self, needed: Collection[str]) -> None:
        """Make the folders, and remove what a crash has left over: everything but the copies that are `needed`."""
        self._copies.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(mode=0o700, exist_ok=True)
        for copy in self._copies.iterdir():
            if copy.name not in needed:
                self._remove(copy)
        self._users = Counter(needed)

    async def take(self, source: Path, support: AdapterSupport, *, follow_links: bool = False) -> Snapshot:
        """Copy and check an adapter; the caller uses the copy until `drop`. Raises InvalidAdapter, NotFound."""
        partial = Path(await asyncio.to_thread(tempfile.mkdtemp, dir=self._partial))
        try:
            snapshot = await asyncio.to_thread(_copy_and_check, source, partial, support, follow_links)
            async with self._moving:
                if not self._users[snapshot.id] or snapshot.id in self._broken:
                    await asyncio.to_thread(self._place, partial, self._copies / snapshot.id)
                    self._broken.discard(snapshot.id)
                self._users[snapshot.id] += 1
        finally:
            await asyncio.to_thread(shutil.rmtree, partial, ignore_errors=True)
        return replace(snapshot, spec=replace(snapshot.spec, folder=self._copies / snapshot.id))

    async def read(self, id: str, support: AdapterSupport) -> Snapshot:
        """A copy of an earlier run of the server, which the caller uses already. Raises InvalidAdapter."""
        copy = self._copies / id
        try:
            spec = await asyncio.to_thread(read_adapter, copy, support)
            return Snapshot(id, await asyncio.to_thread(content_hash, copy), spec)
        except InvalidAdapter:
            self._broken.add(id)
            raise
        except OSError as error:
            self._broken.add(id)
            raise InvalidAdapter(f"the server's copy of it cannot be read: {error.strerror}") from None

    async def drop(self, id: str) -> None:
        """End one use of a copy; it is removed with the last."""
        async with self._moving:
            self._users[id] -= 1
            if not self._users[id]:
                del self._users[id]
                self._broken.discard(id)
                await asyncio.to_thread(self._remove, self._copies / id)

    def sync(self, id: str) -> None:
        """Have a copy outlive a loss of power."""
        copy = self._copies / id
        for path in (*copy.iterdir(), copy, self._copies):
            sync(path)

    def _place(self, partial: Path, copy: Path) -> None:
        if copy.exists():
            self._remove(copy)
        partial.rename(copy)

    def _remove(self, copy: Path) -> None:
        partial = Path(tempfile.mkdtemp(dir=self._partial))
        if copy.exists():
            copy.rename(partial / copy.name)
        shutil.rmtree(partial)


def _copy_and_check(source: Path, target: Path, support: AdapterSupport, follow_links: bool) -> Snapshot:
    links = 0 if follow_links else os.O_NOFOLLOW
    try:
        folder = os.open(source, os.O_RDONLY | os.O_DIRECTORY | links)
    except OSError as error:
        raise NotFound(f"the adapter's folder {source.name!r} cannot be read: {error.strerror}") from None
    try:
        refuse_inserted(source)
        limits = {CONFIG: MAX_CONFIG_BYTES, WEIGHTS: _largest_file(support), MODEL_CONFIG: MAX_CONFIG_BYTES}
        for name, limit in limits.items():
            _copy(name, folder, target / name, limit, links)
        for name in TEMPLATES:
            if not any((target / other).exists() for other in TEMPLATES):
                _copy(name, folder, target / name, LARGEST_TEMPLATE, links)
    finally:
        os.close(folder)
    spec = read_adapter(target, support)
    content = content_hash(target)
    digest = hashlib.sha256(content.encode() + (target / CONFIG).read_bytes())
    return Snapshot(digest.hexdigest(), content, spec)


def _copy(name: str, folder: int, target: Path, limit: int, links: int) -> None:
    """Copy a file where there is one: `read_adapter` tells what is missing. Raises InvalidAdapter."""
    try:
        # Without O_NONBLOCK, opening a pipe would wait for its writer.
        source = os.open(name, os.O_RDONLY | os.O_NONBLOCK | links, dir_fd=folder)
    except FileNotFoundError:
        return
    except OSError as error:
        reason = "is a symbolic link" if error.errno == errno.ELOOP else f"cannot be read: {error.strerror}"
        raise InvalidAdapter(f"{name} {reason}", param=name) from None
    try:
        if not stat.S_ISREG(os.fstat(source).st_mode):
            raise InvalidAdapter(f"{name} is not a file", param=name)
        with target.open("xb") as copy:
            while chunk := os.read(source, CHUNK):
                limit -= len(chunk)
                if limit < 0:
                    raise InvalidAdapter(f"{name} is larger than that of any adapter of this model", param=name)
                copy.write(chunk)
    finally:
        os.close(source)


def _largest_file(support: AdapterSupport) -> int:
    """An upper bound for the weights of an adapter that can be served."""
    shapes = support.linears | support.embeddings
    lora = sum(support.max_rank * (inputs + outputs) for inputs, outputs in shapes.values())
    saved = sum(shapes[path][0] * shapes[path][1] for path in support.replaceable)
    head = MAX_LABELS * (support.head_inputs or 0)
    return BYTES_PER_NUMBER * (lora + saved + head) + LONGEST_HEADER
