"""The second process of a training is killed as its first step is about to begin."""

import os
import signal
from typing import Any

from training.report import Report


def _is_killed(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if os.environ.get("RANK") == "1":
    Report.started = _is_killed  # type: ignore[method-assign]
