"""Several trainings, one after the other, by groups of processes: `python -m tests.training.parallel.many 2 FOLDER...
-- 4 FOLDER...`.

To import what trains takes longer than to train what tests train. So all of these processes are forks of one that has
imported it, and each trains in all folders of its group.
"""

import faulthandler
import gc
import os
import sys
from multiprocessing import connection, get_context
from pathlib import Path

import deepspeed  # noqa: F401
import torch.distributed.checkpoint.state_dict  # noqa: F401
from torch.distributed import TCPStore
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

import training.pipelines.train
import training.trainers.pairs
import training.trainers.supervised  # noqa: F401
from engines.process.children import set_parent_death_signal
from training.folder import JobFolder
from training.report import Report

LEFT = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_MIXED_PRECISION")
"""What a training leaves in the environment, for whichever comes next in its process."""
PATIENCE = 300
"""Seconds until a process says where it is, and ends."""


def main(words: list[str]) -> int:
    gc.freeze()  # each training collects garbage, and would look through all that was imported
    while words:
        end = words.index("--") if "--" in words else len(words)
        (count, *folders), words = words[:end], words[end + 1 :]
        if not _together(int(count), folders):
            return 1
    return 0


def _together(count: int, folders: list[str]) -> bool:
    """Whether all of `count` processes have trained in all folders. Where one fails, the others are ended."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    fork = get_context("fork").Process
    running = [fork(target=_process, args=(rank, count, store.port, folders)) for rank in range(count)]
    for process in running:
        process.start()
    while running and not any(process.exitcode for process in running):
        connection.wait([process.sentinel for process in running])
        running = [process for process in running if process.exitcode != 0]
    for process in running:
        process.kill()
    return not running


def _process(rank: int, count: int, port: int, folders: list[str]) -> None:
    set_parent_death_signal()
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    if count > 1:  # as torchrun says it
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
        os.environ |= {name: str(number) for name, number in told.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    from training.run import run  # it looks at once which of the processes this is

    for number, folder in enumerate(folders):
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)  # one may be at the next while another leaves this one
        job = JobFolder(Path(folder))
        result = run(job, Report(job, silent=rank != 0))
        if result is not None and (rank == 0 or result.status == "failed"):
            job.write_result(result)
        _forget()


def _forget() -> None:
    for name in LEFT:
        os.environ.pop(name, None)
    unset_hf_deepspeed_config()
    gc.collect()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
