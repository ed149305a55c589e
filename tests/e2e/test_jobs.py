"""/v1/jobs on a real server with real trainings: killed, stopped, merged."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load

from tests.engines.pt.tiny import CONFIGS, save
from tests.processes import whose_commands_have
from tests.server.api import Api, api_of
from tests.server.process import ServerProcess

TEMPLATE = "{% for m in messages %}<bos>{{ m.role }}: {{ m.content }}<eos>{% endfor %}"
STEPS = 200
"""Long enough to be still running, on a slow machine, once a step of it was seen."""
STEPS_OF_EACH = 120
ROWS = 60
"""Enough that a data set is not answered yet once a step of it was told, on a quick machine."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save(CONFIGS["llama"](), tmp_path_factory.mktemp("tiny") / "tiny", tokenizer=True)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@contextmanager
def serving(model: Path, folder: Path) -> Iterator[tuple[ServerProcess, Api]]:
    """A server that keeps its state in `folder`, where the data lies as well."""
    flags = ["--served-model-name", "base", "--threads", "1", "--state-dir", str(folder / "state")]
    server = ServerProcess.deploy("--model", str(model), *flags, "--job-roots", str(folder))
    try:
        server.wait_until_listening()
        with api_of(server) as api:
            yield server, api
    finally:
        server.close()


def wait_for_step(api: Api, id: str, step: int) -> None:
    def there() -> bool:
        newest = api.jobs.curve(id)[-1:]
        return bool(newest) and newest[0]["step"] >= step

    assert api.jobs.wait(id, happened=there)["status"] == "running"


def kill_worker(server: ServerProcess, id: str) -> None:
    """As the system does where memory runs out."""
    workers = psutil.Process(server.pid).children(recursive=True)
    (worker,) = whose_commands_have(f"/{id}/", workers)
    worker.kill()


def weights_of(api: Api, id: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load(api.jobs.result(id, "adapter_model.safetensors"))
    return found


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def test_a_training_that_was_killed_and_stopped_makes_what_one_makes_that_was_left_alone(
    model: Path, tmp_path: Path
) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"red {n}"}, {"role": "assistant", "content": "blue"}]}
        for n in range(9)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    training = {"model": "base", "dataset": ["rows.jsonl"], "max_steps": STEPS, "lora_rank": 2}
    training |= {"save_steps": 25, "logging_steps": 5}
    # 1. The server is killed, and its worker with it.
    with serving(model, tmp_path) as (_, api):
        left_alone = api.jobs.create("sft", training)["id"]
        api.jobs.wait(left_alone)  # of two jobs, the one whose files are checked first would run first
        disturbed = api.jobs.create("sft", training)["id"]
        wait_for_step(api, disturbed, 50)
    # 2. It is told to stop: the job saves a checkpoint.
    with serving(model, tmp_path) as (server, api):
        wait_for_step(api, disturbed, 100)
        server.signal()
        assert server.wait() == 0
    # 3. Both are the same to the last bit, and both are served.
    with serving(model, tmp_path) as (_, api):
        job, other = api.jobs.wait(disturbed), api.jobs.get(left_alone)
        assert (job["status"], job["attempt"], other["attempt"]) == ("succeeded", 3, 1), job
        assert job["result"]["final_step"] == STEPS
        steps = [point["step"] for point in api.jobs.curve(disturbed)]
        assert steps == sorted(set(steps)) and set(range(5, STEPS + 1, 5)) <= set(steps)
        weights = "adapter_model.safetensors"
        assert api.jobs.result(disturbed, weights) == api.jobs.result(left_alone, weights)
        assert {job["fine_tuned_model"], other["fine_tuned_model"]} < api.models().keys()
        # 4. The result is merged by the job's name.
        merged = api.jobs.wait(api.jobs.create("merge", {"model": "base", "adapters": [disturbed]})["id"])
        assert (merged["status"], merged["result"]["kind"]) == ("succeeded", "model"), merged


def test_what_began_with_an_adapter_is_killed_or_paused_and_ends_as_if_left_alone(model: Path, tmp_path: Path) -> None:
    asked = {"role": "user", "content": "red"}
    chats = [{"messages": [asked, {"role": "assistant", "content": f"blue {n}"}]} for n in range(9)]
    pairs = [row | {"rejected_response": "value"} for row in chats]
    for name, rows in (("chats", chats), ("pairs", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shape = {"lora_rank": 3, "lora_alpha": 24, "lora_dropout": 0.1}
    first = {"model": "base", "dataset": ["chats.jsonl"], "max_steps": 20, "learning_rate": 1e-2, **shape}
    long = {"model": "base", "max_steps": STEPS_OF_EACH, "save_steps": 25, "logging_steps": 1}
    chat = {"dataset": ["chats.jsonl"], **long}
    dpo = {"dataset": ["pairs.jsonl"], "rlhf_type": "dpo", **long}
    with serving(model, tmp_path) as (server, api):
        taught = api.jobs.create("sft", first)["id"]
        api.jobs.wait(taught, "succeeded")

        def disturb(type: str, training: dict[str, Any], disturbance: Callable[[str], None]) -> None:
            training = training | {"adapters": [taught]}
            left_alone = api.jobs.create(type, training)["id"]
            api.jobs.wait(left_alone, "succeeded")
            disturbed = api.jobs.create(type, training)["id"]
            wait_for_step(api, disturbed, 30)
            disturbance(disturbed)
            job = api.jobs.wait(disturbed, "succeeded")
            assert job["attempt"] == 2
            undisturbed = weights_of(api, left_alone)
            assert distance(weights_of(api, disturbed), undisturbed) < 1e-5
            assert distance(weights_of(api, taught), undisturbed) > 1e-3

        def pause(id: str) -> None:
            assert api.jobs.move(id, "pause").status_code == 200
            refused = api.http.delete(f"/v1/jobs/{taught}")
            assert (refused.status_code, id in refused.text) == (409, True)
            assert api.jobs.move(id, "resume").status_code == 200

        disturb("sft", chat, lambda id: kill_worker(server, id))
        disturb("rlhf", dpo, pause)
        assert api.http.delete(f"/v1/jobs/{taught}").status_code == 200


def test_a_data_set_is_answered_once_though_its_job_is_paused(model: Path, tmp_path: Path) -> None:
    rows = [{"query": f"red {n}"} for n in range(ROWS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = {"model": "base", "dataset": ["rows.jsonl"], "max_new_tokens": 60, "torch_dtype": "float32", "threads": 1}
    with serving(model, tmp_path) as (_, api):
        id = api.jobs.create("infer", asked | {"max_num_seqs": 1, "max_num_queued_reqs": 0})["id"]
        wait_for_step(api, id, 1)
        assert api.jobs.move(id, "pause").status_code == 200
        assert api.jobs.move(id, "resume").status_code == 200
        assert api.jobs.wait(id, "succeeded")["attempt"] == 2
        lines = api.jobs.artifact(id, api.jobs.artifacts(id)["result"]).text.splitlines()
        assert [json.loads(line)["row"] for line in lines] == rows
