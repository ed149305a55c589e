"""What a trainer does, told to the report; and the trainer's orderly stop."""

from typing import Any

from transformers import TrainerCallback

from training.report import Report, Stopped
from training.trainers.weights.processes import in_any_process


class Events(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Tells the report what the trainer does, and the trainer to stop."""

    def __init__(self, report: Report, rows: int | None) -> None:
        self._report = report
        self._rows = rows

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._report.started(total_steps=state.max_steps, rows=self._rows)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if in_any_process(self._report.stop_requested, args):
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.world_size == 1 and self._report.stop_requested:  # several processes stop together, at the next step
            raise Stopped

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        told = True
        if "loss" in logs:
            epoch = state.epoch or 0.0
            told = self._report.step(state.global_step, total_steps=state.max_steps, epoch=epoch, logs=logs)
        elif "eval_loss" in logs:
            told = self._report.evaluation(state.global_step, logs)
        if not told:  # each checkpoint has the whole history in it
            state.log_history.pop()
