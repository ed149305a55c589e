"""Adapters that come and go while LMDeploy runs: slots that are in the model from the start, overwritten in place.

LMDeploy takes adapters only when it builds the model. So it is given `max_loras` empty ones, each of the highest
rank, whose rows in the stacked matrices of each layer are written between two steps. Storage is not replaced, so
CUDA graphs hold.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lmdeploy.messages import GenerationConfig
from lmdeploy.pytorch.adapter.adapter import load_lora_weights
from torch import Tensor

from engines.adapters.folder import PREFIX, read_adapter
from engines.adapters.pins import max_pinned
from engines.adapters.plain import plain_tensors, write_plain
from engines.capabilities import AdapterSupport
from engines.checkpoint.structure import Structure
from engines.lmdeploy.library import Library

log = logging.getLogger(__name__)

PROBE = [1, 2, 3, 2]
"""A prompt for the check; its tokens are in every vocabulary."""
PROBE_STEPS = 3


class HotSlots:
    """Which names LMDeploy knows each slot by, and how its rows are written."""

    def __init__(self, library: Library, num_slots: int, rank: int) -> None:
        self._library = library
        self._rank = rank
        self._names = [f"slot{slot:04}" for slot in range(num_slots)]
        self._adapters: list[int] = []  # LMDeploy's number of each slot
        self._loras: dict[str, Any] = {}  # path in transformers' model -> LMDeploy's LoRA module
        self.support = AdapterSupport(max_rank=rank, linears={})

    def build(self, structure: Structure) -> None:
        """Build the engine with empty slots for the linear layers, as far as it has room for them.

        Raises UnsupportedModel.
        """
        linears = structure.linears
        with TemporaryDirectory(prefix="tuneserve-") as folder:
            empty = write_plain(Path(folder) / "empty", {}, rank=self._rank, linears=linears)
            self._library.build(dict.fromkeys(self._names, empty))
        model = self._model
        for name, module in model.named_modules():
            owner, found, leaf = name.rpartition(".lora_adapters.")
            path = ".".join((owner.rpartition(".")[0], leaf))
            shape = (module.adapter_info.in_features, module.adapter_info.out_features) if found else None
            if found and linears.get(path) == shape:
                self._loras[path] = module
            if found:
                module.lora_A.data.zero_()
                module.lora_B.data.zero_()
        self._adapters = [self._library.adapter_ids.pop(name) for name in self._names]
        self.support = AdapterSupport(
            max_rank=self._rank,
            linears={path: linears[path] for path in self._loras},
            experts=structure.experts,
            max_pinned=max_pinned(len(self._names)),
        )

    async def check(self) -> str | None:
        """Try slots out. Returns what is wrong, None where a slot does to its own rows what it shall, and no more."""
        base = await self._logprobs(None)
        random = torch.Generator().manual_seed(0)
        tensors = {}
        for path, (inputs, outputs) in self.support.linears.items():
            tensors[f"{PREFIX}{path}.lora_A.weight"] = torch.randn(self._rank, inputs, generator=random)
            tensors[f"{PREFIX}{path}.lora_B.weight"] = torch.randn(outputs, self._rank, generator=random)
        self._write(0, tensors)
        self._library.adapter_ids["check"] = self._adapters[0]
        try:
            other, beside = await asyncio.gather(self._logprobs("check"), self._logprobs(None))
            self._write(0, {})
            empty = await self._logprobs("check")
        finally:
            del self._library.adapter_ids["check"]
        if any(one == same for one, same in zip(other, base, strict=True)):
            return "an adapter that was written into a slot changed nothing"
        if beside != base:
            return "an adapter in a slot changed the base model"
        return "an adapter was left in its slot" if empty != base else None

    async def put(self, slot: int, name: str, folder: Path) -> None:
        """Overwrite a slot that no request uses. From now on requests may name it so."""
        spec = read_adapter(folder, self.support)
        self._write(slot, await asyncio.to_thread(plain_tensors, spec, self._rank))
        self._library.adapter_ids[name] = self._adapters[slot]

    async def take(self, slot: int, name: str) -> None:
        """What the slot holds stays until it is overwritten, but nobody can name it any more."""
        del self._library.adapter_ids[name]

    @property
    def _model(self) -> Any:
        patched = self._library.agent.patched_model
        return patched.get_model() if hasattr(patched, "get_model") else patched

    def _write(self, slot: int, tensors: dict[str, Tensor]) -> None:
        """Between two steps: nothing of a step is queued but whole steps, and all in one stream."""
        agent, adapter, model = self._library.agent, self._adapters[slot], self._model
        load: Callable[..., None] = getattr(model, "load_lora_weights", None) or _load_into(model)
        with agent.all_context(), torch.cuda.stream(agent.stream):
            for module in self._loras.values():
                start = int(module.adapter_info.rank_offsets[adapter])
                module.lora_A.data[start : start + self._rank].zero_()
                module.lora_B.data[start : start + self._rank].zero_()
            load(tensors.items(), adapter_id=adapter)

    async def _logprobs(self, adapter: str | None) -> list[dict[int, float]]:
        """Log-probabilities of the prompt's step and of some steps after it."""
        config = GenerationConfig(max_new_tokens=PROBE_STEPS, top_k=1, temperature=1.0, logprobs=5)
        told: list[dict[int, float]] = []
        async with aclosing(self._library.infer(PROBE, config, adapter)) as outputs:
            async for output in outputs:
                told += [{token: round(value, 2) for token, value in row.items()} for row in output.logprobs or ()]
        return told


def _load_into(model: Any) -> Callable[..., None]:
    def load(tensors: Any, adapter_id: int) -> None:
        load_lora_weights(model, tensors, adapter_id)

    return load
