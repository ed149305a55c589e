"""Linear layers with an adapter in every slot, and what they say by the formula."""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engines.pt.lora.low_rank import KERNELS, Kernel, Rows
from engines.pt.lora.slots import Group, LoraLinear, Step

SLOTS = 5
RANKS = (4, 0, 1, 16, 7)
"""Of the adapters in the slots; 0: it leaves the layer alone."""


def matrices(rank: int, inputs: int, outputs: int, **options: Any) -> tuple[Tensor, Tensor]:
    return torch.randn(rank, inputs, **options), torch.randn(rank, outputs, **options)


class Layer:
    """Linear layers with the same input, with an adapter of its own rank in every slot of each."""

    def __init__(
        self,
        library: ctypes.CDLL | None,
        inputs: int = 64,
        *outputs: int,
        ranks: Sequence[int] = RANKS,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        head: bool = False,
    ) -> None:
        outputs = outputs or (48,)
        self.library = library if dtype in KERNELS and device == "cpu" else None
        self.step = Step()
        self.bases = [nn.Linear(inputs, width, dtype=dtype, device=device) for width in outputs]
        paths = [f"layer.{number}" for number in range(len(outputs))]
        group = None
        if self.library is not None:
            group = Group(paths, Kernel(len(ranks), inputs, list(outputs), dtype, self.library))
        self.layers = [
            LoraLinear(path, base, self.step, head, len(ranks), group)
            for path, base in zip(paths, self.bases, strict=True)
        ]
        self.adapters = [
            [matrices(rank, inputs, width, dtype=dtype, device=device) if rank else None for rank in ranks]
            for width in outputs
        ]
        for layer, adapters in zip(self.layers, self.adapters, strict=True):
            for slot, adapter in enumerate(adapters):
                layer.write(slot, adapter, None)

    @property
    def layer(self) -> LoraLinear:
        return self.layers[0]

    def write(self, slot: int, rank: int) -> None:
        """Put another adapter of the first layer into a slot."""
        inputs, outputs = self.layer.in_features, self.layer.out_features
        self.adapters[0][slot] = matrices(rank, inputs, outputs) if rank else None
        self.layer.write(slot, self.adapters[0][slot], None)

    def all(self, x: Tensor, slots: list[int]) -> list[Tensor]:
        self.step.tokens = Rows(torch.tensor(slots, dtype=torch.int32, device=x.device), self.library)
        with torch.inference_mode():
            return [layer(x) for layer in self.layers]

    def __call__(self, x: Tensor, slots: list[int]) -> Tensor:
        return self.all(x, slots)[0]

    def by_hand(self, x: Tensor, slots: list[int], layer: int = 0) -> Tensor:
        """Computed in float32 from the output of the base layer on, and rounded to its type at the end."""
        y = self.bases[layer](x).detach().float()
        for row, slot in enumerate(slots):
            adapter = self.adapters[layer][slot] if slot >= 0 else None
            if adapter is not None:
                y[0, row] += x[0, row].float() @ adapter[0].float().T @ adapter[1].float()
        return y.to(x.dtype)


def some_slots(rows: int) -> list[int]:
    return torch.randint(-1, SLOTS, (rows,)).tolist()
