"""What jobs have made is published once, by the attempt that counts, whatever is away or dies meanwhile."""

from pathlib import Path
from typing import Any

import pytest

from engines.errors import EngineUnavailable, StoreUnavailable
from server.inference.inference import Inference
from server.jobs.job import Job, JobStatus
from server.jobs.jobs import Jobs
from server.store.access import SERVER
from tests.adapter_folders import write_adapter
from tests.server.api import LINE
from tests.server.fine_tuning.conftest import Start, TrainingApi
from training.params.task import TASK


def run_job(api: TrainingApi, **params: Any) -> Job:
    """A job that was made without OpenAI's API, once it has ended."""
    jobs = api.http.parts[Jobs]

    async def create() -> Job:
        async with jobs.making() as id:
            data = jobs.folders.data(id) / "data.jsonl"
            data.write_text(LINE)
            task = {"task": "sft", "params": {"model": "tests/echo", "dataset": [str(data)], **params}}
            return await jobs.create(id, TASK.validate_python(task), SERVER)

    async def get(id: str) -> Job:
        return await jobs.store.get(id, SERVER)

    job = api.http.portal.call(create)
    while not job.ended:
        job = api.http.portal.call(get, job.id)
    return job


def events_of(api: TrainingApi, job: Job) -> list[str]:
    async def read() -> list[str]:
        found: list[Any] = await api.http.parts[Jobs].store.events(job, types=["message"])
        return [each.event.message for each in found]

    return api.http.portal.call(read)


def result_files(api: TrainingApi) -> list[dict[str, Any]]:
    return api.files(purpose="fine-tune-results")


def test_an_adapter_of_any_job_that_trains_the_served_model_answers(api: TrainingApi) -> None:
    job = run_job(api)
    name = f"ft:echo:tuneserve::{job.id.removeprefix('job-')}"
    assert (job.status, job.fine_tuned_model) == (JobStatus.SUCCEEDED, name)
    for model in (name, f"{name}:ckpt-step-2", f"{name}:ckpt-step-4"):
        assert api.answer(model).startswith(f"{model}@")
    assert api.models()[name]["root"] == job.id
    assert result_files(api) == api.fine_tuning.page()["data"] == []


@pytest.mark.parametrize("params", [{"model": "tests/other"}, {"train_type": "full"}, {"use_dora": True}])
def test_what_is_no_adapter_for_the_served_model_is_not_published(api: TrainingApi, params: dict[str, Any]) -> None:
    job = run_job(api, **params)
    assert (job.status, job.fine_tuned_model) == (JobStatus.SUCCEEDED, None)
    assert list(api.models()) == ["echo"]
    assert not any("cannot be served" in message for message in events_of(api, job))


def test_such_a_job_succeeds_where_its_adapter_cannot_be_served_and_says_why(api: TrainingApi, tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"rank": 17}, "rank 17"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save names 'lm_head'"),
    ]
    for number, (adapter, reason) in enumerate(wrong):
        api.plan(adapter=str(write_adapter(tmp_path / str(number), **adapter)))
        job = run_job(api)
        assert (job.status, job.fine_tuned_model) == (JobStatus.SUCCEEDED, None)
        assert any(f"cannot be served: {reason}" in message for message in events_of(api, job))


def test_a_model_is_published_once_where_the_database_went_away_at_the_end(
    api: TrainingApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = api.http.parts[Jobs].store.change
    refused: list[str] = []

    async def change_later(id: str, *events: Any, **values: Any) -> Job | None:
        if values.get("status") == JobStatus.SUCCEEDED and not refused:
            refused.append(id)
            raise StoreUnavailable("away")
        return await change(id, *events, **values)

    monkeypatch.setattr(api.http.parts[Jobs].store, "change", change_later)
    job = api.fine_tuning.wait(api.fine_tuning.create()["id"])
    assert refused == [job["id"]]
    assert [file["id"] for file in result_files(api)] == job["result_files"]
    messages = [event["message"] for event in api.fine_tuning.events(job["id"])["data"]]
    assert messages.count(f"New fine-tuned model created: {job['fine_tuned_model']}") == 1


def test_a_result_waits_for_an_engine_that_is_away(api: TrainingApi, monkeypatch: pytest.MonkeyPatch) -> None:
    load = api.http.parts[Inference].adapters.load
    refused: list[str] = []

    async def load_later(name: str, folder: Path, **options: Any) -> Any:
        if not name.endswith(("ckpt-step-2", "ckpt-step-4")) and not refused:
            refused.append(name)
            raise EngineUnavailable("away")
        return await load(name, folder, **options)

    monkeypatch.setattr(api.http.parts[Inference].adapters, "load", load_later)
    job = api.fine_tuning.wait(api.fine_tuning.create()["id"])
    assert refused == [job["fine_tuned_model"]]
    assert api.answer(job["fine_tuned_model"])


def test_a_full_disk_fails_the_job_and_says_so(api: TrainingApi, monkeypatch: pytest.MonkeyPatch) -> None:
    async def load(name: str, folder: Path, **options: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(api.http.parts[Inference].adapters, "load", load)
    job = api.fine_tuning.wait(api.fine_tuning.create()["id"])
    assert (job["status"], job["error"]["code"], job["fine_tuned_model"]) == ("failed", "publishing_failed", None)
    assert "no room left" in job["error"]["message"]


def test_a_training_that_makes_no_adapter_fails(api: TrainingApi) -> None:
    api.plan(kind="model")
    job = api.fine_tuning.wait(api.fine_tuning.create()["id"])
    assert (job["status"], job["error"]["code"]) == ("failed", "publishing_failed")


def test_a_job_goes_on_where_the_server_stopped_before_its_checkpoint_was_published(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(name: str, folder: Path, **options: Any) -> Any:
        raise EngineUnavailable("away")

    with start() as api:
        api.plan(steps=30, seconds=0.05, save_every=5)
        monkeypatch.setattr(api.http.parts[Inference].adapters, "load", away)
        id = api.fine_tuning.create()["id"]
        while not any("Checkpoint" in event["message"] for event in api.fine_tuning.events(id)["data"]):
            pass
        assert api.fine_tuning.checkpoints(id)["data"] == []
    with start() as api:
        api.plan(seconds=0.01)
        job = api.fine_tuning.wait(id)
        assert job["status"] == "succeeded"
        for checkpoint in api.fine_tuning.checkpoints(id)["data"]:
            assert api.answer(checkpoint["fine_tuned_model_checkpoint"])
        assert api.fine_tuning.checkpoints(id)["data"][-1]["step_number"] == 5
