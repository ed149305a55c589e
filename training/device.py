"""The devices that a training runs on."""

import os
import sys
from typing import TYPE_CHECKING

from engines.errors import InvalidRequest

if TYPE_CHECKING:
    import torch


def see_devices(processes: int, rollout_device: str | None) -> None:
    """Have this process see one GPU, where it trains alone, and those up to `rollout_device`."""
    if processes == 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        last = int((rollout_device or "").partition(":")[2] or 0)
        there = [str(number) for number in range(last + 1)] if visible is None else visible.split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(there[: last + 1])


def leave_out_triton() -> None:
    """Where only a CPU is, have nothing import Triton, which compiles for GPUs: torch does so wherever it is installed,
    and it takes 96 MiB."""
    if not accelerated():
        sys.modules.setdefault("triton", None)  # type: ignore[arg-type]  # Python's own way to say that it is not there


def ask_for_huge_pages() -> None:
    """Before anything imports torch: have tensors of 2 MiB or more lie in pages of as much, where Linux grants them to
    those that ask (madvise). A step on a CPU takes and gives back more than the weights, and each page that it takes
    again is a fault: there are fewer so, and a training of all of 135 million weights takes 90 MiB less.

    `THP_MEM_ALLOC_ENABLE` is torch's own variable, which whoever sets it to 0 keeps so.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def named_device(word: str | None, *, param: str) -> "torch.device | None":
    """`word`: as torch has it. Raises InvalidRequest, whose `param` is `param`, where there is none."""
    if word is None:
        return None
    import torch

    device = torch.device(word)
    if device.type == "cuda" and (device.index or 0) >= (there := torch.cuda.device_count()):
        raise InvalidRequest(f"{word} is not here: {there} CUDA devices can be seen", param=param)
    return device


def check_devices(processes: int) -> None:
    """Raises InvalidRequest where several `processes` of this machine would have to share a GPU."""
    if processes == 1:
        return
    import torch

    there = torch.cuda.device_count()
    if 0 < there < processes:
        message = f"{processes} processes need a GPU each, and {there} can be seen: lower NPROC_PER_NODE"
        raise InvalidRequest(message, param="devices")


def accelerated() -> bool:
    import torch

    return bool(torch.accelerator.is_available())


def device_name(local_rank: int) -> str:
    """The device that process number `local_rank` of this machine trains on."""
    import torch

    if not accelerated():
        return "cpu"
    return f"{torch.accelerator.current_accelerator().type}:{local_rank}"
