"""/v1/jobs on a real server with real trainings: killed, stopped, merged.

The server is forked and has no model of its own to load: what is disturbed is the jobs. What they would have made, left
alone, is trained in the test's process."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load

from engines.adapters.spec import WEIGHTS
from tests.engines.pt.tiny import CONFIGS, save
from tests.processes import whose_commands_have
from tests.server.api import Api, api_of
from tests.server.process import ServerProcess
from tests.server.states import new_state
from tests.training.jobs import trained

TEMPLATE = "{% for m in messages %}<bos>{{ m.role }}: {{ m.content }}<eos>{% endfor %}"
STEPS = 200
"""Long enough to be still running, on a slow machine, once a step of it was seen."""
STEPS_OF_EACH = 120
ROWS = 60
"""Enough that a data set is not answered yet once a step of it was told, on a quick machine."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its layers are those of which EchoEngine takes adapters."""
    llama = CONFIGS["llama"]()
    llama.intermediate_size, llama.num_key_value_heads = 2 * llama.hidden_size, llama.num_attention_heads
    folder = save(llama, tmp_path_factory.mktemp("tiny") / "tiny", tokenizer=True)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture
def state() -> Path:
    """Where the servers of a test keep their state, one after the other."""
    return Path(new_state())


@contextmanager
def serving(model: Path, data: Path, state: Path) -> Iterator[tuple[ServerProcess, Api]]:
    params = {"model": str(model), "served_model_name": "base", "job_roots": (str(data),), "state_dir": str(state)}
    server = ServerProcess.echo(params=params)
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


def weights_of(api: Api, id: str) -> bytes:
    return api.jobs.result(id, WEIGHTS)


def left_alone(folder: Path, task: str, data: Path, **given: Any) -> bytes:
    """The weights that the training ends with where nothing happens to it."""
    job = trained(folder, task, **given | {"dataset": [str(data / name) for name in given["dataset"]]})
    found: bytes = (job.path / f"checkpoint-{given['max_steps']}" / WEIGHTS).read_bytes()
    return found


def distance(one: bytes, other: bytes) -> float:
    ones, others = load(one), load(other)
    assert ones.keys() == others.keys()
    found: float = max((ones[name] - others[name]).abs().max().item() for name in ones)
    return found


def test_a_training_that_was_killed_and_stopped_makes_what_one_makes_that_was_left_alone(
    model: Path, state: Path, tmp_path: Path
) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"red {n}"}, {"role": "assistant", "content": "blue"}]}
        for n in range(9)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    training = {"model": "base", "dataset": ["rows.jsonl"], "max_steps": STEPS, "lora_rank": 2}
    training |= {"save_steps": 25, "logging_steps": 5}
    # 1. The server is killed, and its worker with it.
    with serving(model, tmp_path, state) as (_, api):
        id = api.jobs.create("sft", training)["id"]
        wait_for_step(api, id, 50)
    # 2. It is told to stop: the job saves a checkpoint.
    with serving(model, tmp_path, state) as (server, api):
        wait_for_step(api, id, 100)
        server.signal()
        assert server.wait() == 0
    # 3. What is made is the same to the last bit, and it is served.
    with serving(model, tmp_path, state) as (_, api):
        job = api.jobs.wait(id)
        assert (job["status"], job["attempt"]) == ("succeeded", 3), job
        assert job["result"]["final_step"] == STEPS
        steps = [point["step"] for point in api.jobs.curve(id)]
        assert steps == sorted(set(steps)) and set(range(5, STEPS + 1, 5)) <= set(steps)
        undisturbed = left_alone(tmp_path / "alone", "sft", tmp_path, **training | {"model": str(model)})
        assert weights_of(api, id) == undisturbed
        assert job["fine_tuned_model"] in api.models()
        # 4. The result is merged by the job's name.
        merged = api.jobs.wait(api.jobs.create("merge", {"model": "base", "adapters": [id]})["id"])
        assert (merged["status"], merged["result"]["kind"]) == ("succeeded", "model"), merged


def test_what_began_with_an_adapter_is_killed_or_paused_and_ends_as_if_left_alone(
    model: Path, state: Path, tmp_path: Path
) -> None:
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
    with serving(model, tmp_path, state) as (server, api):
        taught = api.jobs.create("sft", first)["id"]
        api.jobs.wait(taught, "succeeded")
        (folder,) = state.glob(f"jobs/*/{taught}/*/checkpoint-20")

        def disturb(type: str, training: dict[str, Any], disturbance: Callable[[str], None]) -> None:
            id = api.jobs.create(type, training | {"adapters": [taught]})["id"]
            wait_for_step(api, id, 30)
            disturbance(id)
            job = api.jobs.wait(id, "succeeded")
            assert job["attempt"] == 2
            given = training | {"model": str(model), "adapters": [str(folder)]}
            undisturbed = left_alone(tmp_path / type, type, tmp_path, **given)
            assert distance(weights_of(api, id), undisturbed) < 1e-5
            assert distance(weights_of(api, taught), undisturbed) > 1e-3

        def pause(id: str) -> None:
            assert api.jobs.move(id, "pause").status_code == 200
            refused = api.http.delete(f"/v1/jobs/{taught}")
            assert (refused.status_code, id in refused.text) == (409, True)
            assert api.jobs.move(id, "resume").status_code == 200

        disturb("sft", chat, lambda id: kill_worker(server, id))
        disturb("rlhf", dpo, pause)
        assert api.http.delete(f"/v1/jobs/{taught}").status_code == 200


def test_a_data_set_is_answered_once_though_its_job_is_paused(model: Path, state: Path, tmp_path: Path) -> None:
    rows = [{"query": f"red {n}"} for n in range(ROWS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = {"model": "base", "dataset": ["rows.jsonl"], "max_new_tokens": 60, "torch_dtype": "float32", "threads": 1}
    with serving(model, tmp_path, state) as (_, api):
        id = api.jobs.create("infer", asked | {"max_num_seqs": 1, "max_num_queued_reqs": 0})["id"]
        wait_for_step(api, id, 1)
        assert api.jobs.move(id, "pause").status_code == 200
        assert api.jobs.move(id, "resume").status_code == 200
        assert api.jobs.wait(id, "succeeded")["attempt"] == 2
        lines = api.jobs.artifact(id, api.jobs.artifacts(id)["result"]).text.splitlines()
        assert [json.loads(line)["row"] for line in lines] == rows
