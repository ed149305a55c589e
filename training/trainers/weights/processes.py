"""What the processes of one training agree on."""

from typing import Any

import torch


def in_any_process(true: bool | torch.Tensor, args: Any) -> bool:
    """Whether it is true in one of them. Each has to ask, in the same order."""
    if args.world_size > 1:
        told = torch.as_tensor(true, dtype=torch.float32, device=args.device)
        torch.distributed.all_reduce(told)
        true = told
    return bool(true)
