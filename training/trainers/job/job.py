"""What a job adds to a trainer of transformers: the tuner's part, whole checkpoints, and how it ended."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import PrinterCallback
from transformers.integrations import TensorBoardCallback

from engines.adapters.disk import sync
from engines.errors import InvalidRequest
from training.data import Datasets
from training.data.digest import Rows
from training.discreet import make_discreet
from training.folder import PARTIAL, Result
from training.hub.upload import END, Uploads
from training.optimizers import optimizer_of
from training.params.sft import SftParams
from training.report import Report, Stopped
from training.sharding import fsdp
from training.trainers.job.arguments import on_one_device
from training.trainers.job.curves import Curves
from training.trainers.job.events import Events
from training.trainers.job.finite import check_loss, check_weights
from training.trainers.job.reporters import end_reports, guard_reporters
from training.trainers.job.write_args import write_args
from training.trainers.weights.divided import FullySharded, Redivided, is_divided
from training.trainers.weights.heap import give_back, give_back_now
from training.trainers.weights.low_rank import in_one_piece
from training.trainers.weights.narrow import NarrowedGradients, gradients_stay, narrows
from training.trainers.weights.precision import Precision, keep_no_casts, return_as_computed
from training.trainers.weights.tied import add_in_place
from training.tuners import tuner_of
from training.tuners.base import Tuned

P = TypeVar("P", bound=SftParams)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training(Generic[P]):
    """What a trainer is made of."""

    params: P
    report: Report
    tuned: Tuned
    precision: Precision
    tokenizer: Any
    data: Datasets
    arguments: dict[str, Any]
    """Settings of transformers' TrainingArguments."""
    rows: Rows | None = None
    """Those of `data` that are learned from, where they are known."""
    uploads: Uploads | None = None
    """What takes checkpoints to the hub, in the process that writes them."""


class JobTrainer(Redivided, FullySharded, NarrowedGradients):
    """Goes before a Trainer among a class's bases: does the tuner's and the optimizer's part, tells the report what
    happens, and writes checkpoints that are there whole or not at all."""

    _saving = False

    if TYPE_CHECKING:
        args: Any
        state: Any
        control: Any
        accelerator: Any
        model: Any
        add_callback: Any
        remove_callback: Any
        pop_callback: Any
        callback_handler: Any
        data_collator: Any
        train_dataset: Any
        eval_dataset: Any

    def __init__(self, job: Training[Any], **settings: Any) -> None:
        """`settings`: those of the Trainer behind this class that differ between methods."""
        self.job = job
        on_one_device(settings["args"])
        super().__init__(  # type: ignore[call-arg]  # the Trainer behind us
            model=job.tuned.model,
            train_dataset=self._train_dataset(job),
            eval_dataset=job.data.evaluation,
            processing_class=job.tokenizer,
            **settings,
        )
        keep_no_casts(self.accelerator)
        self.shard()
        if not is_divided(job.params):
            in_one_piece(job.tuned.model)
        if self.args.device.type == "cpu":
            give_back(job.tuned.model)
            if gradients_stay(job.params):
                add_in_place(job.tuned.model)
            if narrows(job.params, job.precision):
                self.narrow_gradients(job.tuned.model)
        self.remove_callback(PrinterCallback)  # a line of the log for each step: the events have it
        rows = None if job.params.streaming else len(job.data.train)
        changing = optimizer_of(job.params).callbacks(job.tuned.model, job.params)
        for callback in (*job.tuned.callbacks(), *changing, Events(job.report, rows)):
            self.add_callback(callback)
        if job.report.discreet and self.pop_callback(TensorBoardCallback):
            self.add_callback(Curves())
        guard_reporters(self.callback_handler.callbacks, job.params, job.report)

    def _train_dataset(self, job: Training[Any]) -> Any:
        return job.data.train

    def get_train_dataloader(self) -> Any:
        """A stream has shared itself out among the processes, which accelerate would do again."""
        if not self.job.params.streaming:
            return super().get_train_dataloader()  # type: ignore[misc]
        loader = DataLoader(
            self.job.data.train,
            batch_size=self.args.train_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return prepare_data_loader(
            loader,
            self.accelerator.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            dispatch_batches=False,  # which gives all processes what the first one reads
        )

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        return_as_computed(self.model)
        return prepared

    def create_optimizer(self, *given: Any) -> Any:
        chosen, model = optimizer_of(self.job.params), given[0] if given else self.model
        self.optimizer: Any = chosen.make(model, self.job.params, self.args, steps=self.state.max_steps)
        return super().create_optimizer(*given)

    def _show_weights(self) -> None:
        """Have the model hold the weights to judge and save, where they are others than gradients are taken at. The
        next step turns them back."""
        if hasattr(self.optimizer, "eval"):
            self.optimizer.eval()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        tuned = self.job.tuned
        super()._save(output_dir, tuned.weights() if state_dict is None else tuned.as_loaded(state_dict))  # type: ignore[misc]
        self.job.tuned.saved(Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.job.params.fsdp is not None:  # they come with the optimizer
            return
        weights = self.job.tuned.resume(Path(resume_from_checkpoint))
        if weights is not None:
            super()._load_from_checkpoint(str(weights), model)  # type: ignore[misc]

    def _get_output_dir(self, trial: Any) -> str:
        folder = Path(self.args.output_dir)
        return str(folder / PARTIAL if self._saving else folder)

    def _maybe_log_save_evaluate(self, tr_loss: Any, *given: Any, **named: Any) -> None:
        if self.control.should_evaluate or self.control.should_save:  # a log looks by itself
            check_loss(tr_loss, self.args, self.state.global_step)
        super()._maybe_log_save_evaluate(tr_loss, *given, **named)  # type: ignore[misc]  # the Trainer behind us

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder, step = Path(self.args.output_dir), self.state.global_step
        check_weights(self.model, self.args, step)
        grown = folder / PARTIAL / f"checkpoint-{step}"
        self._show_weights()
        if self.args.device.type == "cpu":
            give_back_now()
        self._saving = True
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]  # the Trainer behind us
        finally:
            self._saving = False
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_args(self.job.params, grown, self.job.tuned.model, self.job.rows)
            if self.job.report.discreet:
                make_discreet(grown)
            for path in grown.rglob("*"):
                sync(path)
            sync(grown)
            grown.rename(folder / grown.name)
            sync(folder)
            if self.job.uploads is not None:
                ended = step >= self.state.max_steps
                self.job.uploads.add(folder / grown.name, END if ended else f"Training in progress, step {step}")
            self._remove_old(folder)
        self.accelerator.wait_for_everyone()
        self.job.report.checkpoint(step)

    def _remove_old(self, folder: Path) -> None:
        """Keep `save_total_limit` checkpoints, the best and the newest among them."""
        limit = self.job.params.save_total_limit
        if limit is None:
            return
        steps = self.job.report.folder.checkpoints()
        kept = {steps[-1], *([self.state.best_global_step] if self.state.best_global_step in steps else [])}
        others = [step for step in steps if step not in kept]
        for step in others[: max(0, len(steps) - max(limit, len(kept)))]:
            if self.job.uploads is None or not self.job.uploads.needs(folder / f"checkpoint-{step}"):
                shutil.rmtree(folder / f"checkpoint-{step}")


def train(trainer: Any) -> Result:
    """Train to the end, or to where the report is told to stop; what was learned is in the last checkpoint.

    `trainer` is a Trainer behind a JobTrainer. Raises InvalidRequest, Stopped, whatever else goes wrong.
    """
    params, report = trainer.job.params, trainer.job.report
    resumed = _checkpoint_to_resume(params)
    if resumed is not None and is_divided(params) and tuner_of(params).makes == "adapter":
        trainer.job.tuned.resume(Path(resumed))  # whether it is of this shape: what loads the weights does not ask
    with report.stop_deferred():
        if report.stop_requested:
            raise Stopped
        try:
            done = trainer.train(resume_from_checkpoint=resumed)
            metrics = {name: float(value) for name, value in done.metrics.items()}
        except Stopped:  # in an evaluation: the weights are those of the last step
            metrics = {}
        except Exception as error:
            end_reports(error)
            raise
        end_reports(None)
        step = trainer.state.global_step
        if step and step not in report.folder.checkpoints():
            trainer._save_checkpoint(trainer.model, None)
    if report.stop_requested and step < trainer.state.max_steps:
        return Result(status="stopped", final_step=step)
    if trainer.job.uploads is not None:
        trainer.job.uploads.finish()
    return Result(
        status="succeeded",
        artifact=f"checkpoint-{step}",
        kind=tuner_of(params).makes,
        task_type=params.task_type,
        final_step=step,
        trained_tokens=int(trainer.state.num_input_tokens_seen),
        metrics={name: value for name, value in metrics.items() if name in ("train_runtime", "train_loss")},
    )


def _checkpoint_to_resume(params: SftParams) -> str | None:
    if params.resume_from_checkpoint is None:
        return None
    folder = Path(params.resume_from_checkpoint).expanduser()
    for needed in ("trainer_state.json", _optimizer_of(params)):
        if not (folder / needed).exists():
            message = f"{folder.name} has no {needed}: with resume_only_model true, its weights alone can be used"
            raise InvalidRequest(message, param="resume_from_checkpoint")
    return str(folder)


def _optimizer_of(params: SftParams) -> str:
    """Where in a checkpoint what the optimizer keeps is."""
    return fsdp.FOLDER if params.fsdp else "latest" if params.deepspeed else "optimizer.pt"
