"""A server that is killed at any step of a change to files: row and content are both there, or neither."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

KILLED_AT_EVERY_STEP = """
import asyncio, os, shutil, signal, sys, threading
from pathlib import Path
import alembic.command
import sqlite3
from server.files.files import Files
from server.store.database import Database

root = Path(sys.argv[1])
state = root / "state"
EVENTS = {"open", "os.rename", "os.remove", "os.link"}

class Killer:
    left = None
    lock = threading.Lock()
    def step(self):
        with self.lock:
            if self.left is not None:
                self.left -= 1
                if self.left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

killer = Killer()

def step_around(module, name):
    function = getattr(module, name)
    def stepped(*args, **kwargs):
        killer.step()
        result = function(*args, **kwargs)
        killer.step()
        return result
    setattr(module, name, stepped)

class Statements(sqlite3.Connection):
    def commit(self):
        killer.step()
        super().commit()
        killer.step()

async def server(work):
    database = Database(state)
    files = Files(database, state / "files", max_bytes=1 << 20)
    await database.open()
    await files.open()
    seen = await work(files)
    await database.close()
    return seen

async def look(files):
    listed, _ = await files.list()
    stored = {path.name for path in (state / "files").glob("*/*")}
    assert stored == {file.id for file in listed}, (stored, listed)
    for file in listed:
        _, content = await files.read(file.id)
        with content:
            assert len(content.read()) == file.bytes
    return sorted(file.filename for file in listed)

async def prepare(files):
    await files.create("batch", "old.jsonl", b"old")

async def create(files):
    async def pieces():
        yield b"n" * 2_000_000
        yield b"new"
    await files.create("batch", "new.jsonl", pieces(), expires_after=3600)

async def delete(files):
    [old], _ = await files.list()
    await files.delete(old.id)

def run(work, step):
    child = os.fork()
    if child == 0:
        async def change(files):
            killer.left = step
            await work(files)
            killer.left = None
        asyncio.run(server(change))
        os._exit(0)
    return os.waitpid(child, 0)[1]

sys.addaudithook(lambda event, args: killer.step() if event in EVENTS else None)
step_around(os, "fsync")
connect = sqlite3.connect
sqlite3.connect = lambda *args, **kwargs: connect(*args, **kwargs, factory=Statements)
asyncio.run(server(prepare))
shutil.copytree(root / "state", root / "prepared")
for work in (create, delete):
    outcomes = []
    for step in range(1000):
        shutil.rmtree(root / "state")
        shutil.copytree(root / "prepared", root / "state")
        before = asyncio.run(server(look))
        status = run(work, step)
        outcomes.append(asyncio.run(server(look)))
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL, status
    after = outcomes[-1]
    assert before != after
    turn = outcomes.index(after)
    assert turn > 0 and outcomes == [before] * turn + [after] * (step + 1 - turn), (work, outcomes)
    sys.stdout.write(f"{work.__name__}: {step} steps, {turn} before it counts\\n")
"""


def test_a_change_that_is_killed_at_any_step_has_happened_or_has_not(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EVERY_STEP, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("steps") == 2
