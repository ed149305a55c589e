"""`python -m training.validate FOLDER`: fetch what the folder's task names on the hub, look at its data, and write
validation.json.

Exit status 0 where something was written, whatever it says. Neither torch nor transformers is loaded for it.
"""

import logging
import sys
from pathlib import Path

from pydantic import ValidationError

from engines.errors import TuneserveError
from training.data.check import check, check_prompts
from training.floor import too_large
from training.folder import JobError, JobFolder, Validation
from training.hub.fetch import fetch
from training.methods import method_of
from training.params.sft import SftParams
from training.params.task import Task


def main(folder: JobFolder) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it would tell of every file
    folder.write_validation(_validation(folder))


def _validation(folder: JobFolder) -> Validation:
    try:
        task = folder.read_task()
    except (OSError, ValidationError) as error:
        return Validation(error=JobError(code="invalid_request", message=f"task.json cannot be read: {error}"))
    found = _look(task)
    if found.error is None or not task.discreet:
        return found
    return found.model_copy(update={"error": found.error.without_folders()})


def _look(task: Task) -> Validation:
    fetched = {}
    if task.fetch is not None:
        try:
            fetched = fetch(task.params, task.fetch)
        except TuneserveError as error:
            told = JobError(code=error.code or "failed", message=error.message, param=error.param)
            return Validation(error=told)
        task = task.with_params(fetched)
    params = task.training
    match task.data:
        case None:
            found = Validation()
        case SftParams() as data:
            found = check(data, learns=method_of(data).rows)
        case data:
            found = check_prompts(data)
    if params is not None and found.error is None and not params.dry_run:
        found = found.model_copy(update={"error": too_large(params, found.model_parameters)})
    return found.model_copy(update={"fetched": fetched})


if __name__ == "__main__":
    main(JobFolder(Path(sys.argv[1])))
