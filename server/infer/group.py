"""Several processes that answer one data set, each with an engine and a device of its own."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from engines.errors import InvalidRequest
from engines.process.machine import usable_cores
from training.params.infer import AnswerParams
from training.processes import Processes

PATIENCE = timedelta(days=30)
"""How long one waits for the others: as long as their rows take."""
LOOK_SECONDS = 0.2
OF_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PREFIXES = ("TORCHELASTIC_", "GROUP_", "ROLE_")
"""Environment variables that an engine would take for its own."""


@dataclass(frozen=True, slots=True)
class Group:
    rank: int = 0
    count: int = 1
    torch: Any = None
    """`torch.distributed`, where there are several."""

    @classmethod
    def of_environment(cls, params: AnswerParams) -> "Group":
        """The group that this process belongs to, joined. Raises InvalidRequest."""
        processes = Processes.of_environment()
        if processes.count == 1:
            if params.ddp_backend is not None:
                raise InvalidRequest("there is one process: say how many in NPROC_PER_NODE", param="ddp_backend")
            return cls()
        if processes.machines > 1:
            raise InvalidRequest("the processes are on one machine: give each machine a part of the data", param=None)
        from torch import distributed

        backend = params.ddp_backend or "gloo"
        try:
            distributed.init_process_group(backend, timeout=PATIENCE)
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InvalidRequest(f"{backend} is not to be had here: {reason}", param="ddp_backend") from error
        _leave_to_the_engine(processes)
        return cls(processes.rank, processes.count, distributed)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def is_mine(self, index: int) -> bool:
        return index % self.count == self.rank

    def share(self, params: AnswerParams) -> AnswerParams:
        """`params` with this process's part of the processor, where nothing else is said."""
        if self.count == 1 or params.threads is not None or params.infer_backend == "lmdeploy":
            return params
        return params.model_copy(update={"threads": max(1, usable_cores() // self.count)})

    def wait(self, stopped: Callable[[], bool]) -> bool:
        """Whether all have come this far; else this one was stopped as it waited."""
        if self.torch is None:
            return True
        waiting = self.torch.barrier(async_op=True)
        while not waiting.is_completed():
            if stopped():
                return False
            time.sleep(LOOK_SECONDS)
        return True


def _leave_to_the_engine(processes: Processes) -> None:
    """Have the engine's process see one GPU, and nothing of the group."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = [str(number) for number in range(processes.local_count)] if visible is None else visible.split(",")
    if processes.local_rank < len(there):
        os.environ["CUDA_VISIBLE_DEVICES"] = there[processes.local_rank]
    for name in [name for name in os.environ if name in OF_TORCHRUN or name.startswith(PREFIXES)]:
        del os.environ[name]
