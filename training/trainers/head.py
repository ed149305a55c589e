"""Training of a model with a head: transformers' trainer, with a loss of what the head says of whole texts."""

from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from training.losses.head import HeadLoss
from training.trainers.batch_loss import BatchLossTrainer, Mode, mode_of
from training.trainers.job.job import Training
from training.tuners import tuner_of


class HeadTrainer(BatchLossTrainer):
    def __init__(self, job: Training[Any], *, data_collator: Any, loss: HeadLoss) -> None:
        super().__init__(job, data_collator=data_collator)
        self._loss = loss
        self._seen: dict[Mode, list[Tensor]] = {"train": [], "eval": []}

    def batch_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        judged = self._loss(model, inputs)
        self._seen[mode_of(model)].append(judged.seen.detach())
        return judged.loss

    def measured(self, mode: Mode) -> dict[str, float]:
        """Over all processes; measuring begins anew."""
        seen, self._seen[mode] = self._seen[mode], []
        everywhere = gather_object([batch.float().cpu() for batch in seen])
        return self._loss.measure(torch.cat(everywhere)) if everywhere else {}

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """With config.json beside an adapter: how many labels the head has, and what they are, stands nowhere else."""
        super()._save(output_dir, state_dict)
        if tuner_of(self.job.params).makes == "adapter":
            self.model.get_base_model().config.save_pretrained(output_dir or self.args.output_dir)
