"""Why vLLM's own processes ended: they say it in their logs only, from which it is taken here."""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from engines.errors import EngineFailure, TuneserveError, UnsupportedModel

VARIABLE = "TUNESERVE_VLLM_FAILURES"
"""Tells vLLM's processes the file."""
MAY_PASS = (
    "OutOfMemory",
    "MemoryError",
    "CUDA error",
    "NCCL error",
    "Free memory on device",
    "Available memory on node",
)
"""In the name or text of an error: not the model's fault, and gone perhaps when the engine is started again."""


@dataclass(frozen=True, slots=True)
class Failure:
    kind: str
    """The exception's class."""
    message: str

    def __str__(self) -> str:
        return self.message or self.kind

    def to_error(self) -> TuneserveError:
        """What it means for who starts the engine."""
        if any(sign in self.kind or sign in self.message for sign in MAY_PASS):
            return EngineFailure(f"vLLM failed while it started: {self}")
        return UnsupportedModel(f"vLLM cannot run this model as asked: {self}")


def describe(error: BaseException) -> Failure:
    """Name and text of an error; the first text alone of several that pydantic found in vLLM's configuration."""
    message = str(error)
    if hasattr(error, "errors"):
        message = str(error.errors()[0]["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return Failure(type(error).__name__, " ".join(message.split()))


class FailureHandler(logging.Handler):
    """Appends the exceptions that are logged to the file that `FailureLog` reads. Named in logging.json."""

    def emit(self, record: logging.LogRecord) -> None:
        path = os.environ.get(VARIABLE)
        if path is None or record.exc_info is None or record.exc_info[1] is None:
            return
        failure = describe(record.exc_info[1])
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps([failure.kind, failure.message]) + "\n")
        except OSError:
            self.handleError(record)


class FailureLog:
    """What vLLM's processes have logged since the engine was started."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "failures"
        os.environ[VARIABLE] = str(self._file)

    def first(self) -> Failure | None:
        """The cause: those that come after are its consequences."""
        try:
            line, *_ = self._file.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            return None
        return Failure(*json.loads(line))
