"""Trainings whose layers are divided among processes: what they ask of a trainer."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from engines.errors import InvalidRequest
from training.params.sft import SftParams
from training.processes import Processes
from training.sharding import tensor
from training.sharding.tensor import Meshes, Parts
from training.trainers.weights.divided import InPlace
from training.trainers.weights.own_norm import OwnNorm
from training.trainers.weights.precision import Precision
from training.tuners import tuner_of


class TensorDivided(InPlace, OwnNorm):
    """Goes before a Trainer among a class's bases: with `tensor_model_parallel_size` above 1, gives its processes the
    same batches by groups, and each a part of the layers.

    The Trainer trains and resumes such models on no CPU, and where it does, writes nothing that training goes on from:
    it is told that the model owns its placement, and what it would then leave out is done here.
    """

    _meshes: Meshes | None = None
    _parts: Parts

    if TYPE_CHECKING:
        job: Any
        args: Any
        model: Any
        optimizer: Any
        lr_scheduler: Any
        accelerator: Any
        gather_function: Any

    def shard(self) -> None:
        super().shard()
        size = self.job.params.tensor_model_parallel_size
        if size > 1:
            self._meshes = tensor.meshes(self.args.device.type, self.args.world_size, size)
            tensor.divide(self.model, self._meshes.tensor, self.args.device)
            self._parts = Parts(self.model, self._meshes)

    @property
    def _copies(self) -> int:
        """Processes that have the same batch."""
        return self._meshes.tensor.size() if self._meshes else 1

    def _sync_replicated_trainable_parameters(self, model: Any) -> None:
        """transformers' averages gradients of weights that are not divided by a way that gloo has not, and leaves the
        others as they are."""
        if self._meshes is None:
            super()._sync_replicated_trainable_parameters(model)  # type: ignore[misc]

    # ---- batches

    def get_train_dataloader(self) -> Any:
        return self._shared(super().get_train_dataloader())  # type: ignore[misc]

    def get_eval_dataloader(self, *given: Any) -> Any:
        return self._shared(super().get_eval_dataloader(*given))  # type: ignore[misc]

    def _shared(self, loader: Any) -> Any:
        """`loader`, with the same batches in all processes of a group: accelerate has given each its own."""
        if self._copies > 1 and not getattr(loader, "is_shared", False):
            loader.is_shared = True
            loader.batch_sampler.num_processes //= self._copies
            loader.batch_sampler.process_index //= self._copies
        return loader

    def get_total_train_batch_size(self, args: Any) -> int:
        total: int = super().get_total_train_batch_size(args)  # type: ignore[misc]
        return total // self._copies

    def _track_num_input_tokens(self, inputs: Mapping[str, Any]) -> None:
        if self._meshes is not None and self._meshes.tensor.get_local_rank() > 0:  # the first of a group counts
            inputs = {name: each[:0] for name, each in inputs.items()}
        super()._track_num_input_tokens(inputs)  # type: ignore[misc]

    def evaluation_loop(self, *given: Any, **named: Any) -> Any:
        if self._meshes is not None:
            self.gather_function = self._gathered_once
        return super().evaluation_loop(*given, **named)  # type: ignore[misc]

    def _gathered_once(self, losses: torch.Tensor) -> torch.Tensor:
        """(numbers,) of each process -> those of the first in each group, without those that only fill up the last
        batch; accelerate's `gather_for_metrics`."""
        every = self.accelerator.gather(losses).view(-1, self._copies, len(losses))[:, 0].flatten()
        ended = self.accelerator.gradient_state
        return every[: ended.remainder] if ended.end_of_dataloader and ended.remainder > 0 else every

    # ---- a step

    def training_step(self, *given: Any, **named: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*given, **named)  # type: ignore[misc]
        if self._meshes is not None and self.accelerator.sync_gradients:
            self._parts.share_gradients()
        return loss

    def _clipped(self, model: Any, most: float) -> torch.Tensor | None:
        return self._parts.clip(most) if self._meshes is not None else super()._clipped(model, most)

    def create_optimizer(self, *given: Any) -> Any:
        if self._meshes is None:
            return super().create_optimizer(*given)  # type: ignore[misc]
        with self._parts.in_place(self.model):
            made = super().create_optimizer(*given)  # type: ignore[misc]
        made.register_step_post_hook(lambda *_: self._parts.forget_gradients())
        return made

    # ---- checkpoints

    @property
    def _leaves_the_base(self) -> bool:
        return tuner_of(self.job.params).makes == "adapter"

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self._meshes is None:
            super().save_model(output_dir, _internal_call)  # type: ignore[misc]
            return
        with tensor.whole(self.model, here=self.args.should_save, trained_only=self._leaves_the_base):
            if self.args.should_save:
                self._save(output_dir)  # type: ignore[attr-defined]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._meshes is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
            return
        with tensor.whole(self.model, here=True, trained_only=self._leaves_the_base, changed=True):
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._meshes is None:
            super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
            return
        state = self._parts.gathered(self.optimizer.optimizer, here=self.args.should_save)
        if state is not None:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self._meshes is None or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
            return
        state = torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
        optimizer = self.optimizer.optimizer
        optimizer.load_state_dict(self._parts.divided(optimizer, state))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Processes of a group draw the same noise and leave out the same numbers; those of a checkpoint may have been
        none."""
        super()._load_rng_state(checkpoint)  # type: ignore[misc]
        if self._meshes is not None and checkpoint is not None:
            tensor.draw_alike(self._meshes.tensor, self.args.device)


def check_layers(params: SftParams, config: Any, precision: Precision) -> None:
    """`config`: a `PreTrainedConfig`. Raises InvalidRequest, UnsupportedModel where the processes here cannot divide
    the layers of its model as `params` say."""
    size, count = params.tensor_model_parallel_size, Processes.of_environment().count
    if size == 1:
        return
    tensor.check(config, size)
    if precision.autocast == torch.float16:
        message = "in float16 each process would scale its part of the gradients by itself: set bf16"
        raise InvalidRequest(message, param=tensor.PARAM)
    if count % size and not params.dry_run:
        message = f"{count} {'process does' if count == 1 else 'processes do'} not make groups of {size}"
        raise InvalidRequest(message, param=tensor.PARAM)
