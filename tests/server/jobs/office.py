"""A server of jobs and nothing else, in a process of its own to be killed: `python office.py FOLDER [PLAN]`.

With a PLAN it creates a job. What is published is a line in FOLDER/published. That it is open, it says in its log.
"""

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

from server.jobs.hooks import NoHooks
from server.jobs.job import Job
from tests.server.jobs.conftest import Office
from training.folder import Result


class Publisher(NoHooks):
    def __init__(self, folder: Path) -> None:
        self.file = folder / "published"

    async def on_success(self, job: Job, attempt: int, folder: Path, result: Result) -> dict[str, Any]:
        with self.file.open("a") as file:
            file.write(f"{attempt} {result.final_step}\n")
        return {"fine_tuned_model": "ft:m"}


async def serve(folder: Path, plan: str | None = None) -> None:
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    office = Office(folder, hooks=Publisher(folder), retries=20)
    await office.open()
    if plan is not None:
        await office.create(json.loads(plan))
    sys.stderr.write("open\n")
    sys.stderr.flush()
    await told.wait()
    await office.close()


def main(words: list[str]) -> int:
    folder, *plan = words
    asyncio.run(serve(Path(folder), *plan))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
