"""`tuneserve infer`: answer a data set in a worker process, or a person at the terminal in this one."""

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from engines.adapters.source import name_adapters, whole_path
from engines.checkpoint.gguf.named import name_of
from engines.errors import InvalidRequest, TuneserveError
from engines.params.secrets import secrets_of
from server.commands.argv import refuse
from server.commands.foreground import run_here
from server.commands.progress import Progress, progress_on
from server.commands.train import died, failed, processes_of_environment
from training.folder import JobFolder, Result
from training.machines import Machines
from training.params.infer import AnswerParams
from training.params.task import InferTask

FOLDER = "infer_result"
"""Folder, beside a checkpoint, of the answers that it gives."""


def run(task: InferTask) -> int:
    """Do what `task` says; return the exit status: 0, 1 where it failed, 128 and the signal's number where one came."""
    if not (task.params.model or task.params.adapters):
        refuse("tuneserve infer", ["--model: name the model that answers, a folder or an id on the hub"])
    if not task.params.answers_data:
        from server.commands.chat import talk

        return talk(task)
    progress = progress_on(sys.stdout, doing="Answering")
    try:
        return _answer(task, progress)
    except TuneserveError as error:
        return failed(task, error.message, error.param)
    except OSError as error:
        return failed(task, f"{error.filename or 'its folder'}: {error.strerror}", "result_path")


def _answer(task: InferTask, progress: Progress) -> int:
    path, processes = _result_path(task.params), processes_of_environment()
    if Machines.of_environment(os.environ).count > 1:
        raise InvalidRequest("an inference runs on one machine: leave NNODES out, and give each a part of the data")
    task = task.with_params({"result_path": str(path), **_anywhere(task.params)})
    with tempfile.TemporaryDirectory(prefix="tuneserve-") as made:
        folder = JobFolder(Path(made))
        folder.write_task(task)
        progress.say(f"Answers go to {path}.")
        ended = run_here(
            folder,
            progress,
            secrets=secrets_of(task.params),
            processes=processes,
            stopping="Stopping: what is answered stays.",
        )
        if ended.result is not None and ended.result.status == "stopped":
            progress.say(f"Stopped: {ended.result.final_step or 0} rows are answered; go on with --result_path {path}.")
            return 128 + (ended.signal or signal.SIGTERM)
        if ended.result is None or ended.result.status == "failed":
            return died(task, folder, ended)
        progress.say(_told(ended.result, path))
        return 0


def _result_path(params: AnswerParams) -> Path:
    """A file by its whole path: as given, or a new one beside the checkpoint, or below ./result."""
    if params.result_path:
        return Path(params.result_path).expanduser().absolute()
    checkpoint = next(iter(name_adapters(params.adapters).values()), params.model or "")
    folder = Path(checkpoint).expanduser()
    if not folder.is_dir():
        folder = Path("result") / name_of(checkpoint)
    return folder.absolute() / FOLDER / f"{time.strftime('%Y%m%d-%H%M%S')}.jsonl"


def _anywhere(params: AnswerParams) -> dict[str, object]:
    """What names a model's or an adapter's folder, by its whole path."""
    model = {} if params.model is None else {"model": whole_path(params.model)}
    return model | ({"adapters": tuple(map(whole_path, params.adapters))} if params.adapters else {})


def _told(result: Result, path: Path) -> str:
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in result.metrics.items())
    return f"{result.final_step} rows are answered in {path}" + (f": {metrics}." if metrics else ".")
