"""What a pipeline tells whoever waits for the job, and what it is told: to stop."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal

from engines.errors import TuneserveError
from training.discreet import without_folders
from training.folder import Checkpoint, Evaluation, Event, JobFolder, Message, Started, Step

NOT_A_MEASURE = frozenset(
    {"epoch", "total_flos", "num_input_tokens_seen", "train_runtime", "train_tokens_per_second"}
    | {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
)
"""What transformers logs besides measurements."""


MOST_TOLD = 10_000
"""Parts of a training of each of which one step and one evaluation are told: more makes nothing clearer, and each is a
line of a file and a row of a table."""


class Stopped(Exception):
    """SIGTERM came, and there is nothing that has to be kept first."""


class Diverged(TuneserveError):
    """The loss is no number any more: every further step would be in vain."""

    code = "training_diverged"


class Report:
    """Appends to the folder's events. In a training by several processes, all but the first of them are silent.

    Messages and checkpoints are told whatever their number; of steps and evaluations the first of each of `MOST_TOLD`
    parts of the training, the last step, and what was evaluated at a checkpoint.
    """

    discreet = False
    """Whether nothing that is told or written for others may name folders of this machine."""

    def __init__(self, folder: JobFolder, *, silent: bool = False) -> None:
        self.folder = folder
        self.stop_requested = False
        self._silent = silent
        self._deferred = False
        self._total_steps = 0
        self._parts: dict[type[Step | Evaluation], int] = {}
        """The part of the training that was last told of, by steps and by evaluations."""
        self._untold: Evaluation | None = None

    # ---- told

    def message(self, text: str, level: Literal["info", "warn", "error"] = "info") -> None:
        said = without_folders(text) if self.discreet else text
        self._append(Message(time=time.time(), level=level, message=said))

    def started(self, *, total_steps: int, rows: int | None) -> None:
        self._total_steps = total_steps
        self._append(Started(time=time.time(), total_steps=total_steps, rows=rows))

    def step(self, step: int, *, total_steps: int, epoch: float, logs: dict[str, float]) -> bool:
        """Whether it was told. Raises Diverged."""
        metrics = {name: float(value) for name, value in logs.items() if name not in NOT_A_MEASURE}
        self._check(step, metrics)
        if due := self._is_due(Step, step):
            self._append(Step(time=time.time(), step=step, total_steps=total_steps, epoch=epoch, metrics=metrics))
        return due

    def evaluation(self, step: int, logs: dict[str, float]) -> bool:
        """Whether it was told."""
        named = {name.removeprefix("eval_"): value for name, value in logs.items() if name not in NOT_A_MEASURE}
        metrics = {name: float(value) for name, value in named.items() if math.isfinite(value)}
        event = Evaluation(time=time.time(), step=step, metrics=metrics)
        due = self._is_due(Evaluation, step)
        if due:
            self._append(event)
        self._untold = None if due else event
        return due

    def checkpoint(self, step: int) -> None:
        if self._untold is not None and self._untold.step == step:
            self._append(self._untold)
            self._untold = None
        self._append(Checkpoint(time=time.time(), step=step, path=f"checkpoint-{step}"))

    def _is_due(self, kind: type[Step | Evaluation], step: int) -> bool:
        part = step * MOST_TOLD // max(self._total_steps, MOST_TOLD)
        if self._parts.get(kind) == part and step != self._total_steps:
            return False
        self._parts[kind] = part
        return True

    def _check(self, step: int, metrics: dict[str, float]) -> None:
        strays = [name for name, value in metrics.items() if not math.isfinite(value)]
        if "loss" in strays:
            raise Diverged(f"the loss of step {step} is not a number: try a lower learning_rate", param="learning_rate")
        for name in strays:  # a norm of gradients may be, of a step that was left out
            del metrics[name]

    def _append(self, event: Event) -> None:
        if not self._silent:
            self.folder.append(event)

    # ---- is told

    def heed_signals(self) -> None:
        """From now on SIGTERM raises Stopped, or, where it is deferred, sets `stop_requested`."""
        signal.signal(signal.SIGTERM, self._on_signal)

    @contextmanager
    def stop_deferred(self) -> Iterator[None]:
        """Within, whoever runs looks at `stop_requested` where it suits."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stop_requested = True
        if not self._deferred:
            raise Stopped
