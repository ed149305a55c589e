"""Adapters where LMDeploy's model is out of our reach, as with several GPUs: it is built anew with others.

What runs is let finish first, and what comes meanwhile waits: seconds to minutes, as long as the model takes to load.
"""

import logging
import shutil
from pathlib import Path
from tempfile import mkdtemp

from engines.adapters.folder import read_adapter
from engines.adapters.pins import max_pinned
from engines.adapters.plain import plain_tensors, write_plain
from engines.capabilities import AdapterSupport
from engines.checkpoint.structure import Structure
from engines.errors import EngineFailure, UnsupportedModel
from engines.lmdeploy.library import Library

log = logging.getLogger(__name__)


class Rebuild:
    """The same to the engine as `HotSlots`."""

    def __init__(self, library: Library, num_slots: int, rank: int, structure: Structure) -> None:
        self._library = library
        self._root = Path(mkdtemp(prefix="tuneserve-"))
        self._built: dict[str, Path] = {}  # what the next build has again
        self._written = 0
        self.support = AdapterSupport(
            max_rank=rank, linears=structure.linears, experts=structure.experts, max_pinned=max_pinned(num_slots)
        )

    async def put(self, slot: int, name: str, folder: Path) -> None:
        """Build the engine with one more adapter. Raises EngineFailure, and is then as it was before."""
        spec = read_adapter(folder, self.support)
        self._written += 1
        plain = write_plain(
            self._root / str(self._written),
            plain_tensors(spec, spec.rank),
            rank=spec.rank,
            linears=spec.linears,
        )
        before = dict(self._built)
        async with self._library.closed():
            try:
                self._library.build(before | {name: plain})
            except UnsupportedModel as error:
                shutil.rmtree(plain)
                self._library.build(before)
                raise EngineFailure(error.message) from error
        self._built[name] = plain

    async def take(self, slot: int, name: str) -> None:
        """The next build is without this adapter; it takes memory until then."""
        shutil.rmtree(self._built.pop(name))

    def close(self) -> None:
        shutil.rmtree(self._root, ignore_errors=True)
