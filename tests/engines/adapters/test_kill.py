"""A server that is killed at any step of a change: the next one finds the state before it or the state after it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

KILLED_AT_EVERY_STEP = """
import asyncio, os, shutil, signal, sys, threading
from pathlib import Path
from engines.adapters.registry import AdapterRegistry
from engines.echo import EchoEngine
from tests.adapter_folders import write_adapter

root = Path(sys.argv[1])
first, second = write_adapter(root / "first"), write_adapter(root / "second", seed=1)
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.scandir", "shutil.rmtree"}

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

class Engine(EchoEngine):
    async def load_adapter(self, *args, **kwargs):
        killer.step()
        await super().load_adapter(*args, **kwargs)
        killer.step()
    async def unload_adapter(self, *args):
        killer.step()
        await super().unload_adapter(*args)
        killer.step()

async def server(work):
    engine = Engine()
    await engine.start()
    registry = AdapterRegistry(engine, base_name="echo", model="tests/echo", state_dir=root / "state")
    await registry.restore()
    seen = await work(registry)
    await registry.close()
    return seen

def seen(registry):
    return {adapter.name: adapter.version for adapter in registry.adapters()}, registry.aliases()

async def look(registry):
    found = seen(registry)
    assert all(adapter.state == "host" for adapter in registry.adapters()), registry.adapters()
    copies = {path.name for path in (root / "state" / "adapters" / "copies").iterdir()}
    assert len(copies) == len({adapter.version.partition("@")[2] for adapter in registry.adapters()}), copies
    assert not [*(root / "state" / "adapters" / "partial").iterdir()]
    return found

async def still_works(registry):
    await registry.load("new", second)
    await registry.alias("latest", "new")
    await registry.unload("latest")
    await registry.unload("new")

async def prepare(registry):
    await registry.load("a", first)
    await registry.load("b", second)
    await registry.load("spare", first)
    await registry.alias("prod", "a")

async def load(registry):
    await registry.load("c", second)
async def replace(registry):
    await registry.load("a", second, replace=True, pinned=True)
async def unload(registry):
    await registry.unload("b")
async def alias(registry):
    await registry.alias("other", "a")
async def repoint(registry):
    await registry.alias("prod", "b")
async def remove_alias(registry):
    await registry.unload("prod")

def run(work, step):
    child = os.fork()
    if child == 0:
        async def change(registry):
            killer.left = step
            await work(registry)
            killer.left = None
        asyncio.run(server(change))
        os._exit(0)
    return os.waitpid(child, 0)[1]

sys.addaudithook(lambda event, args: killer.step() if event in EVENTS else None)
for name in ("fsync", "write"):
    step_around(os, name)
asyncio.run(server(prepare))
shutil.copytree(root / "state", root / "prepared")
for work in (load, replace, unload, alias, repoint, remove_alias):
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
        asyncio.run(server(still_works))
        assert asyncio.run(server(look)) == outcomes[-1]
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
    assert done.stdout.count("steps") == 6
