"""Where the files of jobs lie: for each a folder, in it the data it was given and a folder for each attempt.

ROOT/JOB_ID/data/        private copies of the uploaded files that it uses
ROOT/JOB_ID/validation/  the job's folder of the process that looks at the data
ROOT/JOB_ID/1/, 2/, ...  the job's folder of each attempt (see training/folder.py)
"""

import shutil
from collections.abc import Collection
from pathlib import Path

from engines.adapters.state_folder import private_folder
from server.jobs.job import Job
from training.folder import JobFolder


class JobFolders:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.making = 0
        """Jobs that are being made now, and may name what others have made."""

    def job(self, id: str) -> Path:
        return self.root / id

    def data(self, id: str) -> Path:
        return self.job(id) / "data"

    def validation(self, id: str) -> Path:
        return self.job(id) / "validation"

    def attempt(self, id: str, number: int) -> Path:
        return self.job(id) / str(number)

    def make(self, id: str) -> Path:
        """The job's folder, with an empty folder for its data. Raises OSError."""
        self.root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        private_folder(self.root)
        self.data(id).mkdir(parents=True, exist_ok=True)
        return self.job(id)

    def remove(self, id: str) -> None:
        shutil.rmtree(self.job(id), ignore_errors=True)

    def keep_only(self, ids: Collection[str]) -> None:
        """Remove what a server has left that was killed as it made or deleted a job."""
        if self.root.is_dir():
            for folder in self.root.iterdir():
                if folder.name not in ids:
                    shutil.rmtree(folder, ignore_errors=True)

    def used_by(self, job: Job) -> set[str]:
        """Ids of the other jobs of whose files its parameters name some."""
        inside = [path.relative_to(self.root) for path in job.paths if path.is_relative_to(self.root)]
        return {path.parts[0] for path in inside if path.parts} - {job.id}

    def hand_on(self, job: Job, name: str) -> None:
        """Give the last attempt's folder the file that an earlier one has left there, where one has. Raises OSError."""
        for number in range(job.attempt - 1, 0, -1):
            left = self.attempt(job.id, number) / name
            if left.is_file():
                left.rename(self.attempt(job.id, job.attempt) / name)
                return

    def newest_checkpoint(self, job: Job) -> Path | None:
        """The checkpoint with the most steps, of any attempt; of two with as many, the later attempt's."""
        found = [
            (step, number)
            for number in range(1, job.attempt + 1)
            for step in JobFolder(self.attempt(job.id, number)).checkpoints()
        ]
        if not found:
            return None
        step, number = max(found)
        return self.attempt(job.id, number) / f"checkpoint-{step}"
