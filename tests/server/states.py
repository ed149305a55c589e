"""Folders for the states of servers, each with a database as a first start leaves it: its tables are made once."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from server.store.database import Database

STORE = "store"
FILE = "tuneserve.sqlite3"


def new_state() -> str:
    """A folder for `state_dir`."""
    return str(as_state(Path(mkdtemp(dir=os.environ["XDG_DATA_HOME"]))))


def as_state(folder: Path) -> Path:
    """Put such a database into `folder`, unless there is one."""
    if not (folder / STORE).exists():
        (folder / STORE).mkdir(mode=0o700, parents=True)
        (folder / STORE / FILE).write_bytes(_database())
    return folder


@cache
def _database() -> bytes:
    folder = Path(mkdtemp(dir=os.environ["XDG_DATA_HOME"]))

    async def make() -> None:
        database = Database(folder)
        await database.open()
        await database.close()

    with ThreadPoolExecutor(1) as thread:  # who wants it may be in a loop
        thread.submit(asyncio.run, make()).result()
    return (folder / STORE / FILE).read_bytes()
