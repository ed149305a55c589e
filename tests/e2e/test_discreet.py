"""Everything that a client of the API gets of real jobs, looked through for folders of the server's machine."""

import sys
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
from tests.training.jobs import make_data, make_model
from tests.until import until

QUICK = {"model": "tiny", "dataset": ["lines.jsonl"], "num_train_epochs": 1, "save_steps": 2, "torch_dtype": "float32"}
EVALUATED = {"split_dataset_ratio": 0.2, "eval_steps": 2, "report_to": ["tensorboard"]}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("machine")
    make_model(folder / "tiny")
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text("{}")
    make_data(folder / "lines.jsonl")
    return folder


@pytest.fixture(scope="module")
def client(root: Path) -> Iterator[ReadyClient]:
    (root / "state").mkdir()
    given: dict[str, Any] = {"state_dir": str(root / "state"), "job_roots": (str(root),), "job_retries": 0}
    params = DeployParams(model="tests/echo", verbose=False, **given)
    machine = Machine(executor=LocalExecutor(), devices=FixedDevices())
    with ReadyClient(make_parts(EchoEngine(), echo_tokenizer(), params, machine=machine)) as client:
        yield client


def ended(client: ReadyClient, type: str, parameters: dict[str, Any], status: str = "succeeded") -> dict[str, Any]:
    reply = client.post("/v1/jobs", json={"type": type, "parameters": parameters})
    assert reply.status_code == 200, reply.text
    path = f"/v1/jobs/{reply.json()['id']}"

    def look() -> dict[str, Any] | None:
        job: dict[str, Any] = client.get(path).json()
        return job if job["finished_at"] else None

    job = until(look, seconds=240)
    assert job["status"] == status, (job, client.get(f"{path}/logs").text)
    return job


def everything(client: ReadyClient, job: dict[str, Any]) -> dict[str, bytes]:
    """What the API tells of `job`, and every file that it hands out."""
    path = f"/v1/jobs/{job['id']}"
    seen = {name: client.get(f"{path}{name}").content for name in ("", "/events", "/metrics", "/logs", "/artifacts")}
    seen["/logs of the look at the data"] = client.get(f"{path}/logs?attempt=0").content
    for file in client.get(f"{path}/artifacts").json()["data"]:
        seen[file["path"]] = client.get(f"{path}/artifacts/{file['path']}").content
    return seen


def check(seen: dict[str, bytes], root: Path) -> None:
    folders = {str(root), str(root.parent), sys.prefix, sys.base_prefix, str(Path.home()) + "/"}
    told = [(name, folder) for name, data in seen.items() for folder in folders if folder.encode() in data]
    assert told == []


@pytest.fixture(scope="module")
def trained(client: ReadyClient) -> dict[str, Any]:
    return ended(client, "sft", QUICK | EVALUATED)


def test_an_adapter_names_its_base_without_the_folder(client: ReadyClient, root: Path, trained: dict[str, Any]) -> None:
    seen = everything(client, trained)
    check(seen, root)
    result = client.get(f"/v1/jobs/{trained['id']}/artifacts").json()["result"]
    config = client.get(f"/v1/jobs/{trained['id']}/artifacts/{result}/adapter_config.json").json()
    assert config["base_model_name_or_path"] == "tiny"
    assert client.get(f"/v1/jobs/{trained['id']}/artifacts/{result}/trainer_state.json").json()["best_model_checkpoint"]
    assert any("tfevents" in name for name in seen) and any(name.endswith("README.md") for name in seen)


def test_it_is_merged_without_naming_the_model(client: ReadyClient, root: Path, trained: dict[str, Any]) -> None:
    merged = ended(client, "merge", {"adapters": [trained["id"]]})
    seen = everything(client, merged)
    check(seen, root)
    assert any(name.endswith("merged/model.safetensors") for name in seen)


def test_a_whole_model_names_no_folder(client: ReadyClient, root: Path) -> None:
    check(everything(client, ended(client, "sft", QUICK | EVALUATED | {"train_type": "full"})), root)


def test_a_failure_names_no_folder(client: ReadyClient, root: Path) -> None:
    job = ended(client, "sft", QUICK | {"model": "broken"}, status="failed")
    seen = everything(client, job)
    check(seen, root)
    assert "broken" in job["error"]["message"]
    log = client.parts[Jobs].folders.attempt(job["id"], 1) / "worker.log"
    assert not log.exists() or "worker.log" not in "".join(seen)
