"""`python -m benchmarks.memory_probe FOLDER WARM_UP`: the training of a job's folder, and what it took of memory: the
highest resident size on the way, above that of the process with all that it imports. Prints bytes.

What is resident while weights are loaded and quantised is left out: it has the file that they come from, all of it, in
pages that the system takes back where memory is wanted.

WARM_UP is the folder of a job like it on a tiny model, which is done first: it imports what a training imports.
"""

import ctypes
import gc
import sys
from pathlib import Path

from training.device import ask_for_huge_pages, leave_out_triton
from training.folder import JobFolder
from training.report import Report
from training.run import run

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
HIGHEST_SINCE_NOW = "5"
"""What has the kernel forget the highest resident size so far."""


def main() -> None:
    ask_for_huge_pages()
    leave_out_triton()
    folder, warm_up = (JobFolder(Path(each)) for each in sys.argv[1:3])
    train(warm_up, Report(warm_up))
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident("VmRSS")
    train(folder, Loaded(folder))
    sys.stdout.write(f"{resident('VmHWM') - before}\n")


class Loaded(Report):
    """Has the highest resident size be that from the first step on."""

    def started(self, *, total_steps: int, rows: int | None) -> None:
        FORGET.write_text(HIGHEST_SINCE_NOW)
        super().started(total_steps=total_steps, rows=rows)


def train(folder: JobFolder, report: Report) -> None:
    result = run(folder, report)
    assert result is not None and result.status == "succeeded", result


def resident(what: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{what}:"))
    return int(line.split()[1]) << 10


if __name__ == "__main__":
    main()
