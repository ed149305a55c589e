"""/v1/jobs on a real server with real trainings: killed, stopped, merged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engines.pt.tiny import CONFIGS, save
from tests.server.process import ServerProcess
from tests.until import PATIENCE, until

TEMPLATE = "{% for m in messages %}<bos>{{ m.role }}: {{ m.content }}<eos>{% endfor %}"
STEPS = 1000
"""Long enough to be still running, on a slow machine, once a step of it was seen."""
ENDED = ("succeeded", "failed", "cancelled")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save(CONFIGS["llama"](), tmp_path_factory.mktemp("tiny") / "tiny", tokenizer=True)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


class Client:
    """Of a server that keeps its state in `folder`, where the data lies as well."""

    def __init__(self, model: Path, folder: Path) -> None:
        flags = ["--served-model-name", "base", "--threads", "1", "--state-dir", str(folder / "state")]
        self.server = ServerProcess.deploy("--model", str(model), *flags, "--job-roots", str(folder))
        self.http = httpx.Client(base_url=f"{self.server.wait_until_listening()}/v1", timeout=PATIENCE)

    def create(self, type: str, **parameters: Any) -> str:
        reply = self.http.post("jobs", json={"type": type, "parameters": {"model": "base", **parameters}})
        assert reply.status_code == 200, reply.text
        return reply.json()["id"]

    def get(self, path: str) -> Any:
        return self.http.get(f"jobs{path}").json()

    def wait(self, id: str, happened: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            job: dict[str, Any] = self.get(f"/{id}")
            return job if job["status"] in ENDED or happened() else None

        return until(look, told=lambda: self.get(f"/{id}"))

    def wait_for_step(self, id: str, step: int) -> None:
        def there() -> bool:
            newest = self.get(f"/{id}/metrics")["data"][-1:]
            return bool(newest) and newest[0]["step"] >= step

        assert self.wait(id, there)["status"] == "running"

    def result(self, id: str, file: str) -> bytes:
        folder = self.get(f"/{id}/artifacts")["result"]
        return self.http.get(f"jobs/{id}/artifacts/{folder}/{file}").content


def test_a_training_that_was_killed_and_stopped_makes_what_one_makes_that_was_left_alone(
    model: Path, tmp_path: Path
) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"red {n}"}, {"role": "assistant", "content": "blue"}]}
        for n in range(9)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    training = {"dataset": ["rows.jsonl"], "max_steps": STEPS, "save_steps": 100, "logging_steps": 5, "lora_rank": 2}
    client = Client(model, tmp_path)
    try:
        left_alone = client.create("sft", **training)
        client.wait(left_alone)  # of two jobs, the one whose files are checked first would run first
        disturbed = client.create("sft", **training)
        # 1. The server is killed, and its worker with it.
        client.wait_for_step(disturbed, 150)
        client.server.close()
        client = Client(model, tmp_path)
        # 2. It is told to stop: the job saves a checkpoint.
        client.wait_for_step(disturbed, 260)
        client.server.signal()
        assert client.server.wait() == 0
        client = Client(model, tmp_path)
        # 3. Both are the same to the last bit, and both are served.
        job, other = client.wait(disturbed), client.get(f"/{left_alone}")
        assert (job["status"], job["attempt"], other["attempt"]) == ("succeeded", 3, 1), job
        assert job["result"]["final_step"] == STEPS
        steps = [point["step"] for point in client.get(f"/{disturbed}/metrics")["data"]]
        assert steps == sorted(set(steps)) and set(range(5, STEPS + 1, 5)) <= set(steps)
        weights = "adapter_model.safetensors"
        assert client.result(disturbed, weights) == client.result(left_alone, weights)
        served = {model["id"] for model in client.http.get("models").json()["data"]}
        assert {job["fine_tuned_model"], other["fine_tuned_model"]} < served
        # 4. The result is merged by the job's name.
        merged = client.wait(client.create("merge", adapters=[disturbed]))
        assert (merged["status"], merged["result"]["kind"]) == ("succeeded", "model"), merged
    finally:
        client.server.close()
