"""Several trainings, one after the other, by the same processes: `torchrun ... -m tests.training.parallel.many
FOLDER...`. To start processes takes longer than to train what tests train."""

import gc
import os
import sys
from pathlib import Path

from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from training.folder import JobFolder
from training.processes import Processes
from training.report import Report
from training.run import run

LEFT = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_MIXED_PRECISION")
"""What a training leaves in the environment, for whichever comes next in its process."""


def main(folders: list[str]) -> None:
    rank = Processes.of_environment().rank
    for folder in folders:
        job = JobFolder(Path(folder))
        result = run(job, Report(job, silent=rank != 0))
        if result is not None and (rank == 0 or result.status == "failed"):
            job.write_result(result)
        _forget()


def _forget() -> None:
    for name in LEFT:
        os.environ.pop(name, None)
    unset_hf_deepspeed_config()
    gc.collect()


if __name__ == "__main__":
    main(sys.argv[1:])
