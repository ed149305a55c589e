"""Whatever goes wrong with an engine, of each kind: `/ready` says 503 soon, who waits for an answer gets an error, and
before long requests are answered again, by the same server.
"""

import ctypes
import os
import resource
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults.served import HANG, Hosted, Pt, Served, quick_hosted
from tests.server.process import ServerProcess
from tests.until import until

SYS_PIDFD_GETFD = 438
NOTICED_SECONDS = 15
"""Seconds in which `/ready` has to say it."""
BACK_SECONDS = 60
"""Seconds in which it has to be well again, once the fault has gone."""

linux = pytest.mark.skipif(sys.platform != "linux", reason="the faults are made by means of Linux")
pytestmark = linux


# ---- what goes wrong: each is there once it has been entered, and goes at its end


@contextmanager
def stopped(served: Served) -> Iterator[None]:
    """The process lives and does nothing, as under a debugger or on a machine that swaps itself to death."""
    served.engine().suspend()
    yield


@contextmanager
def killed(served: Served) -> Iterator[None]:
    served.engine().kill()
    yield


@contextmanager
def garbage(served: Served) -> Iterator[None]:
    """What the process says begins with a length of 3 GB."""
    _write_as(served.engine(), b"tnsv" + struct.pack("!I", 3 << 30) + b"Traceback")
    yield


@contextmanager
def no_more_files(served: Served) -> Iterator[None]:
    """The process has died, and the server cannot open what the next one needs."""
    _, hard = resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE)
    soft, _ = resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE, (3, hard))
    served.engine().kill()
    yield
    served.see("Too many open files")
    resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def hung_load(served: Served) -> Iterator[None]:
    """The process has died, and the next one does not get beyond the loading of the model."""
    with served.hung_load():
        served.engine().kill()
        yield
        served.see("had not loaded the model")


def _write_as(process: psutil.Process, data: bytes) -> None:
    """Say something to the server in the name of its engine."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    process_file = os.pidfd_open(process.pid)
    connection = call(SYS_PIDFD_GETFD, process_file, int(process.cmdline()[-1]), 0)
    os.close(process_file)
    if connection < 0:
        pytest.skip(f"the system does not let us write as another process: {os.strerror(ctypes.get_errno())}")
    os.write(connection, data)
    os.close(connection)


# ---- the matrix


@dataclass(frozen=True, kw_only=True)
class Fault:
    make: Callable[[Served], AbstractContextManager[None]]
    counted_as: str
    """Reason of a restart, in the metrics."""
    logged: str
    """Why the process ended, in the log."""


FAULTS = {
    "SIGSTOP": Fault(make=stopped, counted_as="stuck", logged="is stopped"),
    "SIGKILL": Fault(make=killed, counted_as="exited", logged="ended with signal 9"),
    "garbage": Fault(
        make=garbage, counted_as="unreadable", logged="sent what cannot be read: a message of 3221225472 bytes"
    ),
    "EMFILE": Fault(make=no_more_files, counted_as="start_failed", logged="ended with signal 9"),
    "hung load": Fault(make=hung_load, counted_as="start_failed", logged="ended with signal 9"),
}
ENGINES: dict[str, type[Served]] = {"pt": Pt, "hosted": Hosted}


@pytest.fixture(scope="module", params=ENGINES)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with ENGINES[request.param].begun(tmp_path_factory.mktemp(request.param)) as made:
        yield made


@pytest.mark.parametrize("fault", FAULTS)
def test_an_engine_comes_back_after(served: Served, fault: str) -> None:
    expected = FAULTS[fault]
    until(served.is_ready, seconds=BACK_SECONDS, told=served.log)
    restarts = served.restarts().get(expected.counted_as, 0)
    asking = served.asked()
    before = served.engine()
    with expected.make(served):
        until(lambda: not served.is_ready(), seconds=NOTICED_SECONDS, told=served.log)
        for one in asking:
            assert one.ended_with_an_error()["type"] == "server_error"
        served.see(f"the engine died: its process {expected.logged}")
        assert served.status("/health") == 200
    until(served.is_ready, seconds=BACK_SECONDS, told=served.log)
    assert served.answers()
    assert served.restarts()[expected.counted_as] > restarts
    assert not before.is_running()
    assert served.process.is_ready()  # over a connection of its own


# ---- what no restart helps


class Stepless(Hosted):
    """Its steps take longer than the watchdog waits."""

    @classmethod
    def start(cls, folder: Path, **params: Any) -> ServerProcess:
        return quick_hosted(folder, params | {"engine_watchdog_timeout": 5}, token_delay=1000)


class Hopeless(Hosted):
    """Its engine is started once, and not again."""

    @classmethod
    def start(cls, folder: Path, **params: Any) -> ServerProcess:
        return quick_hosted(folder, params | {"engine_max_restarts": 0}, token_delay=0.05)


def test_a_server_whose_engine_dies_for_good_answers_with_an_error_and_ends_with_status_1(tmp_path: Path) -> None:
    with Hopeless.begun(tmp_path) as served:
        asking = served.asked()
        served.engine().kill()
        for one in asking:
            assert one.ended_with_an_error()["type"] == "server_error"
        assert served.process.wait() == 1
        assert served.log().count("The engine has failed for good") == 1


def test_a_first_start_that_hangs_ends_the_server_with_status_1_and_a_line_that_says_so(tmp_path: Path) -> None:
    (tmp_path / HANG).touch()
    process = quick_hosted(tmp_path, {})
    try:
        assert process.wait() == 1
        said = [line for line in process.log if "had not loaded the model after 3 s" in line]
        assert len(said) == 1 and "Traceback" not in "".join(process.log)
    finally:
        process.close()


def test_an_engine_that_answers_and_makes_no_step_is_started_again(tmp_path: Path) -> None:
    with Stepless.begun(tmp_path) as served:
        asking = served.asked()
        for one in asking:
            assert one.ended_with_an_error()["type"] == "server_error"
        served.see("has made no step for 5 s, with work to do")
        until(served.is_ready, seconds=BACK_SECONDS, told=served.log)
        assert served.restarts() == {"stuck": 1}
