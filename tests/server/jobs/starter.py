"""Starts a worker that sleeps in the folder named, prints its pid and waits."""

import asyncio
import sys
from pathlib import Path

from server.jobs.executor import LocalExecutor, Order

SLEEPER = (sys.executable, "-c", "import time; time.sleep(600)")


async def main(folder: Path) -> None:
    worker = await LocalExecutor(command=SLEEPER).start(Order(program="run", folder=folder, mark="m"))
    print(worker.pid, flush=True)  # noqa: T201  # for the test
    await asyncio.sleep(600)


asyncio.run(main(Path(sys.argv[1])))
