"""Adapters in vLLM's slots.

vLLM gets a copy of each adapter in the plain form, in which there is nothing to misread. The copy is kept while the
adapter is in its slot: where vLLM misses a folder of one that computes, its whole engine ends.
"""

import asyncio
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM

from engines.adapters.folder import read_adapter
from engines.adapters.plain import plain_tensors, write_plain
from engines.capabilities import AdapterSupport
from engines.checkpoint.heads import SCORE
from engines.errors import EngineFailure


class VllmSlots:
    """Puts adapters into the engine, and takes them out."""

    def __init__(self, llm: AsyncLLM, support: AdapterSupport, folder: Path) -> None:
        """`folder`: for the copies."""
        self._llm = llm
        self._support = support
        self._folder = folder
        # Never used twice: vLLM's caches go by number and name.
        self._ids: Iterator[int] = count(1)
        self.requests: dict[str, LoRARequest] = {}
        """Name -> what vLLM calls the adapter, of those in the engine."""

    async def put(self, slot: int, name: str, folder: Path) -> None:
        number = next(self._ids)
        copy = self._folder / str(number)
        request = LoRARequest(lora_name=name, lora_int_id=number, lora_path=str(copy))
        try:
            await asyncio.to_thread(write_copy, folder, self._support, copy)
            if not await self._llm.add_lora(request):
                raise EngineFailure(f"vLLM did not take the adapter {name!r}")
        except BaseException:  # also where nobody waits for it any more: nothing else would remove the copy
            shutil.rmtree(copy, ignore_errors=True)
            raise
        self.requests[name] = request

    async def take(self, slot: int, name: str) -> None:
        request = self.requests.pop(name)
        await self._llm.remove_lora(request.lora_int_id)
        await asyncio.to_thread(shutil.rmtree, request.lora_path)


def write_copy(folder: Path, support: AdapterSupport, copy: Path) -> None:
    """Write the adapter of `folder` to `copy`. Raises InvalidAdapter."""
    spec = read_adapter(folder, support)
    tensors = plain_tensors(spec, spec.rank)
    write_plain(copy, tensors, rank=spec.rank, linears=spec.linears, saved=() if spec.head is None else (SCORE,))
