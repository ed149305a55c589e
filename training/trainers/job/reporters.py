"""Where metrics go besides the job's events: whether we are let in there, before anything is loaded, and what happens
where one of them fails."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import SwanLabCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from engines.checkpoint.hub import hub_errors, reason_of
from engines.errors import InvalidRequest
from training.params.sft import SftParams
from training.report import Report, Stopped

log = logging.getLogger(__name__)

EVENTS = sorted(name for name in vars(TrainerCallback) if name.startswith("on_"))
NAMES = ("WANDB_NAME", "SWANLAB_EXP_NAME")
"""Environment variables by which a user names the run there."""


def reporters(params: SftParams) -> list[str]:
    """Names of those that `params` asks for."""
    if params.report_to == ("all",):
        return list(get_available_reporting_integrations())
    return [name for name in params.report_to if name != "none"]


def check_reporters(params: SftParams) -> None:
    """Raises InvalidRequest for one that does not let us in: it would say so only once the model is loaded."""
    for name in reporters(params):
        if name in LOGINS:
            LOGINS[name]()


def run_name(folder: Path) -> str | None:
    """What the run is called there: after its folder, unless the user says otherwise."""
    return None if any(os.environ.get(name) for name in NAMES) else folder.name


def _log_in_to_wandb() -> None:
    import wandb

    mended = "`wandb login` or WANDB_API_KEY lets you in, WANDB_MODE=offline needs no account"
    try:
        wandb.login()
    except wandb.Error as error:
        raise _refused("wandb", _line(error), mended) from error


def _log_in_to_swanlab() -> None:
    import swanlab

    if os.environ.get("SWANLAB_MODE", "cloud") not in ("cloud", "online"):
        return
    mended = "`swanlab login` or SWANLAB_API_KEY lets you in, SWANLAB_MODE=offline needs no account"
    try:
        swanlab.login()
    except Exception as error:
        raise _refused("swanlab", _line(error), mended) from error


def _log_in_to_trackio() -> None:
    """It writes files here, unless a Space of the hub is to have them."""
    space = os.environ.get("TRACKIO_SPACE_ID")
    if not space:
        return
    from huggingface_hub import HfApi

    try:
        HfApi().whoami()
    except hub_errors() as error:
        mended = f"`hf auth login` or HF_TOKEN lets you in; without TRACKIO_SPACE_ID ({space}) it needs no account"
        raise _refused("trackio", reason_of(error), mended) from error


LOGINS: dict[str, Callable[[], None]] = {
    "swanlab": _log_in_to_swanlab,
    "trackio": _log_in_to_trackio,
    "wandb": _log_in_to_wandb,
}


def _refused(name: str, reason: str, mended: str) -> InvalidRequest:
    return InvalidRequest(f"{name} cannot report ({reason}): {mended}", param="report_to")


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "").rstrip(".") or type(error).__name__


def guard(callback: Any, name: str, report: Report) -> None:
    """Have `callback` end a training that has not begun, and no other: one that fails later is told of, once, and is
    called no more."""
    calls = _Guarded(name, report)
    for event in EVENTS:
        setattr(callback, event, partial(calls, event, getattr(callback, event)))


class _Guarded:
    def __init__(self, name: str, report: Report) -> None:
        self._name = name
        self._report = report
        self._lost = False

    def __call__(self, event: str, method: Callable[..., Any], *given: Any, **named: Any) -> Any:
        if self._lost:
            return None
        try:
            return method(*given, **named)
        except Stopped:
            raise
        except Exception as error:
            if event in ("on_init_end", "on_train_begin"):
                raise InvalidRequest(f"{self._name} cannot report: {_line(error)}", param="report_to") from error
            self._lost = True
            log.warning("%s failed", self._name, exc_info=error)
            told = f"{self._name} gets no more of this training: {_line(error)}. The training goes on."
            self._report.message(told, level="warn")
            return None


class _SwanLab:
    """swanlab, whose `get_run` has said None since 0.10 by an error, which transformers does not expect."""

    def __init__(self, swanlab: Any) -> None:
        self._swanlab = swanlab

    def __getattr__(self, name: str) -> Any:
        return getattr(self._swanlab, name)

    def get_run(self) -> Any:
        try:
            return self._swanlab.get_run()
        except RuntimeError:
            return None


def guard_reporters(callbacks: list[Any], params: SftParams, report: Report) -> None:
    """`callbacks`: those of a trainer."""
    for callback in callbacks:
        if isinstance(callback, SwanLabCallback):
            callback._swanlab = _SwanLab(callback._swanlab)
        for name in reporters(params):
            if isinstance(callback, INTEGRATION_TO_CALLBACK[name]):
                guard(callback, name, report)


def end_reports(error: Exception | None) -> None:
    """Tell those who keep how a run has ended: with an error, or without. Left alone they take any end of the process
    for a success."""
    wandb, swanlab = sys.modules.get("wandb"), sys.modules.get("swanlab")
    if wandb is not None and wandb.run is not None:
        with _noted("wandb"):
            wandb.finish(exit_code=0 if error is None else 1)
    if swanlab is not None and _SwanLab(swanlab).get_run() is not None:
        with _noted("swanlab"):
            swanlab.finish() if error is None else swanlab.finish(state="crashed", error=_line(error))


@contextmanager
def _noted(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # what has been learned is worth more
        log.warning("%s failed at the end", name, exc_info=error)
