"""Where metrics go besides the job's events: what arrives there, who is refused, and what a failure does."""

import json
import os
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers.integrations import TensorBoardCallback
from wandb.proto.wandb_internal_pb2 import Record

from engines.errors import InvalidRequest
from tests.reporters import FOLDER
from tests.training.jobs import losses, make_job, trained
from tests.training.worker import Worker
from training.folder import LOG, JobFolder, Message

PATIENCE = 120
QUICK: dict[str, Any] = {
    "torch_dtype": "float32", "max_steps": 3, "logging_steps": 1, "learning_rate": 1e-3, "split_dataset_ratio": 0,
}  # fmt: skip
BLOCK, WHOLE = 2**15, (1, 4)
"""Of LevelDB's log: bytes of a block, and the kinds of pieces with which a record ends."""
OFFLINE = {"WANDB_MODE": "offline", "SWANLAB_MODE": "offline"}


@pytest.fixture
def params(tiny: Path, lines: Path) -> dict[str, Any]:
    return {"model": str(tiny), "dataset": str(lines), **QUICK}


def messages(job: JobFolder) -> list[str]:
    return [event.message for event, _ in job.read_events() if isinstance(event, Message)]


def fails_at(step: int) -> Callable[..., None]:
    """A reporter's call that fails from the log of this step on."""

    def call(self: Any, args: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step >= step:
            raise OSError("the network is gone")

    return call


def test_one_that_fails_in_the_middle_is_told_of_once_and_the_training_goes_on(
    params: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TensorBoardCallback, "on_log", fails_at(2))
    job = trained(tmp_path / "job", "sft", **params, report_to="tensorboard")
    assert sorted(losses(job)) == [1, 2, 3]
    told = [message for message in messages(job) if "tensorboard" in message]
    assert told == ["tensorboard gets no more of this training: the network is gone. The training goes on."]


def test_one_that_cannot_begin_ends_the_training_by_its_name(
    params: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TensorBoardCallback, "on_train_begin", fails_at(0))
    with pytest.raises(InvalidRequest, match="tensorboard cannot report: the network is gone") as refused:
        trained(tmp_path / "job", "sft", **params, report_to="tensorboard")
    assert refused.value.param == "report_to"


def test_all_that_is_logged_arrives_in_the_jobs_folder(params: dict[str, Any], tmp_path: Path) -> None:
    if not FOLDER.is_dir():
        pytest.skip("swanlab and trackio are not installed: `make test` does that")
    (home := tmp_path / "home").mkdir()
    job = make_job(tmp_path / "told", "sft", **params, report_to=["tensorboard", "wandb", "swanlab", "trackio"])
    assert run(job, fault="reporters_are_installed", HOME=str(home), **OFFLINE) == 0, log(job)
    told = losses(job)
    assert sorted(told) == [1, 2, 3]

    board = EventAccumulator(str(job.path / "runs")).Reload()
    assert {one.step: one.value for one in board.Scalars("train/loss")} == pytest.approx(told)
    database = sqlite3.connect(job.path / "trackio" / "huggingface.db")
    rows = [json.loads(row) for (row,) in database.execute("SELECT metrics FROM metrics ORDER BY id")]
    assert {row["train/global_step"]: row["train/loss"] for row in rows if "train/loss" in row} == told
    [(name, config)] = database.execute("SELECT run_name, config FROM configs")
    assert (name, json.loads(config)["learning_rate"]) == ("told", 1e-3)
    rows = [
        {item.nested_key[0] if item.nested_key else item.key: json.loads(item.value_json) for item in each.history.item}
        for each in of_wandb(job)
    ]
    assert {row["train/global_step"]: row["train/loss"] for row in rows if "train/loss" in row} == told
    assert next(each.run.display_name for each in of_wandb(job) if each.run.display_name) == "told"
    assert [each.exit.exit_code for each in of_wandb(job) if each.HasField("exit")] == [0]
    [swanlab] = job.path.glob("swanlog/run-*/run-*.swanlab")
    assert all(struct.pack("<d", loss) in swanlab.read_bytes() for loss in told.values())
    assert [path for path in home.rglob("*") if path.name.strip(".").startswith(("wandb", "swanlab", "trackio"))] == []


@pytest.mark.parametrize(("name", "key"), [("wandb", "WANDB_API_KEY"), ("swanlab", "SWANLAB_API_KEY")])
def test_one_that_does_not_know_us_is_refused_before_the_model_is_loaded(
    name: str, key: str, params: dict[str, Any], tmp_path: Path
) -> None:
    if name == "swanlab" and not FOLDER.is_dir():
        pytest.skip("swanlab is not installed: `make test` does that")
    job = make_job(tmp_path / "job", "sft", **params, report_to=[name])
    assert run(job, fault="reporters_are_installed", HOME=str(tmp_path)) == 1
    error = job.read_result().error
    assert error.param == "report_to" and key in error.message and "offline" in error.message, error.message
    assert "Loading the model." not in messages(job)


def test_a_training_that_fails_is_no_success_there(params: dict[str, Any], tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", "sft", **params | {"learning_rate": 1e30}, report_to=["wandb"])
    assert run(job, HOME=str(tmp_path), **OFFLINE) == 1
    assert job.read_result().error.code == "training_diverged"
    assert [each.exit.exit_code for each in of_wandb(job) if each.HasField("exit")] == [1]


def run(job: JobFolder, *, fault: str = "", **environment: str) -> int:
    return Worker(job, fault=fault, **{"NETRC": os.devnull, **environment}).wait(PATIENCE)


def log(job: JobFolder) -> str:
    return (job.path / LOG).read_text()


def of_wandb(job: JobFolder) -> list[Any]:
    """The records of a run that it is to synchronise later: LevelDB's log, of blocks of 32 KiB, behind 7 bytes."""
    [file] = job.path.glob("wandb/offline-run-*/run-*.wandb")
    data, place, record, found = file.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:  # no header fits, so that nothing is there
            place += BLOCK - place % BLOCK
            continue
        size, kind = struct.unpack_from("<HB", data, place + 4)
        record += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in WHOLE:
            found.append(Record.FromString(record))
            record = b""
    return found
