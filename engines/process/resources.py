"""What an engine's process takes of the machine: threads, and memory for the KV cache."""

import os

from engines.process.machine import available_memory, usable_cores

GIB = 2**30


def thread_environment(threads: int | None) -> dict[str, str]:
    """Variables for a process that computes with this many CPU threads; None: one for each usable core."""
    return {
        "OMP_NUM_THREADS": str(threads or usable_cores()),
        # A thread that waits gives its core to the HTTP process instead of spinning on it, but not at once: a step has
        # hundreds of parallel parts, and to be woken up for each of them costs more than a moment's spinning.
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "20000"),
    }


def kv_cache_bytes(gib: float | None, *, weights: int) -> int:
    """The KV cache on a CPU, beside weights of so many bytes: as asked, or else as much as they take, 0.5 to 4 GiB,
    and at most a quarter of the free memory. That is enough to batch well, and small beside the model itself.
    """
    if gib is not None:
        return int(gib * GIB)
    return min(max(weights, GIB // 2), 4 * GIB, available_memory() // 4)
