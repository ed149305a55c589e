"""Prepared data that one process of a machine makes, and the others take.

They wait for a file rather than at a barrier: to make it may take longer than any barrier waits.
"""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engines.errors import TuneserveError
from training.data.saved import Made, load, save
from training.processes import Processes

PAUSE = 0.2
"""Seconds between two looks for the data."""


def once(make: Callable[[], Made], place: Path, processes: Processes) -> Made:
    """What `make` returns, made by the machine's first process; the others get it by a folder in `place`, which is gone
    once all have left it. Raises what `make` raises, in the others as a TuneserveError of the same words."""
    if processes.local_count == 1:
        return make()
    meeting = place / f".run-{processes.run}"
    try:
        if processes.local_rank == 0:
            _make(make, meeting)
        else:
            _wait(meeting)
        return load(meeting / "data")
    finally:
        _leave(meeting, processes)


def _make(make: Callable[[], Made], meeting: Path) -> None:
    meeting.mkdir(parents=True)
    try:
        save(make(), meeting / "made")
    except BaseException as error:
        told: dict[str, Any] = {"message": f"the first process could not prepare the data: {error!r}"}
        if isinstance(error, TuneserveError):
            told = {"message": error.message, "param": error.param, "code": error.code}
        (meeting / "failed.partial").write_text(json.dumps(told))
        (meeting / "failed.partial").rename(meeting / "failed.json")
        raise
    (meeting / "made").rename(meeting / "data")


def _wait(meeting: Path) -> None:
    """Where the first process is killed, torchrun ends those that wait."""
    while not (meeting / "data").is_dir():
        if (meeting / "failed.json").exists():
            raise TuneserveError(**json.loads((meeting / "failed.json").read_bytes()))
        time.sleep(PAUSE)


def _leave(meeting: Path, processes: Processes) -> None:
    """The last process to leave removes the folder: data that is mapped into memory stays."""
    (meeting / f"left-{processes.local_rank}").touch()
    if len(list(meeting.glob("left-*"))) == processes.local_count:
        shutil.rmtree(meeting, ignore_errors=True)
