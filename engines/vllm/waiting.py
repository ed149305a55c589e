"""How vLLM's processes wait for one another on a CPU.

vLLM has them look again and again for the other's message, giving up the core (`sched_yield`) only for a moment each
time. That takes cores from what computes, and on a machine with few cores it has kept the server's process waiting
for tens of seconds. To sleep the same short time between all looks is better, but wakes up hundreds of times in a
step, each time in the way of what computes: the longer a wait has lasted, the longer its next sleep is.
"""

import threading
import time

from vllm.distributed.device_communicators import shm_broadcast
from vllm.platforms import current_platform

PART = 1 / 20
"""Share of the time waited so far by which a message may be seen too late."""
SHORTEST_SECONDS, LONGEST_SECONDS = 1e-6, 1e-3
SAME_WAIT_SECONDS = 1e-4
"""Looks that are further apart belong to different waits."""


class _Wait(threading.local):
    """The wait of one thread."""

    began = 0.0
    looked = 0.0

    def sleep(self) -> None:
        now = time.monotonic()
        if now - self.looked > SAME_WAIT_SECONDS:
            self.began = now
        time.sleep(min(max(PART * (now - self.began), SHORTEST_SECONDS), LONGEST_SECONDS))
        self.looked = time.monotonic()


def wait_asleep() -> None:
    """To be called in each of vLLM's processes, before it waits. GPUs are waited for as vLLM does."""
    if current_platform.is_cpu():
        shm_broadcast.sched_yield = _Wait().sleep
