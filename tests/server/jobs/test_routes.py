"""/v1/jobs over HTTP, with workers that take milliseconds."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.echo import EchoEngine, echo_tokenizer
from engines.params.deploy import DeployParams
from server.jobs.devices import FixedDevices
from server.jobs.executor import LocalExecutor
from server.jobs.jobs import Jobs, Machine
from server.parts import make_parts
from tests.server.client import ReadyClient
from tests.server.jobs.conftest import WORKER
from tests.until import until

SSE = {"accept": "text/event-stream"}
SFT = {"model": "org/model", "dataset": ["org/data#20"]}


def make_client(state: Path, **params: Any) -> ReadyClient:
    limits = {"max_running_jobs": 1, "job_retries": 1, "job_gpu_memory": 0}
    params = {"model": "tests/echo", "state_dir": str(state), "verbose": False} | limits | params
    machine = Machine(executor=LocalExecutor(command=WORKER), devices=FixedDevices())
    return ReadyClient(make_parts(EchoEngine(), echo_tokenizer(), DeployParams(**params), machine=machine))


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("roots")
    (folder / "train.jsonl").write_text("{}\n")
    (folder / "model").mkdir()
    (folder / "out").symlink_to("/etc")
    return folder


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, roots: Path) -> Iterator[ReadyClient]:
    with make_client(tmp_path_factory.mktemp("state"), job_roots=(str(roots),)) as client:
        yield client


@pytest.fixture(scope="module")
def done(client: ReadyClient) -> dict[str, Any]:
    """A job that has succeeded."""
    return ended(client, create(client, metadata={"who": "test"}))


def create(client: ReadyClient, type: str = "sft", parameters: dict[str, Any] = SFT, **fields: Any) -> dict[str, Any]:
    reply = client.post("/v1/jobs", json={"type": type, "parameters": parameters, **fields})
    assert reply.status_code == 200, reply.text
    return reply.json()


def ended(client: ReadyClient, job: dict[str, Any]) -> dict[str, Any]:
    def look() -> dict[str, Any]:
        return client.get(f"/v1/jobs/{job['id']}").json()

    until(lambda: look()["status"] in ("succeeded", "failed", "cancelled"), told=look)
    return look()


def task_of(client: ReadyClient, job: dict[str, Any]) -> dict[str, Any]:
    folders = client.parts[Jobs].folders
    return json.loads((folders.attempt(job["id"], 1) / "task.json").read_text())["params"]


def refused(client: ReadyClient, type: str, parameters: dict[str, Any], **fields: Any) -> dict[str, Any]:
    reply = client.post("/v1/jobs", json={"type": type, "parameters": parameters, **fields})
    assert reply.status_code in (400, 404), reply.text
    return reply.json()["error"]


def test_a_job_is_created_runs_and_tells_what_came_of_it(done: dict[str, Any]) -> None:
    assert done["status"] == "succeeded"
    assert done["parameters"] == SFT
    assert done["metadata"] == {"who": "test"}
    assert done["result"] == {"kind": "adapter", "final_step": 10, "trained_tokens": 80, "metrics": {}}
    assert done["created_at"] <= done["started_at"] <= done["finished_at"]


def test_jobs_are_listed_in_pages_and_by_status(client: ReadyClient, done: dict[str, Any]) -> None:
    other = ended(client, create(client, "merge", {"model": "org/model", "adapters": ["org/adapter"]}))
    page = client.get("/v1/jobs", params={"limit": 1}).json()
    assert ([job["id"] for job in page["data"]], page["has_more"]) == ([other["id"]], True)
    rest = client.get("/v1/jobs", params={"after": other["id"]}).json()["data"]
    assert done["id"] in [job["id"] for job in rest]
    merges = client.get("/v1/jobs", params={"type": "merge", "status": "succeeded"}).json()["data"]
    assert {job["type"] for job in merges} == {"merge"}
    assert client.get("/v1/jobs/job-nope").json()["error"]["code"] == "not_found"


def test_events_come_in_pages_as_the_worker_wrote_them(client: ReadyClient, done: dict[str, Any]) -> None:
    path = f"/v1/jobs/{done['id']}/events"
    everything = client.get(path).json()["data"]
    assert [event["step"] for event in everything if event["type"] == "step"] == list(range(1, 11))
    first = client.get(path, params={"limit": 3}).json()
    assert first["has_more"]
    rest = client.get(path, params={"after": first["last_id"]}).json()["data"]
    assert first["data"] + rest == everything
    newest = client.get(path, params={"order": "desc", "limit": 1}).json()["data"]
    assert newest == everything[-1:]


def test_events_stream_to_the_end_and_a_client_goes_on_where_it_was(client: ReadyClient) -> None:
    job = create(client)
    path, accept = f"/v1/jobs/{job['id']}/events", {"accept": "text/event-stream"}
    with client.stream("GET", path, headers=accept) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        text = reply.read().decode().replace("\r\n", "\n")
    blocks = [
        dict(line.split(": ", 1) for line in block.split("\n")) for block in text.split("\n\n") if "data" in block
    ]
    told = [json.loads(block["data"]) for block in blocks]
    assert [event["step"] for event in told if event["type"] == "step"] == list(range(1, 11))
    assert [block["event"] for block in blocks] == [event["type"] for event in told]
    again = client.get(path, headers=accept | {"last-event-id": blocks[4]["id"]}).text
    assert [line for line in again.splitlines() if line.startswith("id:")] == [f"id: {b['id']}" for b in blocks[5:]]
    assert client.get(path, headers=accept | {"last-event-id": blocks[-1]["id"]}).status_code == 204
    assert client.get(path, headers=accept | {"last-event-id": "x"}).status_code == 400


def test_a_stream_ends_with_the_server_and_not_the_server_with_the_stream(tmp_path: Path) -> None:
    with make_client(tmp_path, max_running_jobs=0) as client:
        job = create(client)
        told: list[str] = []
        reading = threading.Thread(
            target=lambda: told.append(client.get(f"/v1/jobs/{job['id']}/events", headers=SSE).text)
        )
        reading.start()
        client.portal.call(client.parts[Jobs].stop, 0)
        reading.join(20)
    assert not reading.is_alive() and "Created the job" in told[0]


def test_metrics_are_the_loss_curve(client: ReadyClient, done: dict[str, Any]) -> None:
    curve = client.get(f"/v1/jobs/{done['id']}/metrics").json()["data"]
    assert [(point["step"], point["metrics"]["loss"]) for point in curve] == [(n, 1 / n) for n in range(1, 11)]
    assert 'tuneserve:jobs{status="succeeded",type="sft"}' in client.get("/metrics").text


def test_logs_come_in_pages_of_whole_lines(client: ReadyClient, done: dict[str, Any]) -> None:
    path = f"/v1/jobs/{done['id']}/logs"
    assert client.get(path).json() == {
        "object": "job.logs", "attempt": 1, "text": "It begins.\nIt ends.\n", "offset": 0, "next_offset": 20,
        "has_more": False,
    }  # fmt: skip
    page = client.get(path, params={"limit": 14}).json()
    assert (page["text"], page["next_offset"], page["has_more"]) == ("It begins.\n", 11, True)
    assert client.get(path, params={"offset": 11}).json()["text"] == "It ends.\n"
    assert client.get(path, params={"attempt": 7}).json()["text"] == ""


def test_artifacts_are_listed_and_downloaded(client: ReadyClient, done: dict[str, Any]) -> None:
    path = f"/v1/jobs/{done['id']}/artifacts"
    listed = client.get(path).json()
    assert listed["result"] == "1/adapter"
    paths = [file["path"] for file in listed["data"]]
    assert "1/adapter/adapter_config.json" in paths and "1/checkpoint-4/state.json" in paths
    assert not any("task.json" in path for path in paths)
    reply = client.get(f"{path}/1/checkpoint-4/state.json")
    assert reply.json() == {"step": 4}


@pytest.mark.parametrize(
    "name",
    ["1/task.json", "plan.json", "1", "%2e%2e/%2e%2e/store/tuneserve.sqlite3",
     "/etc/passwd", "1/link", "1/.secret", "data/x", "1/%00"],
)  # fmt: skip
def test_no_other_file_is_downloaded(client: ReadyClient, done: dict[str, Any], name: str) -> None:
    folder = client.parts[Jobs].folders.attempt(done["id"], 1)
    if not (folder / "link").is_symlink():
        (folder / "link").symlink_to("/etc/passwd")
    (folder / ".secret").write_text("x")
    assert client.get(f"/v1/jobs/{done['id']}/artifacts/{name}").status_code == 404


def test_a_waiting_job_is_paused_resumed_cancelled_and_deleted(tmp_path: Path) -> None:
    with make_client(tmp_path, max_running_jobs=0) as client:
        job = create(client)
        path = f"/v1/jobs/{job['id']}"
        assert client.post(f"{path}/retry").status_code == 409
        assert client.post(f"{path}/pause").json()["status"] == "paused"
        assert client.post(f"{path}/resume").json()["status"] in ("queued", "validating_files")
        assert client.post(f"{path}/cancel").json()["status"] == "cancelled"
        assert client.post(f"{path}/cancel").json()["error"]["code"] == "conflict"
        # While the look at its data is still ending, it cannot be deleted.
        reply = until(lambda: reply if (reply := client.delete(path)).status_code != 409 else None)
        assert reply.json() == {"id": job["id"], "object": "job", "deleted": True}
        assert client.get(path).status_code == 404


# ---- what a job may name


def test_uploaded_files_are_the_jobs_own_from_then_on(client: ReadyClient) -> None:
    line = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    upload = {"file": ("mine.jsonl", line)}
    file = client.post("/v1/files", files=upload, data={"purpose": "fine-tune"}).json()
    job = ended(client, create(client, parameters={"model": "echo", "dataset": [f"{file['id']}#1"]}))
    name = task_of(client, job)["dataset"][0]
    assert name.endswith(f"/data/{file['id']}.jsonl#1")
    assert job["parameters"]["dataset"] == [f"{file['id']}#1"]
    client.delete(f"/v1/files/{file['id']}")
    assert Path(name.removesuffix("#1")).read_bytes() == line
    assert refused(client, "sft", SFT | {"dataset": [file["id"]]})["param"] == "parameters.dataset"


def test_the_served_model_is_known_by_its_name(client: ReadyClient) -> None:
    job = ended(client, create(client, parameters=SFT | {"model": "echo"}))
    assert (task_of(client, job)["model"], job["parameters"]["model"]) == ("tests/echo", "echo")


def test_a_jobs_result_is_named_by_its_id(client: ReadyClient, done: dict[str, Any]) -> None:
    folder = client.parts[Jobs].folders.attempt(done["id"], 1)
    job = ended(client, create(client, "merge", {"model": "org/m", "adapters": [done["id"]]}))
    assert task_of(client, job)["adapters"] == [str(folder / "adapter")]
    job = create(client, parameters=SFT | {"resume_from_checkpoint": done["id"]})
    assert task_of(client, ended(client, job))["resume_from_checkpoint"] == str(folder / "checkpoint-10")
    assert "has made no model" in refused(client, "sft", SFT | {"model": done["id"]})["message"]
    assert refused(client, "sft", SFT | {"model": "job-nope"})["param"] == "parameters.model"


def test_paths_lie_under_job_roots(client: ReadyClient, roots: Path) -> None:
    given = {"model": "model", "dataset": [f"{roots}/train.jsonl#5"]}
    params = task_of(client, ended(client, create(client, parameters=given)))
    assert params["model"] == str(roots / "model")
    assert params["dataset"] == [f"{roots}/train.jsonl#5"]


@pytest.mark.parametrize("path", ["/etc/passwd", "/nope", "../x", "{roots}/out/passwd", "{roots}/../x", "a\0b"])
@pytest.mark.parametrize("name", ["model", "dataset", "val_dataset", "resume_from_checkpoint", "adapters"])
def test_no_other_path_is_read_and_all_are_refused_in_the_same_words(
    client: ReadyClient, roots: Path, name: str, path: str
) -> None:
    path = path.format(roots=roots)
    listed = name in ("dataset", "val_dataset", "adapters")
    error = refused(client, "sft", SFT | {name: [path] if listed else path})
    assert error["param"] == f"parameters.{name}"
    assert "must lie under a folder of job_roots" in error["message"]


def test_what_is_not_in_the_roots_is_not_found(client: ReadyClient) -> None:
    for path in ("~/x", "nothing.jsonl", "file:///etc/passwd"):
        assert refused(client, "sft", SFT | {"dataset": [path]})["code"] in ("not_found", "invalid_request")


# ---- what is refused


@pytest.mark.parametrize(
    ("type", "parameters", "param", "said"),
    [
        ("export", {}, "type", "is not supported in this version; choose sft, pt, rlhf or merge"),
        ("nope", {}, "type", "choose sft"),
        ("sft", SFT | {"nope": 1}, "parameters.nope", "Unknown parameter"),
        ("sft", SFT | {"learning_rate": -1}, "parameters.learning_rate", "greater than 0 (got -1)"),
        ("rlhf", SFT, "parameters.rlhf_type", "Missing required parameter"),
        ("sft", SFT | {"custom_register_path": ["x.py"]}, "parameters.custom_register_path", "cannot be chosen"),
        ("sft", SFT | {"output_dir": "/tmp"}, "parameters.output_dir", "cannot be chosen"),
        ("sft", SFT | {"hub_token": "secret"}, "parameters.hub_token", "cannot be chosen"),
        ("sft", SFT | {"report_to": ["wandb"]}, "parameters.report_to", "tensorboard"),
        ("sft", SFT | {"train_type": "boft"}, "parameters.train_type", "not supported in this version"),
        ("sft", SFT | {"dataset_num_proc": 10_000}, "parameters.dataset_num_proc", "at most"),
        ("sft", {"model": "m"}, "parameters.dataset", "Missing required parameter"),
        ("sft", {"dataset": ["d"]}, "parameters.model", "Missing required parameter"),
        ("merge", {"model": "m"}, "parameters.adapters", "name the adapter"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    client: ReadyClient, type: str, parameters: dict[str, Any], param: str, said: str
) -> None:
    error = refused(client, type, parameters)
    assert error["param"] == param
    assert said in error["message"] and "secret" not in error["message"]


def test_more_gpus_than_there_are_are_refused(client: ReadyClient) -> None:
    error = refused(client, "sft", SFT, devices=3)
    assert (error["param"], error["message"]) == ("devices", "devices is 3, and this server has 0 GPUs.")


def test_a_request_that_is_refused_leaves_no_folder(client: ReadyClient) -> None:
    root = client.parts[Jobs].folders.root
    before = set(root.iterdir())
    refused(client, "sft", SFT | {"dataset": ["file-nope"]})
    assert set(root.iterdir()) == before


def test_where_another_server_has_the_database_there_are_no_jobs(tmp_path: Path) -> None:
    with make_client(tmp_path), make_client(tmp_path) as second:
        assert second.post("/v1/jobs", json={"type": "sft", "parameters": SFT}).status_code == 409
        assert second.get("/v1/jobs").status_code == 409
