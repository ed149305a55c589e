"""How vLLM's processes wait for one another on a CPU.

vLLM has them look again and again for the other's message, giving up the core (`sched_yield`) only for a moment each time.
That takes cores from what computes, and on a machine with few cores it has kept the server's process waiting for tens of
seconds.
"""

import time

from vllm.distributed.device_communicators import shm_broadcast
from vllm.platforms import current_platform

SLEEP_SECONDS = 5e-5


def wait_asleep() -> None:
    """To be called in each of vLLM's processes, before it waits. GPUs are waited for as vLLM does."""
    if current_platform.is_cpu():
        shm_broadcast.sched_yield = lambda: time.sleep(SLEEP_SECONDS)
