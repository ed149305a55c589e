"""A server's side of an engine, to be killed: `python -m tests.faults.server ENGINE [MODEL]`.

It starts an engine in a process of its own and writes the id of that process.
"""

import asyncio
import sys
from collections.abc import Callable

from engines.process.client import ProcessEngine
from engines.pt.client import PtEngine
from engines.pt.config import PtConfig
from engines.vllm.client import VllmEngine
from engines.vllm.config import VllmConfig
from tests.engines.vllm.tiny import TINY
from tests.hosted_echo import echo_in_its_process
from tests.killed import ROOT


def pt(model: str) -> ProcessEngine:
    return PtEngine(PtConfig(model=model, dtype="float32", device_map="cpu", threads=1), max_num_queued_reqs=1)


def vllm(model: str) -> ProcessEngine:
    return VllmEngine(VllmConfig(**TINY, model=model), max_num_queued_reqs=8)


ENGINES: dict[str, Callable[..., ProcessEngine]] = {"pt": pt, "vllm": vllm, "echo": echo_in_its_process}
WHILE_IT_STARTS = ("vllm",)
"""Engines whose process is told of before it has started."""


async def main(name: str, *model: str) -> None:
    engine = ENGINES[name](*model)
    if name in WHILE_IT_STARTS:
        engine.prepare()
        tell(engine)
    await engine.start()
    if name not in WHILE_IT_STARTS:
        tell(engine)
    await asyncio.Event().wait()


def tell(engine: ProcessEngine) -> None:
    assert engine._life is not None
    sys.stdout.write(f"{engine._life.process.pid}\n")
    sys.stdout.flush()


async def begun(name: str, *model: str) -> asyncio.subprocess.Process:
    """Such a server; its output is read by the test."""
    command = [sys.executable, "-m", "tests.faults.server", name, *model]
    return await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, cwd=ROOT)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
