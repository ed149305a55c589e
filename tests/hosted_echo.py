"""The echo engine in a process of its own, as engines that are libraries run: `python -m tests.hosted_echo FD`."""

import sys
from collections.abc import AsyncGenerator
from typing import Any

from engines.echo import EchoEngine, EchoFaults
from engines.errors import TuneserveError, UnsupportedModel
from engines.logs import configure_logging
from engines.process.asyncio_engine import AsyncioEngine
from engines.process.client import ProcessEngine
from engines.process.config import PATIENCE, Patience
from engines.process.host import host
from engines.process.life import Program
from engines.types import EngineState, GenerationRequest, TokenOutput


class DyingEcho(EchoEngine):
    """Its deaths are final, as those of a library are; a new process gets over them."""

    def die(self) -> None:
        self._state = EngineState.FAILED


class BuggyEcho(DyingEcho):
    """A library whose every request meets a bug."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput, None]:
        raise KeyError("a bug")


def echo_in_its_process(patience: Patience = PATIENCE, **faults: Any) -> ProcessEngine:
    """Not started. `faults` are those of `EchoFaults`; a `start_error` is given as its message, a `bug` as whether."""
    program = Program(
        command=(sys.executable, "-m", "tests.hosted_echo"), environment={}, config=faults, max_num_seqs=1000
    )
    return ProcessEngine(program, max_num_queued_reqs=64, patience=patience)


def make(faults: dict[str, Any]) -> AsyncioEngine:
    kind = BuggyEcho if faults.pop("bug", False) else DyingEcho
    error: TuneserveError | None = UnsupportedModel(faults["start_error"]) if "start_error" in faults else None
    return AsyncioEngine(kind(faults=EchoFaults(**faults | {"start_error": error})))


if __name__ == "__main__":
    configure_logging()
    host(make)
