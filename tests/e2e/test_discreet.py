"""Everything that a client of the API gets of real jobs, looked through for folders of the server's machine."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.echo import EchoEngine, echo_tokenizer
from engines.params.deploy import DeployParams
from server.jobs.devices import FixedDevices
from server.jobs.jobs import Jobs, Machine
from server.parts import make_parts
from tests.server.api import EchoApi
from tests.server.client import ReadyClient
from tests.training.jobs import make_data, make_model
from tests.training.worker import ForkedExecutor

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
def api(root: Path) -> Iterator[EchoApi]:
    (root / "state").mkdir()
    given: dict[str, Any] = {"state_dir": str(root / "state"), "job_roots": (str(root),), "job_retries": 0}
    params = DeployParams(model="tests/echo", verbose=False, **given)
    machine = Machine(executor=ForkedExecutor(), devices=FixedDevices())
    with ReadyClient(make_parts(EchoEngine(), echo_tokenizer(), params, machine=machine)) as client:
        yield EchoApi(client)


def ended(api: EchoApi, type: str, parameters: dict[str, Any], status: str = "succeeded") -> dict[str, Any]:
    return api.jobs.wait(api.jobs.create(type, parameters)["id"], status)


def everything(api: EchoApi, job: dict[str, Any]) -> dict[str, bytes]:
    """What the API tells of `job`, and every file that it hands out."""
    jobs, id = api.jobs, job["id"]
    told = [jobs.get(id), jobs.events(id), jobs.curve(id), jobs.logs(id), jobs.logs(id, attempt=0), jobs.artifacts(id)]
    files = [file["path"] for file in jobs.artifacts(id)["data"]]
    return {"told": json.dumps(told).encode()} | {file: jobs.artifact(id, file).content for file in files}


def check(seen: dict[str, bytes], root: Path) -> None:
    folders = {str(root), str(root.parent), sys.prefix, sys.base_prefix, str(Path.home()) + "/"}
    told = [(name, folder) for name, data in seen.items() for folder in folders if folder.encode() in data]
    assert told == []


@pytest.fixture(scope="module")
def trained(api: EchoApi) -> dict[str, Any]:
    return ended(api, "sft", QUICK | EVALUATED)


def test_an_adapter_names_its_base_without_the_folder(api: EchoApi, root: Path, trained: dict[str, Any]) -> None:
    seen = everything(api, trained)
    check(seen, root)
    assert json.loads(api.jobs.result(trained["id"], "adapter_config.json"))["base_model_name_or_path"] == "tiny"
    assert json.loads(api.jobs.result(trained["id"], "trainer_state.json"))["best_model_checkpoint"]
    assert any("tfevents" in name for name in seen) and any(name.endswith("README.md") for name in seen)


def test_it_is_exported_quantised_by_the_data_of_the_job(api: EchoApi, root: Path, trained: dict[str, Any]) -> None:
    asked = {"adapters": [trained["id"]], "merge_lora": True, "quant_method": "gptq", "quant_bits": 4, "group_size": 16}
    exported = ended(api, "export", asked | {"dataset": ["lines.jsonl"]})
    seen = everything(api, exported)
    check(seen, root)
    assert exported["result"]["kind"] == "model"
    assert any(name.endswith("exported/model.safetensors") for name in seen)


def test_it_is_merged_without_naming_the_model(api: EchoApi, root: Path, trained: dict[str, Any]) -> None:
    merged = ended(api, "merge", {"adapters": [trained["id"]]})
    seen = everything(api, merged)
    check(seen, root)
    assert any(name.endswith("merged/model.safetensors") for name in seen)


def test_a_whole_model_names_no_folder(api: EchoApi, root: Path) -> None:
    check(everything(api, ended(api, "sft", QUICK | EVALUATED | {"train_type": "full"})), root)


def test_a_failure_names_no_folder(api: EchoApi, root: Path) -> None:
    job = ended(api, "sft", QUICK | {"model": "broken"}, status="failed")
    seen = everything(api, job)
    check(seen, root)
    assert "broken" in job["error"]["message"]
    log = api.http.parts[Jobs].folders.attempt(job["id"], 1) / "worker.log"
    assert log.exists() and not any(name.endswith("worker.log") for name in seen)
