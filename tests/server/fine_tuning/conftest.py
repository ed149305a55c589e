"""A server on EchoEngine whose jobs take milliseconds, in the test's own process."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engines.echo import EchoEngine, echo_tokenizer
from engines.params.deploy import DeployParams
from server.jobs.devices import FixedDevices
from server.jobs.executor import LocalExecutor
from server.jobs.jobs import Machine
from server.parts import make_parts
from tests.adapter_folders import write_adapter
from tests.server.api import EchoApi
from tests.server.client import ReadyClient
from tests.server.states import as_state

WORKER = Path(__file__).with_name("worker.py")


class TrainingApi(EchoApi):
    """Such a server, and what its workers are to do."""

    def __init__(self, client: ReadyClient, plan: Path) -> None:
        super().__init__(client)
        self._plan = plan

    def plan(self, **changes: Any) -> None:
        """What workers do from now on; see `worker.py`."""
        self._plan.write_text(json.dumps(json.loads(self._plan.read_text()) | changes))


Start = Callable[..., Any]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Servers that share one state, one after the other: `with start() as api`."""
    plan = tmp_path / "plan.json"
    first = {"rows": 60, "error": None, "steps": 4, "seconds": 0.01, "save_every": 2, "kind": "adapter"}
    first |= {"metrics": {"token_accuracy": 0.5}, "evaluated": {}}
    plan.write_text(json.dumps(first | {"adapter": str(write_adapter(tmp_path / "adapter"))}))

    @contextmanager
    def start(engine: EchoEngine | None = None, **params: Any) -> Iterator[TrainingApi]:
        given = {"model": "tests/echo", "state_dir": str(as_state(tmp_path / "state")), "log_interval": -1}
        given |= {"max_running_jobs": 2, "job_retries": 1, "job_gpu_memory": 1} | params
        machine = Machine(
            executor=LocalExecutor(command=(sys.executable, "-S", str(WORKER), str(plan))),
            devices=FixedDevices(),
            back_off_seconds=0.01,
        )
        parts = make_parts(engine or EchoEngine(), echo_tokenizer(), DeployParams(**given), machine=machine)
        with ReadyClient(parts) as client:
            yield TrainingApi(client, plan)

    return start


@pytest.fixture
def api(start: Start) -> Iterator[TrainingApi]:
    with start() as api:
        yield api
