"""LMDeploy's own LoRA kernel, in Triton's interpreter: is a slot that was overwritten in place what it then computes
with?

Run by the Python of LMDeploy's environment; prints the largest errors before and after as JSON.
"""

import json
import os
import sys
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
from lmdeploy.pytorch.kernels.cuda.fused_lora import fused_lora
from torch import Tensor
from triton.runtime import driver

INPUTS, OUTPUTS = 64, 32
RANKS = torch.tensor([0, 8, 8])
"""Of the base model, and of two slots."""


class NoGpu:
    """What the autotuner asks of a driver."""

    def get_benchmarker(self) -> Any:
        def run_once(kernel: Any, **_: Any) -> tuple[float, ...]:
            kernel()
            return (1.0, 1.0, 1.0)

        return run_once

    def get_current_device(self) -> int:
        return 0


def expected(x: Tensor, a: Tensor, b: Tensor, lengths: Tensor, adapters: Tensor, offsets: Tensor) -> Tensor:
    rows = []
    for part, adapter in zip(x.split(lengths.tolist()), adapters.tolist(), strict=True):
        at = slice(int(offsets[adapter]), int(offsets[adapter] + RANKS[adapter]))
        rows.append(part.float() @ a[at].float().t() @ b[at].float())
    return torch.cat(rows)


def main() -> None:
    driver.set_active(NoGpu())
    torch.manual_seed(0)
    offsets, lengths, adapters = RANKS.cumsum(0) - RANKS, torch.tensor([3, 2, 2]), torch.tensor([1, 0, 2])
    x = torch.randn(int(lengths.sum()), INPUTS, dtype=torch.float16)
    a, b = (torch.randn(int(RANKS.sum()), width, dtype=torch.float16) * 0.1 for width in (INPUTS, OUTPUTS))

    def error() -> float:
        out = fused_lora(
            x,
            a,
            b,
            scaling=torch.ones(len(RANKS)),
            rank_start=offsets,
            ranks=RANKS,
            seq_start=lengths.cumsum(0) - lengths,
            seq_lens=lengths,
            adapter_ids=adapters,
            max_rank=int(RANKS.max()),
            max_seqlen=int(lengths.max()),
            output=torch.zeros(len(x), OUTPUTS, dtype=torch.float16),
            cum=True,
        )
        return float((out.float() - expected(x, a, b, lengths, adapters, offsets)).abs().max())

    before = error()
    slot = slice(int(offsets[1]), int(offsets[2]))
    a[slot].zero_()  # a smaller adapter: the rows that it does not need are zeros
    a[slot][:5].copy_(torch.randn(5, INPUTS) * 0.1)
    b[slot].copy_(torch.randn(8, OUTPUTS) * 0.1)
    sys.stdout.write(json.dumps({"before": before, "after": error()}))


if __name__ == "__main__":
    main()
