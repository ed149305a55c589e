"""Which repositories of the hub jobs of the API may name, and how they come to them."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from engines.errors import EngineUnavailable, InvalidRequest
from engines.params.deploy import DeployParams
from server.commands.argv import parse
from server.jobs import patience
from server.jobs.hooks import NoHooks
from server.jobs.hub import JobHub
from server.jobs.job import Job, JobStatus
from server.jobs.jobs import Jobs
from server.store.access import SERVER
from tests.server.jobs.conftest import Office, sft_task
from tests.server.jobs.test_routes import SFT, ended, serving, task_of
from training.params.hub import SCHEME


def may_read(pattern: str, id: str, kind: str = "data") -> bool:
    try:
        JobHub(allowed=(pattern,), cache=Path(), max_bytes=1).check("dataset", id, kind)
    except InvalidRequest:
        return False
    return True


@pytest.mark.parametrize(
    ("pattern", "id"),
    [("on", "any/thing"), ("org/*", "org/set"), ("org/set", "org/set"), ("*/set-?", "org/set-1"), ("gpt2", "gpt2")],
)
def test_a_pattern_allows_what_is_like_it(pattern: str, id: str) -> None:
    assert may_read(pattern, id)


@pytest.mark.parametrize(
    ("pattern", "id"),
    [
        ("off", "org/set"), ("org/*", "org2/set"), ("org*", "org/set"), ("org*", "organisation/set"), ("*", "org/set"),
        ("org/*", "Org/set"), ("org/s", "org/set"),
    ],
)  # fmt: skip
def test_a_star_stays_within_one_part_of_an_id(pattern: str, id: str) -> None:
    assert not may_read(pattern, id)


def test_a_pattern_may_be_for_one_kind() -> None:
    assert may_read("datasets/org/*", "org/set", "data") and not may_read("datasets/org/*", "org/set", "model")
    assert may_read("models/org/*", "org/m", "model") and may_read("models/org/*", "org/m", "adapter")
    assert not may_read("models/org/*", "org/m", "data")


@pytest.mark.parametrize(
    ("words", "read"),
    [
        ([], ("off",)),
        (["--job_hub", "on"], ("on",)),
        (["--job_hub", "org/*", "datasets/other/set"], ("org/*", "datasets/other/set")),
    ],
)
def test_the_parameter_is_a_word_or_patterns(words: list[str], read: tuple[str, ...]) -> None:
    assert parse(DeployParams, ["--model", "m", *words], prog="deploy").job_hub == read


def test_yaml_reads_on_and_off_as_true_and_false() -> None:
    assert [DeployParams(job_hub=word).job_hub for word in (True, False)] == [("on",), ("off",)]


@pytest.mark.parametrize(
    "given", [("on", "org/*"), ("off", "on"), (), ("a/b/c",), ("/etc/*",), ("org/",), ("hf://org/x",)]
)
def test_what_is_neither_is_refused(given: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match=r"give off, on, or patterns|no pattern of repository ids"):
        DeployParams(job_hub=given)


# ---- over the API


@pytest.mark.parametrize(
    ("type", "parameters", "param"),
    [
        ("sft", {"model": "echo", "dataset": ["org/data:en#5"]}, "dataset"),
        ("sft", {"model": "echo", "dataset": ["file.jsonl"], "val_dataset": ["org/data"]}, "dataset"),
        ("sft", {"model": "org/model", "dataset": ["org/data"]}, "model"),
        ("sft", {"model": "gpt2", "dataset": ["org/data"]}, "model"),
        ("merge", {"model": "echo", "adapters": ["org/adapter"]}, "adapters"),
    ],
)
def test_unless_told_otherwise_a_job_reads_nothing_of_the_hub(
    tmp_path: Path, type: str, parameters: dict[str, Any], param: str
) -> None:
    with serving(tmp_path, job_hub="off") as api:
        error = api.jobs.refused(type, parameters)
        assert error["param"] == f"parameters.{param}"
        if "file.jsonl" not in parameters.get("dataset", []):
            assert "job_hub" in error["message"]


def test_with_patterns_the_refusal_says_what_is_allowed(tmp_path: Path) -> None:
    with serving(tmp_path, job_hub=("org/*", "datasets/x/y")) as api:
        assert ended(api)["status"] == "succeeded"
        message = api.jobs.refused("sft", SFT | {"dataset": ["other/data"]})["message"]
        assert message.endswith(
            "'other/data' is not read: of the hub, jobs of this server read only org/*, datasets/x/y (job_hub)."
        )


def test_what_is_named_is_fetched_into_the_jobs_own_folder(tmp_path: Path) -> None:
    with serving(tmp_path, job_hub_max_size=2) as api:
        job = ended(api, "merge", {"model": "org/model", "adapters": ["org/adapter"]})
        folders = api.http.parts[Jobs].folders
        task = json.loads((folders.validation(job["id"]) / "task.json").read_text())
        assert task["params"] == {"model": f"{SCHEME}org/model", "adapters": [f"{SCHEME}org/adapter"]}
        fetch = {"folder": str(folders.data(job["id"]) / "hub"), "cache": str(tmp_path / "hub"), "max_bytes": 2 << 30}
        assert task["fetch"] == fetch
        assert job["parameters"] == {"model": "org/model", "adapters": ["org/adapter"]}, "as the client said"


def test_a_job_that_names_nothing_there_fetches_nothing(tmp_path: Path) -> None:
    (tmp_path / "roots").mkdir()
    (tmp_path / "roots" / "rows.jsonl").write_text("{}\n")
    with serving(tmp_path / "state", job_roots=(str(tmp_path / "roots"),)) as api:
        job = ended(api, parameters={"model": "echo", "dataset": ["rows.jsonl"]})
        folder = api.http.parts[Jobs].folders.validation(job["id"])
        assert json.loads((folder / "task.json").read_text())["fetch"] is None
        assert "fetch" not in task_of(api, job)


async def test_what_was_fetched_takes_the_place_of_the_name_for_good(office: Office) -> None:
    job = await office.create({"fetched": {"dataset": ["/fetched/set#5"]}}, sft_task(dataset=[f"{SCHEME}org/set#5"]))
    job = await office.until(job, JobStatus.SUCCEEDED)
    assert job.parameters["dataset"] == ["/fetched/set#5"]
    task = json.loads((office.jobs.folders.attempt(job.id, 1) / "task.json").read_text())
    assert task["params"]["dataset"] == ["/fetched/set#5"] and "fetch" not in task


async def test_what_is_allowed_no_more_when_its_turn_comes_is_not_fetched(tmp_path: Path) -> None:
    office = Office(tmp_path, job_hub=("other/*",))
    await office.open()
    job = await office.until(await office.create(task=sft_task(model=f"{SCHEME}org/m")), JobStatus.FAILED)
    assert job.error["param"] == "parameters.model" and "(job_hub)" in job.error["message"]
    await office.close()


async def test_downloads_hold_up_nobody_who_brings_data_along(office: Office) -> None:
    slow = {"validation_seconds": 600}
    for _ in range(3):
        job = await office.create(slow, sft_task(dataset=[f"{SCHEME}org/set"]))
    await office.until(await office.create(), JobStatus.SUCCEEDED)
    assert (await office.jobs.store.get(job.id, SERVER)).status is JobStatus.VALIDATING


def test_the_served_model_goes_by_its_id_too(tmp_path: Path) -> None:
    with serving(tmp_path, job_hub=("datasets/org/*",)) as api:
        assert task_of(api, ended(api, parameters=SFT | {"model": "tests/echo"}))["model"] == "tests/echo"


# ---- the served model, which jobs do not download


class Loading(NoHooks):
    """The engine is there when a job has asked often enough."""

    asked = 0

    async def before_attempt(self, job: Job) -> None:
        self.asked += 1
        if self.asked < 5:
            raise EngineUnavailable("The model is still loading.")


async def test_a_job_waits_for_the_model_that_the_engine_downloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PAUSE_SECONDS", 0.01)
    hooks = Loading()
    office = Office(tmp_path, hooks=hooks)
    await office.open()
    job = await office.until(await office.create(), JobStatus.SUCCEEDED)
    assert (hooks.asked, job.attempt, job.deaths) == (5, 1, 0)
    await office.close()


def test_it_waits_once_for_a_model_of_the_hub_and_for_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path) as api:
        publisher: Any = api.http.parts[Jobs]._hooks
        asyncio.run(publisher.before_attempt(None))
        monkeypatch.setattr(publisher.inference.lifecycle, "_started", False)
        with pytest.raises(EngineUnavailable, match="still loading"):
            asyncio.run(publisher.before_attempt(None))
        asyncio.run(replace(publisher, served=DeployParams(model=str(tmp_path))).before_attempt(None))


def test_of_the_served_model_there_is_one_revision(tmp_path: Path) -> None:
    with serving(tmp_path) as api:
        error = api.jobs.refused("sft", SFT | {"model": "echo", "model_revision": "v2"})
        assert error["param"] == "parameters.model_revision" and "of the served model only" in error["message"]
