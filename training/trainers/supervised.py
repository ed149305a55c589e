"""Supervised training: transformers' trainer with our loss."""

from typing import Any

from torch import Tensor
from transformers import Trainer, TrainingArguments

from engines.errors import UnsupportedModel
from training.losses.answers import answer_loss
from training.losses.tokens import LOSSES, TokenLoss
from training.params.choices import TOKEN_LOSSES
from training.params.sft import SftParams
from training.plugins import load
from training.trainers.answers.generated import check_asks, score_answers
from training.trainers.batches.accuracy import Accuracy
from training.trainers.job.job import JobTrainer, Training
from training.trainers.sequence import SequenceDivided
from training.trainers.weights.tensor import TensorDivided


class SupervisedTrainer(SequenceDivided, TensorDivided, JobTrainer, Trainer):  # type: ignore[misc]  # transformers is untyped here
    """transformers' trainer with our loss, which also says how many predictions were right."""

    def __init__(self, job: Training[Any], *, data_collator: Any) -> None:
        if job.params.predict_with_generate and job.data.evaluation is not None:
            check_asks(job.data.evaluation)
        super().__init__(job, args=TrainingArguments(**job.arguments), data_collator=data_collator)
        self.divide_sequences()
        self.model_accepts_loss_kwargs = True  # the loss is divided by the tokens of all accumulated batches
        self._aux_loss_coef = aux_loss_coef(job)
        self._token_loss = token_loss(job.params)
        self._accuracy = {"train": Accuracy(), "eval": Accuracy()}

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if self._aux_loss_coef:
            inputs = inputs | {"output_router_logits": True}
        batch = self.part_of(inputs) if model.training else inputs
        learned = answer_loss(model, batch, num_items_in_batch, self._token_loss)
        self._accuracy["train" if model.training else "eval"].add(learned)
        loss = learned.loss
        if model.training:  # what is averaged over all processes is a sum of these parts
            loss = loss * self.parts
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # It was divided by the tokens of all processes, and is averaged over the processes.
            loss = loss * self.accelerator.num_processes
        if self._aux_loss_coef:
            if learned.aux_loss is None:
                raise UnsupportedModel("the model computes no such loss: set it to 0", param="router_aux_loss_coef")
            # A mean of the batch, which is to count once a step, not once a batch that is accumulated.
            batches = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
            loss = loss + self._aux_loss_coef * learned.aux_loss / batches
        if model.training and (penalty := self.job.tuned.penalty()) is not None:
            loss = loss + penalty / self.current_gradient_accumulation_steps  # of each step once
        return (loss, None) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        import torch

        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

    def evaluation_loop(self, dataloader: Any, *given: Any, metric_key_prefix: str = "eval", **named: Any) -> Any:
        output = super().evaluation_loop(dataloader, *given, metric_key_prefix=metric_key_prefix, **named)
        if self.job.params.predict_with_generate:
            with self.accelerator.autocast():
                scores = score_answers(self.model, dataloader.dataset, self.processing_class, self.job.params)
            output.metrics.update({f"{metric_key_prefix}_{name}": score for name, score in scores.items()})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        for mode, prefix, mark in (("train", "", "loss"), ("eval", "eval_", "eval_loss")):
            if mark in logs:
                logs |= self._accuracy[mode].taken(self.accelerator, self.job.params.acc_strategy, prefix)
        super().log(logs, start_time)


def token_loss(params: SftParams) -> TokenLoss | None:
    """The loss of a token that `loss_type` names; None: the cross entropy. Raises InvalidRequest."""
    name = params.loss_type
    if name is None or name == "nll":
        return None
    if name in LOSSES:
        return LOSSES[name]
    plugin = load(params.custom_register_path).find("loss", name, built_in=TOKEN_LOSSES)

    def lost(logits: Tensor, labels: Tensor) -> Tensor:
        losses = plugin(logits, labels)
        if not isinstance(losses, Tensor) or losses.shape != labels.shape:
            made = f"a tensor of shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
            raise plugin.refused(f"it must return what each of {len(labels)} tokens loses, not {made}")
        return losses

    return lost


def aux_loss_coef(job: Training[Any]) -> float:
    """Weight of the auxiliary loss; 0 where the model has none."""
    config, given = job.tuned.model.config.get_text_config(), job.params.router_aux_loss_coef
    if not hasattr(config, "output_router_logits"):
        return 0
    return float(getattr(config, "router_aux_loss_coef", 0) if given is None else given)
