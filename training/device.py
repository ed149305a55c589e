"""The devices that a training runs on."""

from engines.errors import InvalidRequest


def check_devices(processes: int) -> None:
    """Raises InvalidRequest where several processes would have to share a GPU."""
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
