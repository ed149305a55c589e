"""Each checkpoint of a training takes five seconds."""

import time
from pathlib import Path
from typing import Any

from training.trainers.job import write_args as module

_write_args = module.write_args


def _slowly(params: Any, folder: Path, model: Any = None, rows: Any = None) -> None:
    time.sleep(5 if "checkpoint" in folder.name else 0)
    _write_args(params, folder, model, rows)


module.write_args = _slowly
