"""Several processes of one training: `python -m training.torchrun FOLDER PROCESSES [MACHINES RANK ADDRESS PORT]` is
torchrun, made to end as one process would.

They get the time to save a checkpoint that whoever stops them gives, where torchrun kills them after 30 seconds. Where
one of them is killed, so is this process: what the others say then is only that one of them has gone.

On several machines, each has to be told the same, with its own RANK (from 0): ADDRESS and PORT are where the first of
them is met.
"""

import os
import signal
import sys
import time
from pathlib import Path

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from training.folder import JobFolder, Message
from training.machines import ALONE, Machines

PATIENCE_SECONDS = 24 * 3600
"""Seconds that they have to end, once they were told to: whoever told them waits for less, and then kills."""


def main(folder: JobFolder, processes: int, machines: Machines = ALONE) -> int:
    words = ["--nproc-per-node", str(processes), "--shutdown-timeout", str(PATIENCE_SECONDS)]
    try:
        run.main([*machines.for_torchrun(), *words, "-m", "training.run", str(folder.path)])
    except SignalException:  # they have been told, and have ended
        return 0 if folder.read_result() is not None else 1
    except ChildFailedError as failed:
        if not _is_told(folder):
            _end_as_one(folder, failed, processes)
            if machines.count > 1:
                told = "The processes of this machine have ended: another machine, or its log, says why."
                folder.append(Message(time=time.time(), level="warn", message=told))
        return 1
    return 0


def _is_told(folder: JobFolder) -> bool:
    """Whether the one that failed has said why. That another has stopped is no result: torchrun told it to."""
    result = folder.read_result()
    if result is not None and result.status == "stopped":
        folder.remove_result()
        return False
    return result is not None


def _end_as_one(folder: JobFolder, failed: ChildFailedError, processes: int) -> None:
    """End by the signal that ended one of them, where one did."""
    for rank, failure in sorted(failed.failures.items()):
        if failure.exitcode < 0:
            text = f"Rank {rank} of {processes} was ended by signal {-failure.exitcode}."
            folder.append(Message(time=time.time(), level="warn", message=text))
            if -failure.exitcode != signal.SIGKILL:
                signal.signal(-failure.exitcode, signal.SIG_DFL)
            os.kill(os.getpid(), -failure.exitcode)


if __name__ == "__main__":
    where, several, *others = sys.argv[1:]
    sys.exit(main(JobFolder(Path(where).resolve()), int(several), Machines.of_words(others)))
