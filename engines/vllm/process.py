"""The process of vLLM: `python -m engines.vllm.process FD`.

vLLM starts its own processes below this one, and each of them imports this file again, under another name.
"""

import os
from typing import Any

import msgspec

from engines.process.asyncio_engine import AsyncioEngine
from engines.process.host import host
from engines.process.imports import uncollected
from engines.vllm.config import VllmConfig

with uncollected():
    from engines.library.engine import LibraryEngine
    from engines.vllm.core import VllmCore
    from engines.vllm.waiting import wait_asleep


def make(fields: dict[str, Any]) -> AsyncioEngine:
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # on a CPU vLLM would heed it in place of `kv_cache_memory`
    config = msgspec.convert(fields, VllmConfig)
    return AsyncioEngine(LibraryEngine(VllmCore(config), max_loras=config.max_loras, max_num_seqs=config.max_num_seqs))


wait_asleep()
if __name__ == "__main__":
    host(make)
