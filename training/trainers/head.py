"""Training of a model with a head: transformers' trainer, with a loss of what the head says of whole texts."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from training.trainers.job import JobTrainer, Training
from training.tuners import tuner_of


@dataclass(frozen=True, slots=True)
class Judged:
    """What one forward pass says of a batch."""

    loss: Tensor
    """Scalar: a mean of the batch."""
    seen: Tensor
    """(samples, numbers): what is measured from one log to the next."""


class HeadLoss(Protocol):
    def __call__(self, model: nn.Module, inputs: dict[str, Any]) -> Judged:
        """`inputs`: a batch, as the collator makes it."""
        ...

    def measure(self, seen: Tensor) -> dict[str, float]:
        """Metrics of the batches whose `seen` were put one under the other."""
        ...


class HeadTrainer(JobTrainer, Trainer):  # type: ignore[misc]  # transformers is untyped here
    """transformers' trainer with such a loss."""

    def __init__(self, job: Training[Any], *, data_collator: Any, loss: HeadLoss) -> None:
        super().__init__(job, args=TrainingArguments(**job.arguments), data_collator=data_collator)
        self.model_accepts_loss_kwargs = False  # the loss is a mean of each batch, not of all that are accumulated
        self._loss = loss
        self._seen: dict[str, list[Tensor]] = {"train": [], "eval": []}

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        judged = self._loss(model, inputs)
        self._seen["train" if model.training else "eval"].append(judged.seen.detach())
        loss = judged.loss
        if model.training and (penalty := self.job.tuned.penalty()) is not None:
            loss = loss + penalty
        return (loss, None) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        for mode, prefix, mark in (("train", "", "loss"), ("eval", "eval_", "eval_loss")):
            if mark in logs:
                logs |= {f"{prefix}{name}": value for name, value in self._measured(mode).items()}
        super().log(logs, start_time)

    def _measured(self, mode: str) -> dict[str, float]:
        """Over all processes; measuring begins anew."""
        seen, self._seen[mode] = self._seen[mode], []
        everywhere = gather_object([batch.float().cpu() for batch in seen])
        return self._loss.measure(torch.cat(everywhere)) if everywhere else {}

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """With config.json beside an adapter: how many labels the head has, and what they are, stands nowhere else."""
        super()._save(output_dir, state_dict)
        if tuner_of(self.job.params).makes == "adapter":
            self.model.get_base_model().config.save_pretrained(output_dir or self.args.output_dir)
