"""/v1/jobs over HTTP, with workers that take milliseconds."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engines.echo import EchoEngine, echo_tokenizer
from engines.params.deploy import DeployParams
from server.jobs import stream
from server.jobs.devices import FixedDevices
from server.jobs.executor import LocalExecutor
from server.jobs.jobs import Jobs, Machine
from server.parts import make_parts
from tests.server.api import LINE, EchoApi
from tests.server.client import ReadyClient
from tests.server.jobs.conftest import WORKER
from tests.server.states import as_state
from tests.training.jobs import make_data, make_model
from tests.until import PATIENCE, until

SSE = {"accept": "text/event-stream"}
SFT = {"model": "org/model", "dataset": ["org/data#20"]}


@contextmanager
def serving(state: Path, *, executor: LocalExecutor | None = None, **params: Any) -> Iterator[EchoApi]:
    given = {"model": "tests/echo", "state_dir": str(as_state(state)), "verbose": False, "job_hub": "on"}
    given |= {"max_running_jobs": 1, "job_retries": 1, "job_gpu_memory": 0} | params
    machine = Machine(executor=executor or LocalExecutor(command=WORKER), devices=FixedDevices())
    with ReadyClient(make_parts(EchoEngine(), echo_tokenizer(), DeployParams(**given), machine=machine)) as client:
        yield EchoApi(client)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("roots")
    (folder / "train.jsonl").write_text("{}\n")
    (folder / "model").mkdir()
    (folder / "out").symlink_to("/etc")
    return folder


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, roots: Path) -> Iterator[EchoApi]:
    with serving(tmp_path_factory.mktemp("state"), job_roots=(str(roots),)) as api:
        yield api


@pytest.fixture(scope="module")
def done(api: EchoApi) -> dict[str, Any]:
    """A job that has succeeded."""
    return ended(api, metadata={"who": "test"})


def ended(api: EchoApi, type: str = "sft", parameters: dict[str, Any] = SFT, **fields: Any) -> dict[str, Any]:
    """A job that has ended."""
    return api.jobs.wait(api.jobs.create(type, parameters, **fields)["id"])


def task_of(api: EchoApi, job: dict[str, Any]) -> dict[str, Any]:
    folders = api.http.parts[Jobs].folders
    return json.loads((folders.attempt(job["id"], 1) / "task.json").read_text())["params"]


def test_a_job_is_created_runs_and_tells_what_came_of_it(done: dict[str, Any]) -> None:
    assert done["status"] == "succeeded"
    assert done["parameters"] == SFT
    assert done["metadata"] == {"who": "test"}
    told = {"kind": "adapter", "task_type": "causal_lm", "final_step": 10, "trained_tokens": 80, "metrics": {}}
    assert done["result"] == told
    assert done["created_at"] <= done["started_at"] <= done["finished_at"]


@pytest.mark.parametrize(
    ("type", "parameters"),
    [
        ("rlhf", {"rlhf_type": "rm", "center_rewards_coefficient": 0.01}),
        ("sft", {"task_type": "seq_cls", "num_labels": 3, "problem_type": "multi_label_classification"}),
    ],
)
def test_reward_models_and_classifiers_are_trained(api: EchoApi, type: str, parameters: dict[str, Any]) -> None:
    job = ended(api, type, SFT | parameters)
    assert (job["status"], task_of(api, job).items() >= parameters.items()) == ("succeeded", True)


def test_a_dry_run_tells_what_a_training_would_take_of_memory(tmp_path: Path) -> None:
    """By the worker that users have."""
    make_model(tmp_path / "tiny")
    make_data(tmp_path / "rows.jsonl")
    parameters = {"model": "tiny", "dataset": ["rows.jsonl"], "dry_run": True, "split_dataset_ratio": 0}
    with serving(tmp_path / "state", executor=LocalExecutor(), job_roots=(str(tmp_path),)) as api:
        job = ended(api, parameters=parameters)

    assert (job["status"], job["fine_tuned_model"], job["result"]["kind"]) == ("succeeded", None, None), job
    memory = job["result"]["memory"]
    assert memory["total"] == sum(memory["parts"].values()) and memory["parts"]["weights"] > 100_000
    assert memory["fits"] and memory["available"] > memory["total"]
    assert (memory["device"], memory["texts"], memory["smaller"]) == ("cpu", 1, [])


def test_jobs_are_listed_in_pages_and_by_status(api: EchoApi, done: dict[str, Any]) -> None:
    other = ended(api, "merge", {"model": "org/model", "adapters": ["org/adapter"]})
    page = api.jobs.page(limit=1)
    assert ([job["id"] for job in page["data"]], page["has_more"]) == ([other["id"]], True)
    rest = api.jobs.page(after=other["id"])["data"]
    assert done["id"] in [job["id"] for job in rest]
    merges = api.jobs.page(type="merge", status="succeeded")["data"]
    assert {job["type"] for job in merges} == {"merge"}
    assert api.http.get("/v1/jobs/job-nope").json()["error"]["code"] == "not_found"


def test_events_come_in_pages_as_the_worker_wrote_them(api: EchoApi, done: dict[str, Any]) -> None:
    id = done["id"]
    everything = api.jobs.events(id)["data"]
    assert [event["step"] for event in everything if event["type"] == "step"] == list(range(1, 11))
    first = api.jobs.events(id, limit=3)
    assert first["has_more"]
    rest = api.jobs.events(id, after=first["last_id"])["data"]
    assert first["data"] + rest == everything
    newest = api.jobs.events(id, order="desc", limit=1)["data"]
    assert newest == everything[-1:]


def test_events_stream_to_the_end_and_a_client_goes_on_where_it_was(api: EchoApi) -> None:
    job = api.jobs.create("sft", SFT)
    path, accept = f"/v1/jobs/{job['id']}/events", {"accept": "text/event-stream"}
    with api.http.stream("GET", path, headers=accept) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        text = reply.read().decode().replace("\r\n", "\n")
    blocks = [
        dict(line.split(": ", 1) for line in block.split("\n")) for block in text.split("\n\n") if "data" in block
    ]
    told = [json.loads(block["data"]) for block in blocks]
    assert [event["step"] for event in told if event["type"] == "step"] == list(range(1, 11))
    assert [block["event"] for block in blocks] == [event["type"] for event in told]
    again = api.http.get(path, headers=accept | {"last-event-id": blocks[4]["id"]}).text
    assert [line for line in again.splitlines() if line.startswith("id:")] == [f"id: {b['id']}" for b in blocks[5:]]
    assert api.http.get(path, headers=accept | {"last-event-id": blocks[-1]["id"]}).status_code == 204
    assert api.http.get(path, headers=accept | {"last-event-id": "x"}).status_code == 400
    for number in ("9" * 30, "9" * 5000):
        assert api.http.get(path, headers=accept | {"last-event-id": number}).status_code == 400


def test_a_stream_ends_with_the_server_and_not_the_server_with_the_stream(tmp_path: Path) -> None:
    with serving(tmp_path, max_running_jobs=0) as api:
        job = api.jobs.create("sft", SFT)
        told: list[str] = []
        reading = threading.Thread(
            target=lambda: told.append(api.http.get(f"/v1/jobs/{job['id']}/events", headers=SSE).text)
        )
        reading.start()
        api.http.portal.call(api.http.parts[Jobs].stop, 0)
        reading.join(PATIENCE)
    assert not reading.is_alive() and "Created the job" in told[0]


def test_many_streams_together_look_for_news_no_more_often_than_a_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await real(0.01)

    real = asyncio.sleep
    monkeypatch.setattr(stream, "asyncio", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(stream, "MOST_LOOKS", 2)
    with serving(tmp_path, max_running_jobs=0) as api:
        path = f"/v1/jobs/{api.jobs.create('sft', SFT)['id']}/events"
        reading = [threading.Thread(target=lambda: api.http.get(path, headers=SSE)) for _ in range(8)]
        for each in reading:
            each.start()
        until(lambda: max(pauses, default=0) == 4.0)
        assert min(pauses) == 0.5
        api.http.portal.call(api.http.parts[Jobs].stop, 0)
        for each in reading:
            each.join(PATIENCE)
        assert api.http.parts[Jobs].streams == 0


def test_metrics_are_the_loss_curve(api: EchoApi, done: dict[str, Any]) -> None:
    curve = api.jobs.curve(done["id"])
    assert [(point["step"], point["metrics"]["loss"]) for point in curve] == [(n, 1 / n) for n in range(1, 11)]
    assert 'tuneserve:jobs{status="succeeded",type="sft"}' in api.http.get("/metrics").text


def test_logs_come_in_pages_of_whole_lines(api: EchoApi, done: dict[str, Any]) -> None:
    id = done["id"]
    assert api.jobs.logs(id) == {
        "object": "job.logs", "attempt": 1, "text": "It begins.\nIt ends.\n", "offset": 0, "next_offset": 20,
        "has_more": False,
    }  # fmt: skip
    page = api.jobs.logs(id, limit=14)
    assert (page["text"], page["next_offset"], page["has_more"]) == ("It begins.\n", 11, True)
    assert api.jobs.logs(id, offset=11)["text"] == "It ends.\n"
    assert api.jobs.logs(id, attempt=7)["text"] == ""
    assert api.http.get(f"/v1/jobs/{id}/logs?attempt={'9' * 300}").status_code == 400


def test_artifacts_are_listed_and_downloaded(api: EchoApi, done: dict[str, Any]) -> None:
    listed = api.jobs.artifacts(done["id"])
    assert listed["result"] == "1/adapter"
    paths = [file["path"] for file in listed["data"]]
    assert "1/adapter/adapter_config.json" in paths and "1/checkpoint-4/state.json" in paths
    assert not any("task.json" in path for path in paths)
    reply = api.jobs.artifact(done["id"], "1/checkpoint-4/state.json")
    assert reply.json() == {"step": 4}


@pytest.mark.parametrize(
    "name",
    ["1/task.json", "plan.json", "1", "%2e%2e/%2e%2e/store/tuneserve.sqlite3",
     "/etc/passwd", "1/link", "1/.secret", "data/x", "1/%00"],
)  # fmt: skip
def test_no_other_file_is_downloaded(api: EchoApi, done: dict[str, Any], name: str) -> None:
    folder = api.http.parts[Jobs].folders.attempt(done["id"], 1)
    if not (folder / "link").is_symlink():
        (folder / "link").symlink_to("/etc/passwd")
    (folder / ".secret").write_text("x")
    assert api.jobs.artifact(done["id"], name).status_code == 404


def test_a_waiting_job_is_paused_resumed_cancelled_and_deleted(tmp_path: Path) -> None:
    with serving(tmp_path, max_running_jobs=0) as api:
        id = api.jobs.create("sft", SFT)["id"]
        assert api.jobs.move(id, "retry").status_code == 409
        assert api.jobs.move(id, "pause").json()["status"] == "paused"
        assert api.jobs.move(id, "resume").json()["status"] in ("queued", "validating_files")
        assert api.jobs.move(id, "cancel").json()["status"] == "cancelled"
        assert api.jobs.move(id, "cancel").json()["error"]["code"] == "conflict"
        # While the look at its data is still ending, it cannot be deleted.
        reply = until(lambda: reply if (reply := api.http.delete(f"/v1/jobs/{id}")).status_code != 409 else None)
        assert reply.json() == {"id": id, "object": "job", "deleted": True}
        assert api.http.get(f"/v1/jobs/{id}").status_code == 404


# ---- what a job may name


def test_uploaded_files_are_the_jobs_own_from_then_on(api: EchoApi) -> None:
    file = api.upload(LINE)
    job = ended(api, parameters={"model": "echo", "dataset": [f"{file}#1"]})
    name = task_of(api, job)["dataset"][0]
    assert name.endswith(f"/data/{file}.jsonl#1")
    assert job["parameters"]["dataset"] == [f"{file}#1"]
    api.http.delete(f"/v1/files/{file}")
    assert Path(name.removesuffix("#1")).read_text() == LINE
    assert api.jobs.refused("sft", SFT | {"dataset": [file]})["param"] == "parameters.dataset"


def test_the_served_model_is_known_by_its_name(api: EchoApi) -> None:
    job = ended(api, parameters=SFT | {"model": "echo"})
    assert (task_of(api, job)["model"], job["parameters"]["model"]) == ("tests/echo", "echo")


def test_a_jobs_result_is_named_by_its_id(api: EchoApi, done: dict[str, Any]) -> None:
    folder = api.http.parts[Jobs].folders.attempt(done["id"], 1)
    job = ended(api, "merge", {"model": "org/m", "adapters": [done["id"]]})
    assert task_of(api, job)["adapters"] == [str(folder / "adapter")]
    job = ended(api, parameters=SFT | {"resume_from_checkpoint": done["id"], "resume_only_model": True})
    assert task_of(api, job)["resume_from_checkpoint"] == str(folder / "checkpoint-10")
    message = api.jobs.refused("sft", SFT | {"model": done["id"]})["message"]
    assert "has made no model" in message and "name it in adapters" in message
    assert api.jobs.refused("sft", SFT | {"model": "job-nope"})["param"] == "parameters.model"


def test_what_a_checkpoint_began_with_is_needed_by_what_resumes_it(api: EchoApi) -> None:
    first, second = ended(api), ended(api, parameters=SFT | {"save_only_model": False})
    folders = api.http.parts[Jobs].folders
    adapter = folders.attempt(first["id"], 1) / "adapter"
    checkpoint = folders.attempt(second["id"], 1) / "checkpoint-10"
    (checkpoint / "args.json").write_text(json.dumps({"adapters": [str(adapter)], "given": ["adapters"]}))
    job = ended(api, parameters=SFT | {"resume_from_checkpoint": second["id"]})
    assert "adapters" not in job["parameters"]
    assert task_of(api, job)["adapters"] == [str(adapter)]


def test_paths_lie_under_job_roots(api: EchoApi, roots: Path) -> None:
    given = {"model": "model", "dataset": [f"{roots}/train.jsonl#5"]}
    params = task_of(api, ended(api, parameters=given))
    assert params["model"] == str(roots / "model")
    assert params["dataset"] == [f"{roots}/train.jsonl#5"]


@pytest.mark.parametrize("path", ["/etc/passwd", "/nope", "../x", "{roots}/out/passwd", "{roots}/../x", "a\0b"])
@pytest.mark.parametrize("name", ["model", "dataset", "val_dataset", "resume_from_checkpoint", "adapters"])
def test_no_other_path_is_read_and_all_are_refused_in_the_same_words(
    api: EchoApi, roots: Path, name: str, path: str
) -> None:
    path = path.format(roots=roots)
    listed = name in ("dataset", "val_dataset", "adapters")
    error = api.jobs.refused("sft", SFT | {name: [path] if listed else path})
    assert error["param"] == f"parameters.{name}"
    assert "must lie under a folder of job_roots" in error["message"]


@pytest.mark.parametrize("path", [".", "state", "state/files", "state/jobs", "other/../state", "link"])
def test_what_the_server_keeps_is_not_read_by_its_path_though_it_lies_in_a_root(tmp_path: Path, path: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "state")
    with serving(tmp_path / "state", job_roots=(str(tmp_path),)) as api:
        error = api.jobs.refused("sft", SFT | {"dataset": [f"{tmp_path}/{path}"]})
        assert "must lie under a folder of job_roots" in error["message"]


def test_what_is_not_in_the_roots_is_not_found(api: EchoApi) -> None:
    for path in ("~/x", "nothing.jsonl", "file:///etc/passwd"):
        assert api.jobs.refused("sft", SFT | {"dataset": [path]})["code"] in ("not_found", "invalid_request")


# ---- what is refused


@pytest.mark.parametrize(
    ("type", "parameters", "param", "said"),
    [
        ("export", {"model": "m"}, "parameters.merge_lora", "say what is to be made of it"),
        ("nope", {}, "type", "is not supported in this version; choose sft, pt, rlhf, merge, export, infer or eval"),
        ("sft", SFT | {"nope": 1}, "parameters.nope", "Unknown parameter"),
        ("sft", SFT | {"learning_rate": -1}, "parameters.learning_rate", "greater than 0 (got -1)"),
        ("rlhf", SFT, "parameters.rlhf_type", "Missing required parameter"),
        ("sft", SFT | {"custom_register_path": ["x.py"]}, "parameters.custom_register_path", "cannot be chosen"),
        ("sft", SFT | {"output_dir": "/tmp"}, "parameters.output_dir", "cannot be chosen"),
        ("sft", SFT | {"hub_token": "secret"}, "parameters.hub_token", "cannot be chosen"),
        ("sft", SFT | {"report_to": ["wandb"]}, "parameters.report_to", "tensorboard"),
        ("sft", SFT | {"logprobs": True}, "parameters.logprobs", "a training writes no text"),
        ("sft", SFT | {"dataset_num_proc": 10_000}, "parameters.dataset_num_proc", "at most"),
        ("sft", {"model": "m"}, "parameters.dataset", "Missing required parameter"),
        ("sft", {"dataset": ["d"]}, "parameters.model", "Missing required parameter"),
        ("sft", SFT | {"num_labels": 3}, "parameters.num_labels", "only task_type seq_cls reads it"),
        ("rlhf", SFT | {"rlhf_type": "rm", "num_labels": 3}, "parameters.num_labels", "a reward is one number"),
        ("merge", {"model": "m"}, "parameters.adapters", "name the adapter"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    api: EchoApi, type: str, parameters: dict[str, Any], param: str, said: str
) -> None:
    error = api.jobs.refused(type, parameters)
    assert error["param"] == param
    assert said in error["message"] and "secret" not in error["message"]


def test_more_gpus_than_there_are_are_refused(api: EchoApi) -> None:
    error = api.jobs.refused("sft", SFT, devices=3)
    assert (error["param"], error["message"]) == ("devices", "devices is 3, and this server has 0 GPUs.")


def test_a_request_that_is_refused_leaves_no_folder(api: EchoApi) -> None:
    root = api.http.parts[Jobs].folders.root
    before = set(root.iterdir())
    api.jobs.refused("sft", SFT | {"dataset": ["file-nope"]})
    assert set(root.iterdir()) == before


def test_where_another_server_has_the_database_there_are_no_jobs(tmp_path: Path) -> None:
    with serving(tmp_path), serving(tmp_path) as second:
        assert second.jobs.post("sft", SFT).status_code == 409
        assert second.http.get("/v1/jobs").status_code == 409
