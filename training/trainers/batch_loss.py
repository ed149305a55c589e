"""transformers' trainer with a loss that is a mean of each batch: what methods that learn so have in common."""

from abc import abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from training.trainers.job.job import JobTrainer, Training

Mode = Literal["train", "eval"]


def mode_of(model: Any) -> Mode:
    return "train" if model.training else "eval"


class BatchLossTrainer(JobTrainer, Trainer):  # type: ignore[misc]  # transformers is untyped here
    def __init__(self, job: Training[Any], *, data_collator: Any, **changes: Any) -> None:
        """`changes`: settings of TrainingArguments that are not the job's."""
        super().__init__(job, args=TrainingArguments(**job.arguments | changes), data_collator=data_collator)
        self.model_accepts_loss_kwargs = False  # the loss is not one of all batches that are accumulated

    @abstractmethod
    def batch_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Scalar. `inputs`: a batch, as the collator makes it; a copy that may be changed."""

    @abstractmethod
    def measured(self, mode: Mode) -> dict[str, float]:
        """Metrics of what was seen since they were asked for last."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss = self.batch_loss(model, dict(inputs))
        if model.training and (penalty := self.job.tuned.penalty()) is not None:
            loss = loss + penalty
        return (loss, None) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        modes: tuple[tuple[Mode, str, str], ...] = (("train", "", "loss"), ("eval", "eval_", "eval_loss"))
        for mode, prefix, mark in modes:
            if mark in logs:
                logs |= {f"{prefix}{name}": value for name, value in self.measured(mode).items()}
        super().log(logs, start_time)
