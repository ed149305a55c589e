"""`python -m training.validate FOLDER`: look at the data of the folder's task, and write validation.json.

Exit status 0 where something was written, whatever it says. Neither torch nor transformers is loaded for it.
"""

import sys
from pathlib import Path

from pydantic import ValidationError

from training.data.check import check
from training.folder import JobError, JobFolder, Validation
from training.methods import method_of


def main(folder: JobFolder) -> None:
    folder.write_validation(_validation(folder))


def _validation(folder: JobFolder) -> Validation:
    try:
        task = folder.read_task()
    except (OSError, ValidationError) as error:
        return Validation(error=JobError(code="invalid_request", message=f"task.json cannot be read: {error}"))
    params = task.training
    found = Validation() if params is None else check(params, learns=method_of(params).rows)
    if found.error is None or not task.discreet:
        return found
    return found.model_copy(update={"error": found.error.without_folders()})


if __name__ == "__main__":
    main(JobFolder(Path(sys.argv[1])))
