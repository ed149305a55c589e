"""What of a job's files goes before the job does: what nothing can go on from any more.

- What an attempt was writing when it ended: `.partial` and other hidden files.
- Optimizer, schedule, random numbers and the float32 weights of each checkpoint but the job's newest, which alone is
  gone on from; and of that one too once the job has succeeded, unless it was created with `save_only_model` false.
- A checkpoint that a later attempt has written again.

Nothing goes that another job names, unless that one has succeeded. Weights that only one attempt has, events and logs
stay. Whatever breaks off a deletion, the next one or the next start of the server does the rest.
"""

import shutil
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from server.jobs.folders import JobFolders
from server.jobs.job import Job, JobStatus
from training.folder import JobFolder

STATE = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth", "*float32")
"""What of a checkpoint training goes on from, beside the weights that are served; the last is a folder, which is hidden
while it goes."""


def tidy(
    folders: JobFolders, job: Job, *, named: Collection[Path], unannounced: Collection[Path], running: bool
) -> None:
    """`named`: what other jobs name. `unannounced`: checkpoints that may still be published. `running`: a worker still
    writes to the last attempt."""
    for number in range(1, job.attempt + (0 if running else 1)):
        for leftover in folders.attempt(job.id, number).glob(".*"):
            _remove(leftover)
    kept = _checkpoint_to_go_on_from(folders, job)
    seen: set[int] = set()
    for step, checkpoint in _checkpoints(folders, job):
        if any(path == checkpoint or checkpoint in path.parents for path in named):
            continue
        if step in seen and checkpoint not in unannounced:
            _remove(checkpoint)
        elif checkpoint != kept:
            for pattern in STATE:
                for file in checkpoint.glob(pattern):
                    _remove(file)
        seen.add(step)


def _checkpoint_to_go_on_from(folders: JobFolders, job: Job) -> Path | None:
    if job.status is JobStatus.SUCCEEDED and job.parameters.get("save_only_model") is not False:
        return None
    return folders.newest_checkpoint(job)


def _checkpoints(folders: JobFolders, job: Job) -> Iterator[tuple[int, Path]]:
    """Each with its step; those of the last attempt come first."""
    for number in range(job.attempt, 0, -1):
        folder = folders.attempt(job.id, number)
        for step in JobFolder(folder).checkpoints():
            yield step, folder / f"checkpoint-{step}"


def _remove(path: Path) -> None:
    """A checkpoint loses its name first: one that is there is whole."""
    with suppress(OSError):
        if path.is_dir():
            if not path.name.startswith("."):
                path = path.rename(path.with_name(f".{path.name}"))
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
