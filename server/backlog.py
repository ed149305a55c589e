"""Work that goes on in the background until it is over, whatever server it needs for that: so much at a time, what was
made first first."""

import asyncio
import contextlib
import logging
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from engines.adapters.disk import sync
from engines.adapters.state_folder import private_folder
from engines.errors import Conflict, NotFound, TuneserveError
from server.files.storage import told_full
from server.store.database import Database
from server.tasks import Tasks

log = logging.getLogger(__name__)

MAX_RUNNING = 16
"""Pieces that go on at a time; later ones wait."""
MAX_RUNNING_OF_ONE = 4
"""Pieces of one owner that go on at a time, so that others do not wait behind its queue."""
RETRY_SECONDS = 10.0
"""Seconds before another try, where the disk is full or the database is gone."""


class Backlog:
    """Each piece has a folder as long as it is not over, `<folder>/<id of the database>/<id>`."""

    def __init__(
        self,
        name: str,
        folder: Path,
        database: Database,
        unfinished: Callable[[], Awaitable[Sequence[tuple[str, str | None]]]],
        work: Callable[[str], Awaitable[None]],
        give_up: Callable[[str], Awaitable[None]],
        tasks: Tasks,
    ) -> None:
        """`name`: what logs and metrics call a piece. `unfinished`: ids and owners of all, those that were made first
        first; raises TuneserveError.

        `work` does a piece to its end, `give_up` has it fail, for a fault of the server: it must not hang in its status
        for ever. Both may be called again where they raise; they raise Conflict where the database is another server's
        now, NotFound where the piece is gone, OSError or another TuneserveError where the piece has to wait."""
        self._name = name
        self._folder_of_all = folder
        self._database = database
        self._unfinished = unfinished
        self._work = work
        self._give_up = give_up
        self._tasks = tasks
        self._running: dict[str, asyncio.Task[None]] = {}
        self._ending = False
        self._news = asyncio.Event()

    def folder(self, id: str) -> Path:
        return self._folder_of_all / self._database.id / id

    async def make_folder(self, id: str) -> Path:
        """Raises StorageFull."""
        folder = self.folder(id)
        await asyncio.to_thread(_make, folder)
        return folder

    async def remove_folder(self, id: str) -> None:
        await asyncio.to_thread(_remove, self.folder(id))

    def look(self) -> None:
        """There is more to do, or room for it."""
        self._news.set()

    async def break_off(self, id: str) -> None:
        """A piece that is to go no further: nothing stays of it here."""
        if (task := self._running.get(id)) is not None:
            task.cancel()
        else:
            await self.remove_folder(id)

    async def open(self) -> None:
        """Remove the folders of what is over. Called once, when the database is open."""
        unfinished = {id for id, _ in await self._unfinished()}
        await asyncio.to_thread(self._keep_only, unfinished)

    def _keep_only(self, ids: set[str]) -> None:
        for folder in private_folder(self.folder("x").parent).iterdir():
            if folder.name not in ids:
                _remove(folder)

    async def run_for_ever(self) -> None:
        """Run what is to be run, until cancelled: what is under way then goes on with the next server."""
        self._ending = False
        try:
            while True:
                self._news.clear()
                await self._start_waiting()
                await self._news.wait()
        finally:
            self._ending = True
            tasks = list(self._running.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _start_waiting(self) -> None:
        ran = set(self._running)  # the list can name what comes to its end while it is read
        try:
            unfinished = await self._unfinished()
        except TuneserveError as error:
            log.warning("What is unfinished waits (%s): %s", self._name, error)
            await asyncio.sleep(RETRY_SECONDS)
            self._news.set()
            return
        running = Counter(owner for id, owner in unfinished if id in self._running)
        for id, owner in unfinished:
            has_room = len(self._running) < MAX_RUNNING and running[owner] < MAX_RUNNING_OF_ONE
            if has_room and id not in ran:
                running[owner] += 1
                self._running[id] = asyncio.create_task(self._run(id))

    async def _run(self, id: str) -> None:
        try:
            await self._work_to_the_end(id)
            await self.remove_folder(id)
            self._news.set()
        except Conflict as error:  # tried again with the next news, not at once
            log.error("The %s %s is left to another server: %s", self._name, id, error)
        finally:
            del self._running[id]

    async def _work_to_the_end(self, id: str) -> None:
        """Or until it is broken off."""
        try:
            await self._try_until_over(id)
        except asyncio.CancelledError:
            if self._ending:
                raise

    async def _try_until_over(self, id: str) -> None:
        """However often that takes; what has broken off is given up. Raises Conflict."""
        broken = False
        while True:
            try:
                await (self._give_up if broken else self._work)(id)
                return
            except Conflict:
                raise
            except NotFound:  # somebody has deleted its row
                return
            except (TuneserveError, OSError) as error:
                log.warning("The %s %s waits: %s", self._name, id, error)
                await asyncio.sleep(RETRY_SECONDS)
            except Exception as error:  # noqa: BLE001 (whatever it is, the log says it)
                self._tasks.failed(self._name, error, f"The {self._name} {id} broke off.")
                if broken:
                    await asyncio.sleep(RETRY_SECONDS)
                broken = True


def _make(folder: Path) -> None:
    with told_full():
        folder.mkdir(mode=0o700)
        sync(folder.parent)


def _remove(folder: Path) -> None:
    """What the disk does not let go of, the next start removes."""
    with contextlib.suppress(OSError):
        shutil.rmtree(folder)
