"""Runs EvalScope, by the Python of its environment, which has nothing of ours: `python -I child.py REASON_FILE`.

Reads configurations of its tasks from standard input, as a JSON list, and does one after another. Where one fails, the
file says why, and the exit status is 1.
"""

import json
import logging
import sys
from pathlib import Path

logger = logging.getLogger(__name__)


def main(reason: Path) -> int:
    try:
        from evalscope import TaskConfig, run_task

        for config in json.load(sys.stdin):
            run_task(TaskConfig(**config))
    except Exception as error:
        logger.exception("EvalScope failed.")
        reason.write_text(f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
