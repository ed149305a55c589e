"""Child processes that die with their parent."""

import shutil
import subprocess
import sys

import psutil
import pytest

from engines.process.children import kill_group, with_parent_death_signal
from tests.server.process import ROOT

PATIENCE = 30
"""Seconds after which something has not happened."""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux promises it")
@pytest.mark.parametrize("parent_of", ["by_command", "by_fork"])
def test_a_child_is_killed_when_its_parent_is(parent_of: str) -> None:
    command = [sys.executable, "-m", f"tests.engines.process.parents.{parent_of}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        parent.kill()
    _, left = psutil.wait_procs([child], timeout=PATIENCE)
    assert not left or child.status() == psutil.STATUS_ZOMBIE


def test_a_command_is_the_same_where_the_system_promises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert with_parent_death_signal(["a", "b"]) == ["a", "b"]
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert with_parent_death_signal(["a", "b"]) == ["/usr/bin/setpriv", "--pdeathsig", "KILL", "--", "a", "b"]


def test_a_group_is_killed_with_its_leader_and_one_that_has_gone_is_no_error() -> None:
    program = (
        "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'input()']).pid, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as leader:
        assert leader.stdout is not None
        member = psutil.Process(int(leader.stdout.readline()))
        kill_group(leader.pid)
    _, left = psutil.wait_procs([member], timeout=PATIENCE)
    assert not left or member.status() == psutil.STATUS_ZOMBIE
    kill_group(leader.pid)
