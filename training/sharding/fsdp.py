"""Fully sharded data parallelism (Zhao et al. 2023, arXiv:2304.11277), as torch's `fully_shard` does it: each process
holds a part of every weight, with its gradient and what the optimizer keeps of it, and gathers a layer for as long as
it computes with it.

A checkpoint has the weights that are trained and the optimizer in `sharded/`, written by all processes at once; any
number of processes can go on from it.
"""

from datetime import timedelta
from pathlib import Path
from typing import Any

from engines.errors import UnsupportedModel

FOLDER = "sharded"
"""A checkpoint's folder of what training goes on from, in torch's distributed format."""

PATIENCE = timedelta(minutes=30)
"""For which a process waits for another one, as transformers has it."""


def shard(model: Any, device: Any, *, how: str) -> None:
    """Divide the weights of `model` (a `PreTrainedModel` or `PeftModel` on the CPU) among all processes, in place.

    What is outside of its layers, embeddings and head, is held whole from the forward pass to the end of the backward
    pass. `device` (torch.device): where a process computes. `how`: a value of the parameter `fsdp`.
    Raises UnsupportedModel.
    """
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    offload = CPUOffloadPolicy(pin_memory=device.type != "cpu") if "offload" in how else OffloadPolicy()
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh, offload_policy=offload, reshard_after_forward="full_shard" in how)
    fully_shard(model, mesh=mesh, offload_policy=offload)
    if torch.distributed.get_backend() == "gloo":  # which has sums alone
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)


def meet(backend: str | None, local_rank: int) -> None:
    """Have the processes meet before transformers does: parts of weights that wait in the CPU's memory are told of
    there, for which NCCL alone is not enough. `backend`: in place of ours."""
    import torch

    if torch.distributed.is_initialized():
        return
    ours = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        ours = "cpu:gloo,cuda:nccl"
    torch.distributed.init_process_group(backend or ours, timeout=PATIENCE)


def _layers(model: Any) -> list[Any]:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    kinds = set(base._no_split_modules or ())
    found = [module for module in base.modules() if type(module).__name__ in kinds]
    if not found:
        raise UnsupportedModel(f"{type(base).__name__} does not say what its layers are", param="fsdp")
    return found


def gathered(model: Any, *, trained_only: bool) -> dict[str, Any]:
    """The whole weights by name, on the CPU: in the first process, and none in the others. Each has to ask."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=trained_only)
    found: dict[str, Any] = get_model_state_dict(model, options=options)
    return found


def save(checkpoint: Path, model: Any, optimizer: Any) -> None:
    import torch.distributed.checkpoint

    torch.distributed.checkpoint.save(_state(model, optimizer), checkpoint_id=checkpoint / FOLDER)


def load(checkpoint: Path, model: Any, optimizer: Any) -> None:
    import torch.distributed.checkpoint
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    state = _state(model, optimizer)
    torch.distributed.checkpoint.load(state, checkpoint_id=checkpoint / FOLDER)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=StateDictOptions(ignore_frozen_params=True, strict=False),
    )


def _state(model: Any, optimizer: Any) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    weights, kept = get_state_dict(model, optimizer, options=StateDictOptions(ignore_frozen_params=True))
    return {"model": weights, "optimizer": kept}
