"""The worker process: `python -m training.run FOLDER` does what the folder's task says, and writes how it ended.

Exit status 0: succeeded, or stopped on SIGTERM; 1: failed, as result.json says. See `training.folder`.
"""

import atexit
import errno
import logging
import os
import shutil
import signal
import sys
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path

from pydantic import ValidationError

from engines.errors import TuneserveError
from engines.process.children import set_parent_death_signal, set_parent_death_signal_of_forks
from training.device import ask_for_huge_pages, check_devices, leave_out_triton, see_devices
from training.folder import PARTIAL, JobError, JobFolder, Result
from training.imports import short_imports
from training.machines import common_folder
from training.params.task import Task
from training.processes import Processes
from training.refusals.supported import refusals
from training.report import Report, Stopped

logger = logging.getLogger(__name__)

PROCESSES = Processes.of_environment()
REPORTS = {
    "TENSORBOARD_LOGGING_DIR": "runs",
    "WANDB_DIR": "",  # it makes a folder of its name there
    "WANDB_CACHE_DIR": "wandb",
    "WANDB_DATA_DIR": "wandb",
    "SWANLAB_LOG_DIR": "swanlog",
    "TRACKIO_DIR": "trackio",
}
"""Environment variable -> folder within the job's."""
FULL_BELOW = 1 << 20
"""Free bytes. Libraries tell a full disk in many ways; this tells it whatever they say."""


def main(folder: JobFolder) -> int:
    report = Report(folder, silent=PROCESSES.rank != 0)
    report.heed_signals()
    set_parent_death_signal_of_forks()  # data loaders, tokenizers
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun is the parent
        set_parent_death_signal()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    ask_for_huge_pages()
    _see_devices(folder)
    keep_reports_within(folder.path)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it does not bear the fork of a data loader
    leave_out_triton()
    result = run(folder, report)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it has ended; what is left must be written
    for place in (folder, report.folder) if report.folder.path != folder.path else (folder,):
        if result is not None and _is_ours_to_tell(place, result, ours=place is folder):
            place.write_result(result)
    return 1 if result is None or result.status == "failed" else 0


def _see_devices(folder: JobFolder) -> None:
    """A task that cannot be read is told of when it is run."""
    try:
        task = folder.read_task().completed()
    except (TuneserveError, ValidationError, OSError):
        return
    if task.one_device:
        see_devices(PROCESSES.count, getattr(task.params, "rollout_device", None))


def keep_reports_within(folder: Path) -> None:
    """Have what reports beside the events write into the job's folder, where nobody says another."""
    for variable, name in REPORTS.items():
        os.environ.setdefault(variable, str(folder / name))


def _is_ours_to_tell(place: JobFolder, result: Result, *, ours: bool) -> bool:
    """The first of several processes tells how it ended, but for a failure: that, the one which fails first tells.
    `ours`: it is the folder of this machine, of which there may be several."""
    first = PROCESSES.local_rank == 0 if ours else PROCESSES.rank == 0
    if result.status == "failed" or (first and result.status == "stopped"):
        return place.read_result() is None
    return first


def run(folder: JobFolder, report: Report) -> Result | None:
    """None: another process of this training has gone, which says why itself, or cannot."""
    try:
        task = folder.read_task().completed()
        report.discreet = task.discreet
        check(task)
        check_devices(PROCESSES.local_count)
        if PROCESSES.machines > 1 and not (task.training and task.training.save_on_each_node):
            shared = common_folder(folder.path, rank=PROCESSES.rank, count=PROCESSES.count)
            report.folder = JobFolder(shared)
        with short_imports() if task.training else nullcontext():
            pipeline = import_module(task.pipeline)
        result: Result = pipeline.run(task.params, report)
        assert result.kind is None or result.kind in task.makes, "a pipeline makes what its task says"
        return result
    except Stopped:
        return Result(status="stopped")
    except TuneserveError as error:  # its message is all there is to know
        return _failed(report, error)
    except Exception as error:
        logger.exception("The job failed.")
        return None if _is_of_another(error) else _failed(report, error)


def _failed(report: Report, error: Exception) -> Result:
    folder = report.folder.path
    shutil.rmtree(folder / PARTIAL, ignore_errors=True)  # on a full disk, this makes room to say so
    told = to_job_error(error, folder)
    return Result(status="failed", error=told.without_folders() if report.discreet else told)


def _is_of_another(error: Exception) -> bool:
    """Whether it says only that a process with which this one works has gone."""
    if PROCESSES.count == 1 or _out_of_memory(error):
        return False
    import torch.distributed

    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


def check(task: Task) -> None:
    """Raises TuneserveError for the first parameter that nothing would read."""
    for param, reason in refusals(task):
        raise TuneserveError(reason, param=param, code="unsupported_parameter")


def to_job_error(error: Exception, folder: Path) -> JobError:
    """In words for whoever asked for the job."""
    told = _to_job_error(error, folder)
    if PROCESSES.count == 1 or isinstance(error, TuneserveError):  # which each process meets
        return told
    return told.model_copy(update={"message": f"rank {PROCESSES.rank} of {PROCESSES.count}: {told.message}"})


def _to_job_error(error: Exception, folder: Path) -> JobError:
    text = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    if isinstance(error, TuneserveError):
        return JobError(code=error.code or "failed", message=error.message, param=error.param)
    if isinstance(error, ValidationError):
        return JobError(code="invalid_request", message=f"task.json cannot be understood: {text}")
    if _out_of_memory(error):
        return JobError(
            code="out_of_memory",
            message=f"memory ran out ({text}): in a training, make per_device_train_batch_size or max_length smaller,"
            " and gradient_accumulation_steps larger in exchange",
        )
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT) or _full(folder):
        return JobError(code="disk_full", message=f"the disk that holds the job's folder is full ({text})")
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return JobError(code="folder_not_writable", message=f"the job's folder cannot be written ({text})")
    return JobError(code="internal_error", message=f"{type(error).__name__}: {text}")


def _out_of_memory(error: Exception) -> bool:
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or any(words in str(error) for words in ("can't allocate memory", "out of memory"))


def _full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < FULL_BELOW
    except OSError:
        return False


def leave(status: dict[str, int]) -> None:
    """End this process without taking the interpreter down, as the last of what Python does at an exit.

    gloo's threads drop the tensors of a sum a little after it is done, and want the interpreter's lock for that. Where
    the interpreter is going they are refused it, within C++, which aborts the process. To end the group of processes
    beforehand would not end its threads, as the model that was trained knows the group.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status["exit"])


if __name__ == "__main__":
    ended = {"exit": 1}
    atexit.register(leave, ended)  # before what else is to be done then, and so after it
    ended["exit"] = main(JobFolder(Path(sys.argv[1]).resolve()))
