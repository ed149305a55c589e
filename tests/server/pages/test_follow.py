"""What is shown of a job, made of what the API says of it."""

import pytest

from server.jobs.job import TERMINAL, JobStatus
from server.pages.follow import ACTIONS, ENDED, columns, points, progress, summary

STEPS = [
    {"type": "step", "step": 1, "total_steps": 4, "metrics": {"loss": 2.0, "learning_rate": 1e-4}},
    {"type": "evaluation", "step": 1, "metrics": {"loss": 2.5}},
    {"type": "step", "step": 2, "total_steps": 4, "metrics": {"loss": 1.5, "rewards/margins": 0.1}},
]
JOB = {"id": "job-1", "type": "sft", "status": "running", "error": None, "result": None, "fine_tuned_model": None}


def test_the_curves_have_steps_and_evaluations_apart() -> None:
    assert points(STEPS) == [(1, 2.0, "loss"), (1, 2.5, "eval loss"), (2, 1.5, "loss"), (2, 0.1, "rewards/margins")]
    assert columns(points(STEPS))["metric"] == ["loss", "eval loss", "loss", "rewards/margins"]
    assert columns([]) == {"step": [], "value": [], "metric": []}
    assert progress(STEPS) == (2, 4) and progress([]) is None


def test_a_summary_says_how_far_it_is_and_what_it_said() -> None:
    told = summary(JOB, STEPS, [{"type": "message", "message": "Loading"}, {"type": "checkpoint", "path": "c"}])
    assert "**running**" in told and "step 2 / 4" in told and "- Loading" in told


def test_a_summary_of_what_failed_says_why() -> None:
    error = {"code": "invalid_data", "message": "line 3 is empty", "param": None}
    assert "**invalid_data**: line 3 is empty" in summary(JOB | {"status": "failed", "error": error}, [], [])


def test_a_summary_of_what_succeeded_names_the_model() -> None:
    result = {"kind": "adapter", "final_step": 4, "metrics": {}}
    told = summary(JOB | {"status": "succeeded", "fine_tuned_model": "ft:echo:job-1", "result": result}, [], [])
    assert "`ft:echo:job-1`" in told and "final_step: 4" in told and "metrics" not in told


def test_a_summary_of_a_dry_run_says_what_it_would_take() -> None:
    memory = {"total": 2**30, "available": 2**31, "device": "cpu", "fits": True}
    told = summary(JOB | {"result": {"kind": None, "memory": memory}}, [], [])
    assert "memory: 1.00 GiB of 2.00 GiB on cpu: fits" in told


def test_the_states_are_those_of_jobs() -> None:
    assert set(TERMINAL) == ENDED
    assert set().union(*ACTIONS.values()) <= {status.value for status in JobStatus}


@pytest.mark.parametrize("status", sorted(ENDED - {"succeeded"}))
def test_what_did_not_succeed_can_be_tried_again(status: str) -> None:
    assert status in ACTIONS["retry"]
