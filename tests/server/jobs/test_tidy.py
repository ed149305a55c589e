"""What of a job's files goes before the job does, and what never goes."""

from pathlib import Path

from server.jobs.job import Job, JobStatus
from server.store.access import SERVER
from tests.server.jobs.conftest import Office, sft_task

BROKEN_OFF = {"steps": 6, "die_at": 5, "deaths": 1}
LONG = {"steps": 10_000, "seconds": 0.02}


def states(office: Office, job: Job) -> list[str]:
    """The checkpoints that can be gone on from."""
    root = office.jobs.folders.job(job.id)
    return sorted(str(path.parent.relative_to(root)) for path in root.glob("*/checkpoint-*/optimizer.pt"))


def checkpoints(office: Office, job: Job) -> list[str]:
    root = office.jobs.folders.job(job.id)
    return sorted(str(path.relative_to(root)) for path in root.glob("*/checkpoint-*"))


async def ended(office: Office, job: Job) -> Job:
    done = await office.until(job)
    while office.jobs._scheduler.run_of(job.id) is not None:
        await office.until(job)
    return done


async def test_weights_stay_and_optimizers_go_with_success(office: Office) -> None:
    job = await ended(office, await office.create(BROKEN_OFF))
    assert (job.status, job.attempt) == (JobStatus.SUCCEEDED, 2)
    assert states(office, job) == []
    assert checkpoints(office, job) == ["1/checkpoint-2", "1/checkpoint-4", "2/checkpoint-6"]


async def test_they_stay_where_the_job_says_so_in_the_newest_checkpoint_alone(office: Office) -> None:
    job = await ended(office, await office.create(BROKEN_OFF, sft_task(save_only_model=False)))
    assert states(office, job) == ["2/checkpoint-6"]


async def test_what_a_job_goes_on_from_stays_while_it_may_go_on(office: Office) -> None:
    job = await ended(office, await office.create({"steps": 9, "fail_at": 8}))
    assert job.status is JobStatus.FAILED and states(office, job) == ["1/checkpoint-6"]
    job = await office.create(LONG)
    await office.until_step(job, 5)
    job = await office.jobs.cancel(job.id, SERVER)
    await ended(office, job)
    assert len(states(office, job)) == 1 and (await office.jobs.retry(job.id, SERVER)).status is JobStatus.QUEUED


async def test_what_another_job_names_stays_until_that_one_has_succeeded(office: Office) -> None:
    first = await office.create(LONG)
    await office.until_step(first, 3)
    checkpoint = office.jobs.folders.attempt(first.id, 1) / "checkpoint-2"
    second = await office.create({"steps": 4, "fail_at": 3}, sft_task(resume_from_checkpoint=str(checkpoint)))
    await office.until_step(first, 9)
    await ended(office, second)
    assert (checkpoint / "optimizer.pt").exists()
    await office.jobs.delete(second.id, SERVER)
    await office.jobs.cancel(first.id, SERVER)
    await ended(office, first)
    assert not (checkpoint / "optimizer.pt").exists()


async def test_the_next_start_does_what_a_death_has_left(tmp_path: Path) -> None:
    office = Office(tmp_path)
    await office.open()
    job = await ended(office, await office.create({"steps": 4}))
    folder = office.jobs.folders.attempt(job.id, 1)
    (folder / ".partial" / "checkpoint-9").mkdir(parents=True)
    (folder / ".checkpoint-1").mkdir()
    (folder / "checkpoint-2" / "optimizer.pt").write_text("left")
    for half_gone in ("checkpoint-2/float32", "checkpoint-4/.float32"):
        (folder / half_gone).mkdir()
    await office.close()
    await office.open()
    assert states(office, job) == [] and not list(folder.glob(".*")) and not list(folder.rglob("*float32"))
    assert checkpoints(office, job) == ["1/checkpoint-2", "1/checkpoint-4"]
    await office.close()


async def test_nothing_goes_while_a_job_is_made(office: Office) -> None:
    async with office.jobs.making():
        job = await ended(office, await office.create({"steps": 4}))
        assert states(office, job)
