"""Supervised training: transformers' trainer with our loss."""

from typing import Any

from transformers import Trainer, TrainingArguments

from training.accuracy import Accuracy
from training.generated import score_answers
from training.loss import answer_loss
from training.trainers.job import JobTrainer, Training


class SupervisedTrainer(JobTrainer, Trainer):  # type: ignore[misc]  # transformers is untyped here
    """transformers' trainer with our loss, which also says how many predictions were right."""

    def __init__(self, job: Training[Any], *, data_collator: Any) -> None:
        super().__init__(job, args=TrainingArguments(**job.arguments), data_collator=data_collator)
        self.model_accepts_loss_kwargs = True  # the loss is divided by the tokens of all accumulated batches
        self._accuracy = {"train": Accuracy(), "eval": Accuracy()}

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        learned = answer_loss(model, inputs, num_items_in_batch)
        self._accuracy["train" if model.training else "eval"].add(learned)
        loss = learned.loss
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # It was divided by the tokens of all processes, and is averaged over the processes.
            loss = loss * self.accelerator.num_processes
        return (loss, None) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        import torch

        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

    def evaluation_loop(self, dataloader: Any, *given: Any, metric_key_prefix: str = "eval", **named: Any) -> Any:
        output = super().evaluation_loop(dataloader, *given, metric_key_prefix=metric_key_prefix, **named)
        if self.job.params.predict_with_generate:
            scores = score_answers(self.model, dataloader.dataset, self.processing_class, self.job.params)
            output.metrics.update({f"{metric_key_prefix}_{name}": score for name, score in scores.items()})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        for mode, prefix, mark in (("train", "", "loss"), ("eval", "eval_", "eval_loss")):
            if mark in logs:
                logs |= self._accuracy[mode].taken(self.accelerator, self.job.params.acc_strategy, prefix)
        super().log(logs, start_time)
