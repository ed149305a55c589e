"""The process of a page: beside a server that was started for it, or alone."""

import os
import signal
import sys
from pathlib import Path

import pytest

from server.pages import process
from server.pages.process import Beside, environment
from server.pages.settings import VARIABLE, Settings
from tests.server.pages.settings import settings
from tests.until import until

WAITS = (sys.executable, "-c", "import time; time.sleep(600)")
ENDS = (sys.executable, "-c", "raise SystemExit(3)")


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What this process would have sent to itself."""
    sent: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", sent.append)
    return sent


def test_a_page_is_there_as_long_as_its_server(
    monkeypatch: pytest.MonkeyPatch, signals: list[int], tmp_path: Path
) -> None:
    monkeypatch.setattr(process, "COMMAND", WAITS)
    page = Beside(settings("http://127.0.0.1:1"), tmp_path)
    with page:
        assert page._process.poll() is None
    assert page._process.poll() is not None
    assert (page.failed, signals) == (False, [])


def test_a_server_is_told_to_stop_when_its_page_has_ended(
    monkeypatch: pytest.MonkeyPatch, signals: list[int], tmp_path: Path
) -> None:
    monkeypatch.setattr(process, "COMMAND", ENDS)
    page = Beside(settings("http://127.0.0.1:1"), tmp_path)
    with page:
        until(lambda: page.failed)
        until(lambda: signals == [signal.SIGTERM])


def test_the_process_is_told_its_settings_where_nobody_else_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_SHARE", "True")
    its = settings("http://127.0.0.1:1", key="a-key-of-16-chars", ssl_certfile="x.pem", ssl_keyfile_password="open")
    told = environment(its, Path("/libraries"))
    assert Settings.model_validate_json(told[VARIABLE]) == its
    assert told["PYTHONPATH"].startswith(f"/libraries{os.pathsep}") and "GRADIO_SHARE" not in told
    assert not any("a-key" in word for word in process.COMMAND)
    assert its.ssl_certfile == its.ssl_keyfile == str(Path("x.pem").resolve())
