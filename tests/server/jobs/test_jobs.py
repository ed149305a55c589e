"""Jobs from the queue to their end, with a worker that takes milliseconds."""

import asyncio
import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import update

from engines.errors import Conflict, EngineUnavailable, InvalidAdapter, NotFound
from server.jobs import scheduler
from server.jobs.hooks import NoHooks
from server.jobs.job import Job, JobStatus
from server.jobs.processes import MARK
from server.jobs.table import JOBS
from server.store.access import SERVER
from tests.server.jobs.conftest import Office, sft_task
from tests.until import async_until
from training.folder import Result, Validation
from training.params.task import TASK, Task


async def test_a_job_is_validated_queued_run_and_succeeds(office: Office) -> None:
    job = await office.until(await office.create(), JobStatus.SUCCEEDED)
    assert (job.attempt, job.validated, job.deaths) == (1, True, 0)
    assert job.created_at <= job.queued_at <= job.started_at <= job.finished_at
    assert job.job_result() == Result(
        status="succeeded", artifact="adapter", kind="adapter", task_type="causal_lm", final_step=10, trained_tokens=80
    )
    assert await office.steps(job) == list(range(1, 11))
    assert [each.step for each in await office.jobs.store.checkpoints(job)] == [2, 4, 6, 8, 10]
    assert (await office.messages(job))[-1] == "The job has successfully completed"
    log = office.jobs.folders.attempt(job.id, 1) / "worker.log"
    assert log.read_text().startswith("It begins.")


async def test_a_queue_in_which_nothing_waits_is_left_alone_until_something_does(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "LOOK_SECONDS", 0.001)
    fill, looks = office.jobs._scheduler._fill, 0

    async def counted() -> float | None:
        nonlocal looks
        looks += 1
        return await fill()

    monkeypatch.setattr(office.jobs._scheduler, "_fill", counted)
    await office.until(await office.create(), JobStatus.SUCCEEDED)
    await async_until(lambda: not office.jobs._scheduler._runs)
    before = looks
    await asyncio.sleep(0.2)
    assert looks <= before + 1  # for the end of the job
    await office.until(await office.create(), JobStatus.SUCCEEDED)


async def test_a_merge_has_no_data_to_look_at(office: Office) -> None:
    task = TASK.validate_python({"task": "merge", "params": {"model": "m", "adapters": ["a"]}})
    job = await office.create(task=task)
    assert job.status is JobStatus.QUEUED
    await office.until(job, JobStatus.SUCCEEDED)
    assert not office.jobs.folders.validation(job.id).exists()


async def test_bad_data_fails_the_job_before_anything_is_trained(office: Office) -> None:
    error = {"code": "invalid_training_file", "message": "Line 3: no answer.", "param": "training_file"}
    job = await office.until(await office.create({"invalid": error}), JobStatus.FAILED)
    assert (job.error, job.attempt) == (error, 0)


async def test_what_the_worker_reports_is_not_tried_again(office: Office) -> None:
    job = await office.until(await office.create({"fail_at": 3}), JobStatus.FAILED)
    assert job.error == {"code": "bad_data", "message": "Row 3 is empty.", "param": "dataset"}
    assert job.attempt == 1
    assert (await office.messages(job))[-1] == "Row 3 is empty."
    assert (await office.messages(job)).count("Row 3 is empty.") == 1


async def test_a_worker_that_dies_is_followed_by_one_that_goes_on(office: Office) -> None:
    job = await office.until(await office.create({"die_at": 5, "deaths": 2}), JobStatus.SUCCEEDED)
    assert (job.attempt, job.deaths) == (3, 2)
    assert await office.steps(job) == list(range(1, 11))
    task = json.loads((office.jobs.folders.attempt(job.id, 3) / "task.json").read_text())
    assert task["params"]["resume_from_checkpoint"] == str(office.jobs.folders.attempt(job.id, 1) / "checkpoint-4")


async def test_answers_are_handed_on_from_attempt_to_attempt(office: Office) -> None:
    task = TASK.validate_python({"task": "infer", "params": {"model": "m", "dataset": ["d.jsonl"]}})
    plan = {"appends_to": "answers.jsonl", "die_at": 2, "deaths": 2, "steps": 2, "save_every": 9}
    job = await office.until(await office.create(plan, task), JobStatus.SUCCEEDED)
    files = [office.jobs.folders.attempt(job.id, number) / "answers.jsonl" for number in (1, 2, 3)]
    assert [file.exists() for file in files] == [False, False, True]
    assert files[2].read_text().split() == ["1:1", "1:2", "2:1", "2:2", "3:1", "3:2"]


@pytest.mark.parametrize(("end", "again"), [("pause", "resume"), ("cancel", "retry"), (None, "retry")])
async def test_answers_are_handed_on_where_a_job_was_stopped_or_failed(
    office: Office, end: str | None, again: str
) -> None:
    task = TASK.validate_python({"task": "infer", "params": {"model": "m", "dataset": ["d.jsonl"]}})
    plan = {"appends_to": "answers.jsonl", "steps": 200, "seconds": 0.02, "save_every": 999}
    job = await office.create(plan if end else plan | {"fail_at": 3}, task)
    if end:
        await office.until_step(job, 3)
        await getattr(office.jobs, end)(job.id, SERVER)
    else:
        await office.until(job, JobStatus.FAILED)
    (office.jobs.folders.job(job.id) / "plan.json").write_text(json.dumps(plan | {"steps": 2}))
    await getattr(office.jobs, again)(job.id, SERVER)
    job = await office.until(job, JobStatus.SUCCEEDED)
    first, second = (office.jobs.folders.attempt(job.id, number) / "answers.jsonl" for number in (1, 2))
    lines = second.read_text().split()
    assert lines[:3] == ["1:1", "1:2", "1:3"] and lines[-2:] == ["2:1", "2:2"] and not first.exists()


async def test_a_worker_that_always_dies_fails_the_job(office: Office) -> None:
    job = await office.until(await office.create({"die_at": 5, "deaths": 9}), JobStatus.FAILED)
    assert (job.attempt, job.deaths, job.error["code"]) == (3, 3, "worker_died")
    assert "killed" in job.error["message"]


async def test_a_validation_that_always_dies_fails_the_job(office: Office) -> None:
    job = await office.until(await office.create({"validation_dies": True}), JobStatus.FAILED)
    assert (job.attempt, job.error["code"]) == (0, "worker_died")


async def test_a_clock_that_is_set_back_does_not_make_a_job_wait_longer_than_it_was_told_to(tmp_path: Path) -> None:
    office = Office(tmp_path, max_running=0)
    await office.open()
    job = await office.until(await office.create(), JobStatus.QUEUED)
    async with office.database.writing() as connection:  # as a worker's death leaves it, an hour ahead
        await connection.execute(update(JOBS).values(deaths=1, not_before=time.time() + 3600))
    await office.close()
    office.limits["max_running"] = 1
    await office.open()
    await office.until(job, JobStatus.SUCCEEDED)
    await office.close()


# ---- cancel, pause, resume, retry, delete


async def test_a_cancelled_job_keeps_a_checkpoint_and_can_be_retried(office: Office) -> None:
    job = await office.create({"steps": 200, "seconds": 0.02, "save_every": 1000})
    await office.until_step(job, 5)
    cancelled = await office.jobs.cancel(job.id, SERVER)
    assert cancelled.status is JobStatus.CANCELLED
    await office.until(job)
    saved = office.jobs.folders.newest_checkpoint(cancelled)
    assert saved is not None
    plan = office.jobs.folders.job(job.id) / "plan.json"
    plan.write_text(json.dumps({"steps": 20}))
    await office.jobs.retry(job.id, SERVER)
    again = await office.until(job, JobStatus.SUCCEEDED)
    assert again.attempt == 2
    task = json.loads((office.jobs.folders.attempt(job.id, 2) / "task.json").read_text())
    assert task["params"]["resume_from_checkpoint"] == str(saved)


async def test_a_worker_that_does_not_stop_is_killed_with_its_children(tmp_path: Path) -> None:
    office = Office(tmp_path, stop_seconds=0.2)
    await office.open()
    job = await office.create({"steps": 10_000, "no_stop": True, "children": True})
    await office.until_step(job, 2)
    assert len(marked(office)) == 2
    await office.jobs.cancel(job.id, SERVER)
    await office.until(job)
    assert marked(office) == []
    await office.close()


async def test_a_paused_job_goes_on_where_it_was(office: Office) -> None:
    job = await office.create({"steps": 60, "seconds": 0.02, "save_every": 1000})
    await office.until_step(job, 5)
    assert (await office.jobs.pause(job.id, SERVER)).status is JobStatus.PAUSED
    with pytest.raises(Conflict, match="paused"):
        await office.jobs.pause(job.id, SERVER)
    await office.jobs.resume(job.id, SERVER)
    job = await office.until(job, JobStatus.SUCCEEDED)
    assert job.attempt == 2
    assert await office.steps(job) == list(range(1, 61))


async def test_a_job_that_waits_can_be_paused_and_cancelled(tmp_path: Path) -> None:
    office = Office(tmp_path, max_running=0)
    await office.open()
    job = await office.until(await office.create(), JobStatus.QUEUED)
    await office.jobs.pause(job.id, SERVER)
    await office.jobs.resume(job.id, SERVER)
    assert (await office.jobs.cancel(job.id, SERVER)).status is JobStatus.CANCELLED
    for change in (office.jobs.cancel, office.jobs.pause, office.jobs.resume):
        with pytest.raises(Conflict, match="cancelled"):
            await change(job.id, SERVER)
    await office.close()


async def test_a_running_job_is_not_deleted_and_another_is_gone_with_its_files(office: Office) -> None:
    job = await office.create({"steps": 1000})
    await office.until_step(job, 1)
    with pytest.raises(Conflict, match="running"):
        await office.jobs.delete(job.id, SERVER)
    await office.jobs.cancel(job.id, SERVER)
    await office.until(job)
    await office.jobs.delete(job.id, SERVER)
    assert not office.jobs.folders.job(job.id).exists()
    with pytest.raises(NotFound):
        await office.jobs.store.get(job.id, SERVER)
    assert await office.jobs.store.events(job) == []


async def test_a_job_whose_files_another_one_needs_is_not_deleted(office: Office) -> None:
    first = await office.until(await office.create(), JobStatus.SUCCEEDED)
    made = office.jobs.folders.attempt(first.id, 1) / "adapter"
    second = await office.create({"steps": 1000}, sft_task(adapters=[str(made)]))
    for state in (None, "paused"):
        if state == "paused":
            await office.jobs.pause(second.id, SERVER)
        with pytest.raises(Conflict, match=f"{second.id} needs what this one has made"):
            await office.jobs.delete(first.id, SERVER)
        assert made.is_dir()
    await office.jobs.cancel(second.id, SERVER)
    await office.jobs.delete(first.id, SERVER)
    assert not made.exists()
    with pytest.raises(Conflict, match=f"{first.id} was deleted"):
        await office.create({}, sft_task(adapters=[str(made)]))


# ---- the queue


async def test_the_highest_priority_runs_first_and_then_the_oldest(tmp_path: Path) -> None:
    office = Office(tmp_path, max_running=0)
    await office.open()
    jobs = [await office.create(priority=priority) for priority in (0, 5, 0, 5)]
    for job in jobs:
        await office.until(job, JobStatus.QUEUED)
    await office.close()
    office = Office(tmp_path, max_running=1)
    await office.open()
    ended = [await office.until(job, JobStatus.SUCCEEDED) for job in jobs]
    # two validations run at a time, so that jobs of one priority may come into the queue in another order
    assert {jobs.index(job) for job in jobs if job.priority == 5} == {1, 3}
    started = sorted(ended, key=lambda job: job.started_at)
    assert [job.priority for job in started] == [5, 5, 0, 0]
    for one, other in pairwise(started):
        assert one.finished_at <= other.started_at
        assert one.priority > other.priority or one.queued_at <= other.queued_at
    await office.close()


async def test_metrics_count_jobs_by_type_and_status(office: Office) -> None:
    await office.until(await office.create(), JobStatus.SUCCEEDED)
    await office.jobs.look()
    value = office.registry.get_sample_value
    assert value("tuneserve:jobs", {"type": "sft", "status": "succeeded"}) == 1
    assert value("tuneserve:job_queue_seconds_count", {"type": "sft"}) == 1
    assert value("tuneserve:job_duration_seconds_count", {"type": "sft", "status": "succeeded"}) == 1


async def test_a_running_job_tells_its_step_and_loss_until_it_ends(office: Office) -> None:
    job = await office.create({"steps": 10_000, "seconds": 0.02})

    def value(name: str) -> float | None:
        return office.registry.get_sample_value(f"tuneserve:job_{name}", {"job": job.id})

    async with asyncio.timeout(20):
        while (value("step") or 0) < 2:
            await asyncio.sleep(0.01)
    assert value("loss") == 1 / value("step")
    await office.jobs.cancel(job.id, SERVER)
    await office.until(job)
    assert value("step") is None


# ---- hooks


class Publisher(NoHooks):
    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.error: Exception | None = None

    async def prepare(self, job: Job, data: Path, validation: Validation) -> Task:
        self.calls.append(validation.rows)
        return sft_task(num_train_epochs=7)

    async def on_checkpoint(self, job: Job, attempt: int, folder: Path, step: int) -> None:
        assert (folder / "state.json").exists()
        self.calls.append(step)

    async def on_success(self, job: Job, attempt: int, folder: Path, result: Result) -> dict[str, Any]:
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        self.calls.append(folder / result.artifact)
        return {"fine_tuned_model": "ft:m"}


async def test_hooks_are_called_in_order_and_set_columns(tmp_path: Path) -> None:
    publisher = Publisher()
    office = Office(tmp_path, hooks=publisher)
    await office.open()
    publisher.error = EngineUnavailable("not yet")
    job = await office.until(await office.create(), JobStatus.SUCCEEDED)
    assert job.fine_tuned_model == "ft:m"
    assert job.parameters == {"model": "m", "dataset": ["d.jsonl"], "num_train_epochs": 7}
    assert publisher.calls == [8, 2, 4, 6, 8, 10, office.jobs.folders.attempt(job.id, 1) / "adapter"]
    publisher.error = InvalidAdapter("Not like this.", param="rank")
    job = await office.until(await office.create(), JobStatus.FAILED)
    assert job.error == {"code": "invalid_adapter", "message": "Not like this.", "param": "rank"}
    await office.close()


async def test_a_fault_of_the_servers_own_fails_the_job_and_the_next_one_runs(tmp_path: Path) -> None:
    publisher = Publisher()
    office = Office(tmp_path, hooks=publisher)
    await office.open()
    publisher.error = ZeroDivisionError()
    job = await office.until(await office.create(), JobStatus.FAILED)
    assert job.error["code"] == "internal_error"
    await office.until(await office.create(), JobStatus.SUCCEEDED)
    await office.close()


def marked(office: Office) -> list[psutil.Process]:
    """Every process of a job of this office's."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK, "").startswith(office.database.id):
                found.append(process)
        except psutil.Error:
            pass
    return [process for process in found if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


async def test_nothing_of_a_worker_is_left_when_it_has_ended(office: Office) -> None:
    job = await office.until(await office.create({"children": True}), JobStatus.SUCCEEDED)
    await asyncio.sleep(0)
    assert marked(office) == [], job
