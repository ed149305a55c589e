"""Supervised training: of answers (sft), or of plain text (pt)."""

from typing import Any, Literal

from transformers import Trainer, TrainingArguments, set_seed

from training.accuracy import Accuracy
from training.arguments import trainer_arguments
from training.collate import Packed, Padded
from training.data import build
from training.folder import Result
from training.generated import score_answers
from training.loss import answer_loss
from training.model import load_for_training, load_tokenizer_for
from training.params.sft import PtParams, SftParams
from training.report import Report
from training.saved_args import with_saved_args, write_args
from training.trainer import Events, WholeCheckpoints, train
from training.tuners.loraplus import LoraPlus
from training.tuners.pissa import Pissa
from training.tuners.tuned import tuned


def run(params: SftParams, report: Report) -> Result:
    """Raises TuneserveError, Stopped, and what the libraries raise."""
    params = with_saved_args(params)
    write_args(params, report.folder.path)
    learns: Literal["text", "answers"] = "text" if isinstance(params, PtParams) else "answers"
    set_seed(params.seed)
    tokenizer = load_tokenizer_for(params)
    data = build(params, tokenizer, learns=learns)
    for note in data.notes:
        report.message(note, level="warn")
    report.message("Loading the model.")
    model = tuned(load_for_training(params), params)
    evaluates = data.evaluation is not None
    arguments = trainer_arguments(params, report.folder.path, dtype=model.dtype, evaluates=evaluates)
    trainer = SftTrainer(
        model=model,
        args=TrainingArguments(**arguments),
        data_collator=Packed() if params.packing else Padded(tokenizer.pad_token_id, params.padding_side),
        train_dataset=data.train,
        eval_dataset=data.evaluation,
        processing_class=tokenizer,
    )
    trainer.job_params, trainer.job_report = params, report
    trainer.add_callback(Events(report, None if params.streaming else len(data.train)))
    return train(trainer, params, report)


class SftTrainer(Pissa, LoraPlus, WholeCheckpoints, Trainer):  # type: ignore[misc]  # transformers is untyped here
    """transformers' trainer with our loss, which also says how many predictions were right."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
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
        if self.job_params.predict_with_generate:
            scores = score_answers(self.model, dataloader.dataset, self.processing_class, self.job_params)
            output.metrics.update({f"{metric_key_prefix}_{name}": score for name, score in scores.items()})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        for mode, prefix, mark in (("train", "", "loss"), ("eval", "eval_", "eval_loss")):
            if mark in logs:
                logs |= self._accuracy[mode].taken(self.accelerator, self.job_params.acc_strategy, prefix)
        super().log(logs, start_time)
