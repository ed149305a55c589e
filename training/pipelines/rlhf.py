"""Training by preferences: of two answers to the same prompt, one is to become likelier than the other (dpo).

TRL's trainer computes the loss; rows, arguments, checkpoints and events are those of supervised training.
"""

import shutil
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import set_seed
from trl import DPOConfig, DPOTrainer

from engines.errors import InvalidRequest
from training.arguments import trainer_arguments
from training.data import build
from training.folder import Result
from training.model import load_for_training, load_tokenizer_for
from training.params.rlhf import RlhfParams
from training.report import Report
from training.saved_args import with_saved_args, write_args
from training.trainer import Events, WholeCheckpoints, train
from training.tuners.loraplus import LoraPlus
from training.tuners.tuned import tuned

BETA = 0.1
REFERENCE = "ref"
"""What TRL calls its copy of the adapter that training starts with."""


def run(params: RlhfParams, report: Report) -> Result:
    """Raises TuneserveError, Stopped, and what the libraries raise."""
    params = with_saved_args(params)
    write_args(params, report.folder.path)
    set_seed(params.seed)
    tokenizer = load_tokenizer_for(params)
    data = build(params, tokenizer, learns="pairs")
    for note in data.notes:
        report.message(note, level="warn")
    report.message("Loading the model.")
    model = tuned(load_for_training(params), params)
    _check_adapter(model)
    evaluates = data.evaluation is not None
    arguments = trainer_arguments(params, report.folder.path, dtype=model.dtype, evaluates=evaluates)
    trainer = PairsTrainer(
        model=model,
        ref_model=_reference(params),
        args=DPOConfig(**arguments, **dpo_arguments(params)),
        train_dataset=data.train,
        eval_dataset=data.evaluation,
        processing_class=tokenizer,
    )
    trainer.job_params, trainer.job_report = params, report
    trainer.add_callback(Events(report, None if params.streaming else len(data.train)))
    return train(trainer, params, report)


def _check_adapter(model: Any) -> None:
    """Raises InvalidRequest for one that would not learn, or would change the reference too."""
    if isinstance(model.get_output_embeddings(), BaseTunerLayer):  # TRL's loss takes its weight, past the adapter
        message = "dpo does not train an adapter on the output head: name other modules, or the head in modules_to_save"
        raise InvalidRequest(message, param="target_modules")
    if isinstance(model, PeftModel) and model.active_peft_config.bias != "none":
        message = "the adapter has changed biases, which the reference would share: merge it into the model first"
        raise InvalidRequest(message, param="adapters")


def dpo_arguments(params: RlhfParams) -> dict[str, Any]:
    """What makes DPOConfig of transformers' arguments."""
    losses = _losses(params)
    return {
        "beta": BETA if params.beta is None else params.beta,
        "loss_type": list(losses),
        "loss_weights": list(losses.values()),
        "label_smoothing": params.label_smoothing,
        "max_length": None,  # the rows have been cut
        "disable_dropout": True,  # model and reference are to differ by what was learned only
    }


def _losses(params: RlhfParams) -> dict[str, float]:
    """TRL's names of the losses to add up, with their weights.

    With label smoothing e, DPO's loss is (1 - e) L(x) + e L(-x), where L(x) = -log sigmoid(x) (Mitchell 2023, "A note on
    DPO with noisy preferences"). TRL's `sigmoid` is L(x) whatever e is; its `robust` is (that with -e) / (1 - 2e). As
    L(-x) = L(x) + x, what is wanted is (2 - 2e) sigmoid - (1 - 2e) robust.
    """
    smoothing = params.label_smoothing
    losses = {"sigmoid": 2 - 2 * smoothing, "robust": 2 * smoothing - 1} if smoothing else {"sigmoid": 1.0}
    return losses | ({"sft": params.rpo_alpha} if params.rpo_alpha else {})


def _reference(params: RlhfParams) -> Any:
    """The model to compare with, where it is not the trained one without what it learns: that needs no second copy."""
    if params.ref_model is not None:
        changes = {"model": params.ref_model, "model_revision": params.ref_model_revision}
    elif params.train_type == "full":
        changes = {}
    else:
        return None
    if params.ref_model is not None or not params.resume_only_model:
        changes["resume_from_checkpoint"] = None  # what training started from, not what it had come to
    return load_for_training(params.model_copy(update=changes))


class PairsTrainer(LoraPlus, WholeCheckpoints, DPOTrainer):  # type: ignore[misc]  # trl is untyped here
    """TRL's trainer on rows that have been tokenised: `prompt_ids`, `chosen_ids`, `rejected_ids`."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None: the job's folder and its args.json say what was done."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        for metrics in self._metrics.values():
            metrics.pop("num_tokens", None)  # which forgets what an earlier attempt has seen
            if "mean_token_accuracy" in metrics:
                metrics["token_accuracy"] = metrics.pop("mean_token_accuracy")  # of the chosen answers
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Without the reference: it never changes, and a trainer that resumes would load nothing else."""
        super()._save(output_dir, state_dict)
        shutil.rmtree(Path(output_dir or self.args.output_dir) / REFERENCE, ignore_errors=True)
