"""Training by pairs of answers, of which one is to become likelier than the other: TRL's trainer, on rows of ours."""

import shutil
from pathlib import Path
from typing import Any

from datasets import IterableDataset
from datasets.iterable_dataset import ExamplesIterable
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from trl import DPOConfig, DPOTrainer

from engines.errors import InvalidRequest
from training.params.rlhf import RlhfParams
from training.trainers.job import JobTrainer, Training
from training.trainers.model import load_base_config, load_for_training
from training.trainers.precision import hold
from training.tuners import tuner_of

REFERENCE = "ref"
"""What TRL calls its copy of the adapter that training starts with."""


class PairsTrainer(JobTrainer, DPOTrainer):  # type: ignore[misc]  # trl is untyped here
    """TRL's trainer on rows that have been tokenised: `prompt_ids`, `chosen_ids`, `rejected_ids`."""

    def __init__(self, job: Training[RlhfParams], **settings: Any) -> None:
        """`settings`: those of DPOConfig that make the method. Raises InvalidRequest."""
        _check_adapter(job)
        super().__init__(
            job,
            ref_model=_reference(job),
            args=DPOConfig(
                **job.arguments,
                **settings,
                router_aux_loss_coef=job.params.router_aux_loss_coef,
                max_length=None,  # the rows have been cut
                disable_dropout=True,  # model and reference are to differ by what was learned only
            ),
        )

    def _train_dataset(self, job: Training[RlhfParams]) -> Any:
        """TRL looks at the class of a stream, and takes none of ours; its rows come by `get_train_dataloader`."""
        stream = job.data.train
        return IterableDataset(ExamplesIterable(lambda: enumerate(stream), {})) if job.params.streaming else stream

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


def _check_adapter(job: Training[RlhfParams]) -> None:
    """Raises InvalidRequest for one that would not learn, or would change the reference too."""
    model = job.tuned.model
    if isinstance(model.get_output_embeddings(), BaseTunerLayer):  # TRL's loss takes its weight, past the adapter
        message = (
            f"{job.params.method} does not train an adapter on the output head: name other modules, or the head in "
            "modules_to_save"
        )
        raise InvalidRequest(message, param="target_modules")
    if isinstance(model, PeftModel) and model.active_peft_config.bias != "none":
        message = "the adapter has changed biases, which the reference would share: merge it into the model first"
        raise InvalidRequest(message, param="adapters")


def _reference(job: Training[RlhfParams]) -> Any:
    """The model to compare with, where it is not the trained one without what it learns: that needs no second copy.

    A copy computes with the same types, so that before the first step both say the same.
    """
    params, tuner = job.params, tuner_of(job.params)
    if params.ref_model is not None:
        changes = {"model": params.ref_model, "model_revision": params.ref_model_revision}
    elif tuner.makes == "model":
        changes = {}
    else:
        return None
    named = params.model_copy(update=changes)
    model = load_for_training(named, load_base_config(named), job.precision.base)
    if params.ref_model is None:
        hold(tuner.attach(model, params).model, job.precision)
    return model.requires_grad_(False)
