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
from server.deps import Parts
from server.inference.inference import Inference
from server.jobs.devices import FixedDevices
from server.jobs.executor import LocalExecutor
from server.jobs.jobs import Jobs, Machine
from server.parts import make_parts
from tests.adapter_folders import write_adapter
from tests.server.client import ReadyClient, Response
from tests.server.openai_schema import check
from tests.until import until

WORKER = Path(__file__).with_name("worker.py")
LINE = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
JOBS = "/v1/fine_tuning/jobs"
ENDED = ("succeeded", "failed", "cancelled")


class Api:
    """A server, and what tests ask of it. Every answer is one that OpenAI describes."""

    def __init__(self, client: ReadyClient, parts: Parts, plan: Path) -> None:
        self.client = client
        self.jobs = parts[Jobs]
        self.adapters = parts[Inference].adapters
        self._plan = plan

    def plan(self, **changes: Any) -> None:
        """What workers do from now on; see `worker.py`."""
        self._plan.write_text(json.dumps(json.loads(self._plan.read_text()) | changes))

    def upload(self, text: str = LINE, purpose: str = "fine-tune") -> str:
        reply = self.client.post("/v1/files", data={"purpose": purpose}, files={"file": ("data.jsonl", text.encode())})
        assert reply.status_code == 200, reply.text
        return reply.json()["id"]

    def post(self, **body: Any) -> Response:
        file = {} if "training_file" in body else {"training_file": self.upload()}
        return self.client.post(JOBS, json={"model": "echo"} | file | body)

    def create(self, **body: Any) -> dict[str, Any]:
        reply = self.post(**body)
        assert reply.status_code == 200, reply.text
        return checked("FineTuningJob", reply.json())

    def job(self, id: str) -> dict[str, Any]:
        return checked("FineTuningJob", self.client.get(f"{JOBS}/{id}").json())

    def list(self, query: str = "") -> dict[str, Any]:
        return checked("ListPaginatedFineTuningJobsResponse", self.client.get(f"{JOBS}{query}").json())

    def events(self, id: str, query: str = "?limit=100") -> dict[str, Any]:
        return checked("ListFineTuningJobEventsResponse", self.client.get(f"{JOBS}/{id}/events{query}").json())

    def checkpoints(self, id: str, query: str = "") -> dict[str, Any]:
        reply = self.client.get(f"{JOBS}/{id}/checkpoints{query}").json()
        return checked("ListFineTuningJobCheckpointsResponse", reply)

    def move(self, id: str, verb: str) -> Response:
        return self.client.post(f"{JOBS}/{id}/{verb}")

    def wait(self, id: str, *statuses: str) -> dict[str, Any]:
        """The job once it has one of these, or once it has ended."""
        awaited = (*statuses, *ENDED)
        job = until(lambda: job if (job := self.job(id))["status"] in awaited else None, told=lambda: self.job(id))
        assert not statuses or job["status"] in statuses, job
        return job

    def answer(self, model: str) -> str | None:
        """EchoEngine's: it begins with the version of the adapter. None where the model is not there."""
        messages = [{"role": "user", "content": "hello"}]
        reply = self.client.post("/v1/chat/completions", json={"model": model, "messages": messages})
        if reply.status_code == 404:
            return None
        return reply.json()["choices"][0]["message"]["content"]

    def models(self) -> dict[str, dict[str, Any]]:
        return {card["id"]: card for card in self.client.get("/v1/models").json()["data"]}


def checked(name: str, answer: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's description knows no status `paused`, though its examples have it."""
    check(name, json.loads(json.dumps(answer).replace('"status": "paused"', '"status": "queued"')))
    return answer


Start = Callable[..., Any]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Servers that share one state, one after the other: `with start() as api`."""
    plan = tmp_path / "plan.json"
    first = {"rows": 60, "error": None, "steps": 4, "seconds": 0.01, "save_every": 2, "kind": "adapter"}
    plan.write_text(json.dumps(first | {"adapter": str(write_adapter(tmp_path / "adapter"))}))

    @contextmanager
    def start(engine: EchoEngine | None = None, **params: Any) -> Iterator[Api]:
        limits = {"max_running_jobs": 2, "job_retries": 1, "job_gpu_memory": 1}
        given = {"model": "tests/echo", "state_dir": str(tmp_path / "state"), "log_interval": -1} | limits | params
        machine = Machine(
            executor=LocalExecutor(command=(sys.executable, "-S", str(WORKER), str(plan))),
            devices=FixedDevices(),
            back_off_seconds=0.01,
        )
        parts = make_parts(engine or EchoEngine(), echo_tokenizer(), DeployParams(**given), machine=machine)
        with ReadyClient(parts) as client:
            yield Api(client, parts, plan)

    return start


@pytest.fixture
def api(start: Start) -> Iterator[Api]:
    with start() as api:
        yield api
