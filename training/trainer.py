"""What a job adds to a trainer of transformers or TRL: events, an orderly stop, checkpoints that are whole."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from engines.adapters.disk import sync
from engines.errors import InvalidRequest
from training.folder import PARTIAL, Result
from training.params.sft import SftParams
from training.report import Report, Stopped
from training.saved_args import write_args


class WholeCheckpoints:
    """Goes before a Trainer among a class's bases: a checkpoint is there whole or not at all.

    Sets `job_params` and `job_report` before the first is written.
    """

    job_params: SftParams
    job_report: Report
    _saving = False

    if TYPE_CHECKING:
        args: Any
        state: Any
        accelerator: Any
        model: Any

    def _get_output_dir(self, trial: Any) -> str:
        folder = Path(self.args.output_dir)
        return str(folder / PARTIAL if self._saving else folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder, step = Path(self.args.output_dir), self.state.global_step
        grown = folder / PARTIAL / f"checkpoint-{step}"
        self._saving = True
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]  # the Trainer behind us
        finally:
            self._saving = False
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_args(self.job_params, grown)
            for path in grown.rglob("*"):
                sync(path)
            sync(grown)
            grown.rename(folder / grown.name)
            sync(folder)
            self._remove_old(folder)
        self.accelerator.wait_for_everyone()
        self.job_report.checkpoint(step)

    def _remove_old(self, folder: Path) -> None:
        """Keep `save_total_limit` checkpoints, the best and the newest among them."""
        limit = self.job_params.save_total_limit
        if limit is None:
            return
        steps = self.job_report.folder.checkpoints()
        kept = {steps[-1], *([self.state.best_global_step] if self.state.best_global_step in steps else [])}
        others = [step for step in steps if step not in kept]
        for step in others[: max(0, len(steps) - max(limit, len(kept)))]:
            shutil.rmtree(folder / f"checkpoint-{step}")


class Events(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Tells the report what the trainer does, and the trainer to stop."""

    def __init__(self, report: Report, rows: int | None) -> None:
        self._report = report
        self._rows = rows

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._report.started(total_steps=state.max_steps, rows=self._rows)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._stop_requested(args):
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.world_size == 1 and self._report.stop_requested:  # several processes stop together, at the next step
            raise Stopped

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs:
            epoch = state.epoch or 0.0
            self._report.step(state.global_step, total_steps=state.max_steps, epoch=epoch, logs=logs)
        elif "eval_loss" in logs:
            self._report.evaluation(state.global_step, logs)

    def _stop_requested(self, args: Any) -> bool:
        if args.world_size == 1:
            return self._report.stop_requested
        import torch

        requested = torch.tensor(float(self._report.stop_requested), device=args.device)
        torch.distributed.all_reduce(requested)
        return bool(requested)


def train(trainer: Any, params: SftParams, report: Report) -> Result:
    """Train to the end, or to where the report is told to stop; what was learned is in the last checkpoint.

    `trainer` is a Trainer with WholeCheckpoints. Raises InvalidRequest, Stopped, whatever else goes wrong.
    """
    resumed = _checkpoint_to_resume(params)
    with report.stop_deferred():
        if report.stop_requested:
            raise Stopped
        try:
            done = trainer.train(resume_from_checkpoint=resumed)
            metrics = {name: float(value) for name, value in done.metrics.items()}
        except Stopped:  # in an evaluation: the weights are those of the last step
            metrics = {}
        step = trainer.state.global_step
        if step and step not in report.folder.checkpoints():
            trainer._save_checkpoint(trainer.model, None)
    if report.stop_requested and step < trainer.state.max_steps:
        return Result(status="stopped", final_step=step)
    return Result(
        status="succeeded",
        artifact=f"checkpoint-{step}",
        kind="model" if params.train_type == "full" else "adapter",
        final_step=step,
        trained_tokens=int(trainer.state.num_input_tokens_seen),
        metrics={name: value for name, value in metrics.items() if name in ("train_runtime", "train_loss")},
    )


def _checkpoint_to_resume(params: SftParams) -> str | None:
    if params.resume_from_checkpoint is None or params.resume_only_model:
        return None
    folder = Path(params.resume_from_checkpoint).expanduser()
    for needed in ("trainer_state.json", "optimizer.pt"):
        if not (folder / needed).is_file():
            message = f"{folder.name} has no {needed}: with resume_only_model true, its weights alone can be used"
            raise InvalidRequest(message, param="resume_from_checkpoint")
    return str(folder)
