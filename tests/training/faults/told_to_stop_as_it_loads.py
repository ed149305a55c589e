"""A training is told to stop as it is about to load its model."""

import os
import signal
from typing import Any

from training.report import Report

_message = Report.message


def _is_told(self: Report, text: str, *given: Any) -> None:
    _message(self, text, *given)
    if text == "Loading the model.":
        os.kill(os.getpid(), signal.SIGTERM)


Report.message = _is_told  # type: ignore[method-assign,assignment]
