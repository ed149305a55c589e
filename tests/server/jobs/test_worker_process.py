"""How a worker is started."""

import sys
from pathlib import Path

from server.jobs.worker_process import worker_command, worker_environment
from training.machines import Machines


def test_one_process_is_plain_python() -> None:
    assert worker_command(Path("/job")) == [sys.executable, "-m", "training.run", "/job"]
    assert worker_command(Path("/job"), program="validate")[1:] == ["-m", "training.validate", "/job"]


def test_several_are_torchruns() -> None:
    assert worker_command(Path("/job"), processes=2) == [sys.executable, "-m", "training.torchrun", "/job", "2"]


def test_one_of_several_machines_is_told_which_and_where_they_meet() -> None:
    words = worker_command(Path("/job"), machines=Machines(2, 1, "10.0.0.1"))
    assert words == [sys.executable, "-m", "training.torchrun", "/job", "1", "2", "1", "10.0.0.1", "29500"]


def test_no_file_of_the_user_is_taken_for_a_library_and_nobody_is_told() -> None:
    environment = worker_environment({})
    assert environment["PYTHONSAFEPATH"] == environment["HF_HUB_DISABLE_TELEMETRY"] == "1"
