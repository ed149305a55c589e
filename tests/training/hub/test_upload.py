"""What is trained or merged goes to the hub, while it is made and at the end; what cannot go there stays here."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from engines.errors import InvalidRequest
from tests.engines.pt.tiny import CONFIGS, save
from tests.hub import Hub, Repo, running
from tests.training.jobs import TEMPLATE, make_job
from training.folder import JobFolder, Message
from training.params.task import TASK
from training.pipelines import export, merge, train
from training.refusals.supported import refusals
from training.report import Report

TOKEN = "hf_of_the_test"
ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("given")
    model = save(CONFIGS["llama"](), folder / "tiny", tokenizer=True)
    (model / "chat_template.jinja").write_text(TEMPLATE)
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps({"query": f"q{i}", "response": "red"}) + "\n" for i in range(4)))
    return {
        "model": str(model), "dataset": [str(data)], "torch_dtype": "float32", "split_dataset_ratio": 0,
        "max_steps": 2, "save_steps": 1, "report_to": ["none"], "push_to_hub": True,
    }  # fmt: skip


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", hub.url)
        yield hub


def trained(folder: Path, given: dict[str, Any], **more: Any) -> JobFolder:
    job = make_job(folder, "sft", **given | more)
    params = job.read_task().training
    assert train.run(params.model_copy(update={"hub_token": TOKEN}), Report(job)).status == "succeeded"
    return job


def warned(job: JobFolder) -> list[str]:
    return [event.message for event, _ in job.read_events() if isinstance(event, Message) and event.level == "warn"]


def test_checkpoints_go_there_as_they_are_made_and_can_be_loaded_from_there(
    hub: Hub, given: dict[str, Any], tmp_path: Path
) -> None:
    job = trained(tmp_path / "job", given, hub_model_id="me/colours", hub_private_repo=True)
    repo = hub.repos["models/me/colours"]
    assert repo.private and repo.commits[-1] == "End of training"
    assert set(repo.commits[:-1]) <= {"Training in progress, step 1"}
    assert repo.files.keys() >= ADAPTER
    assert not {"optimizer.pt", "trainer_state.json", "training_args.bin", "args.json"} & repo.files.keys()
    last = job.path / "checkpoint-2" / "adapter_model.safetensors"
    assert repo.files[last.name] == last.read_bytes()
    assert hub.brought == {f"Bearer {TOKEN}"}
    assert TOKEN not in "".join(file.read_text() for file in job.path.glob("*.json*"))


def test_the_repository_is_named_after_the_run_unless_told(hub: Hub, given: dict[str, Any], tmp_path: Path) -> None:
    trained(tmp_path / "v0-colours", given, max_steps=1)
    assert not hub.repos["models/me/v0-colours"].private


def test_an_upload_that_fails_is_told_and_loses_nothing(hub: Hub, given: dict[str, Any], tmp_path: Path) -> None:
    hub.refuses_commits = 10
    job = trained(tmp_path / "job", given, hub_model_id="me/colours")
    assert job.checkpoints() == [1, 2]
    assert "checkpoint-2 is here, but could not be uploaded to" in warned(job)[-1]
    assert hub.repos["models/me/colours"].commits == []


def test_a_hub_that_lets_nobody_in_ends_the_training_before_it_begins(
    hub: Hub, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: None)
    job = make_job(tmp_path / "job", "sft", **given)
    with pytest.raises(InvalidRequest) as refused:
        train.run(job.read_task().training, Report(job))
    assert refused.value.param == "push_to_hub"


def test_a_merged_model_goes_there_whole(hub: Hub, given: dict[str, Any], tmp_path: Path) -> None:
    adapter = trained(tmp_path / "job", given, push_to_hub=False).path / "checkpoint-2"
    hub.repos["models/me/whole"] = Repo({})
    asked = {"adapters": [str(adapter)], "push_to_hub": True, "hub_model_id": "me/whole", "commit_message": "merged"}
    job = make_job(tmp_path / "merge", "merge", **asked)
    params: Any = job.read_task().params.model_copy(update={"hub_token": TOKEN})
    assert merge.run(params, Report(job)).status == "succeeded"
    repo = hub.repos["models/me/whole"]
    assert repo.commits == ["merged"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= repo.files.keys()


@pytest.mark.parametrize(
    ("asked", "files"),
    [({"to_gguf": "f16"}, {"model.gguf"}), ({}, {"config.json", "model.safetensors", "tokenizer.json"})],
    ids=["as GGUF", "as it is"],
)
def test_what_is_exported_goes_there_with_its_card(
    hub: Hub, given: dict[str, Any], tmp_path: Path, asked: dict[str, Any], files: set[str]
) -> None:
    asked = asked | {"model": given["model"], "push_to_hub": True, "hub_model_id": "me/exported"}
    job = make_job(tmp_path / "export", "export", **asked)
    params: Any = job.read_task().params.model_copy(update={"hub_token": TOKEN})
    assert export.run(params, Report(job)).status == "succeeded"
    repo = hub.repos["models/me/exported"]
    assert files | {"README.md"} <= repo.files.keys()
    assert str(tmp_path) not in repo.files["README.md"].decode()


@pytest.mark.parametrize(
    ("task", "given"),
    [("sft", {"model": "m", "dataset": ["d"]}), ("merge", {"adapters": ["a"], "commit_message": "mine"})],
)
def test_what_only_an_upload_reads_is_refused_without_one(task: str, given: dict[str, Any]) -> None:
    named = {"hub_model_id": "me/colours", "hub_private_repo": True}
    found = dict(refusals(TASK.validate_python({"task": task, "params": given | named})))
    assert set(found) == set(named) | {"commit_message"} & given.keys()
