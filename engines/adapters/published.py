"""The published names: what requests find, and what the next run of the server finds on the disk.

state_dir/adapters/
  state.json     names, aliases, and which copy each needs
  lock           held while a server runs: one at a time has the folder
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from engines.adapters.snapshot import Snapshots
from engines.adapters.state import State, read_state, write_state
from engines.adapters.state_folder import WAY_OUT, private_folder
from engines.adapters.table import Table
from engines.errors import Conflict


class PublishedNames:
    def __init__(self, folder: Path, snapshots: Snapshots) -> None:
        """`snapshots`: the copies in the same folder."""
        self.table = Table()
        self._folder = folder
        self._file = folder / "state.json"
        self._ours = FileLock(folder / "lock", thread_local=False)
        self._snapshots = snapshots
        self._saved = State()
        self._why_closed = ""  # why nothing can be kept
        self._changing = asyncio.Lock()

    async def open(self) -> State:
        """Take the folder, and return what was published when the server ended. Comes once, before anything else.

        Where the folder cannot be used, or another server uses it, the state is empty, and `check_open` raises. Raises
        BrokenState.
        """
        try:
            self._saved = await asyncio.to_thread(self._open)
        except Timeout:
            self._why_closed = f"another server uses the state_dir {self._folder.parent}: stop it, or {WAY_OUT}"
        except OSError as error:
            self._why_closed = f"the state_dir {self._folder.parent} cannot be used ({error.strerror}): {WAY_OUT}"
        return self._saved

    def _open(self) -> State:
        """Raises Timeout where another server uses the folder."""
        private_folder(self._folder)
        self._ours.acquire(blocking=False)
        state = read_state(self._file)
        self._snapshots.open([record.snapshot for record in state.adapters.values()])
        return state

    def check_open(self) -> None:
        """Raise Conflict where no adapters can be kept."""
        if self._why_closed:
            raise Conflict(self._why_closed)

    async def change(self, change: Callable[[Table], Table]) -> None:
        """First the file, then the table by which requests go: what a client has seen outlives the server."""
        async with self._changing:
            table = change(self.table)
            state = table.to_state()
            if state != self._saved:
                await asyncio.to_thread(write_state, self._file, state)
                self._saved = state
            self.table = table

    def close(self) -> None:
        """Let another server use the folder."""
        self._ours.release()
