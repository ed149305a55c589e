"""Trainings whose weights, gradients or optimizer are divided among processes: what they ask of a trainer."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer import SCHEDULER_NAME

from engines.checkpoint.quantize import is_quantized
from engines.errors import InvalidRequest
from training.device import accelerated
from training.params.sft import SftParams
from training.processes import Processes
from training.sharding import fsdp, redivided
from training.trainers.weights.precision import Precision
from training.tuners import tuner_of

A_GROUP_OF_ONE = {
    "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0",
}  # fmt: skip
"""What torchrun would say to a process that trains alone."""


def is_divided(params: SftParams) -> bool:
    """Whether something else than DDP goes on from its checkpoints."""
    return params.deepspeed is not None or params.fsdp is not None


def divides_weights(params: SftParams) -> bool:
    """Whether we divide the weights among processes, and not a library as it loads them."""
    return params.fsdp is not None or params.tensor_model_parallel_size > 1


@contextmanager
def loads_divided(params: SftParams, arguments: dict[str, Any], precision: Precision) -> Iterator[None]:
    """Have a model that is loaded within be divided at once, where it is to be: it may be too large for one device.

    transformers looks for DeepSpeed's configuration as it loads, through a weak reference: it has to be there first,
    and to stay. `arguments`: those of TrainingArguments. Raises InvalidRequest.
    """
    if Processes.of_environment().count == 1 and is_divided(params):
        os.environ.update(A_GROUP_OF_ONE)
    if divides_weights(params):
        fsdp.meet(params.ddp_backend, Processes.of_environment().local_rank)
    if params.deepspeed is None:
        yield
        return
    from transformers import TrainingArguments

    if precision.base == torch.bfloat16 and precision.autocast is None:
        raise InvalidRequest("DeepSpeed holds what learns in float32: leave bf16 out", param="bf16")
    if not accelerated():
        _use_cpu()
    kept = TrainingArguments(**arguments)
    _meet(kept)
    yield
    del kept


def keep_packed_apart(model: Any) -> None:
    """Have DDP leave quantised weights where they are: each process packs the same ones, and those of torchao cannot be
    sent as numbers."""
    packed = [name for name, weight in model.named_parameters() if is_quantized(weight)]
    if packed:
        model._ddp_params_and_buffers_to_ignore = packed  # DDP's own name for it


def _use_cpu() -> None:
    """Have DeepSpeed compute on CPUs without compiling anything first: a compiler may not be there."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _meet(args: Any) -> None:
    """Have DeepSpeed know the other processes, which it does not where transformers has met them on CPUs."""
    import deepspeed

    backend = args.ddp_backend or ("nccl" if args.device.type == "cuda" else "gloo")
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


class Redivided:
    """Goes before a Trainer among a class's bases: goes on from what DeepSpeed divided among another number of
    processes, which it would not load itself."""

    if TYPE_CHECKING:
        job: Any
        model_wrapped: Any
        _load_optimizer_and_scheduler: Any
        _load_scaler: Any

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        prepare = super()._prepare_for_training  # type: ignore[misc]  # the Trainer behind us
        if resume_from_checkpoint is None or self.job.params.deepspeed is None:
            return prepare(max_steps, train_dataloader, resume_from_checkpoint)
        checkpoint = Path(resume_from_checkpoint)
        if not redivided.is_of_others(checkpoint, Processes.of_environment().count):
            return prepare(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = prepare(max_steps, train_dataloader, None)
        redivided.load(checkpoint, self.model_wrapped)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        self._load_scaler(resume_from_checkpoint)
        return prepared


class InPlace:
    """Goes before a Trainer among a class's bases: leaves weights where `shard` has put them, which may be too many for
    one device."""

    if TYPE_CHECKING:
        job: Any

    def shard(self) -> None:
        """Divide the weights, where that is asked for: before anything keeps or trains them."""
        if divides_weights(self.job.params):
            self.is_distributed_loading_by_transformers = True  # it leaves model and gradients to us

    def _move_model_to_device(self, model: Any, device: Any) -> None:
        if not divides_weights(self.job.params):
            super()._move_model_to_device(model, device)  # type: ignore[misc]  # the Trainer behind us


class FullySharded(InPlace):
    """Goes before a Trainer among a class's bases: with the parameter `fsdp`, divides the weights, and gathers them
    for a checkpoint.

    transformers' own way by accelerate knows GPUs only; torch's functions do the same on CPUs.
    """

    if TYPE_CHECKING:
        args: Any
        model: Any
        optimizer: Any
        lr_scheduler: Any

    def shard(self) -> None:
        super().shard()
        how = self.job.params.fsdp
        if how is not None:
            fsdp.shard(self.model, self.args.device, how=how)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self.job.params.fsdp is None:
            super().save_model(output_dir, _internal_call)  # type: ignore[misc]
            return
        weights = fsdp.gathered(self.model, trained_only=tuner_of(self.job.params).makes == "adapter")
        if self.args.should_save:
            self._save(output_dir, weights)  # type: ignore[attr-defined]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.job.params.fsdp is None:
            super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
            return
        fsdp.save(Path(output_dir), self.model, self.optimizer.optimizer)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Also the weights, which could not be divided anew without it."""
        if self.job.params.fsdp is None or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
            return
        fsdp.load(Path(checkpoint), self.model, self.optimizer.optimizer)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))
