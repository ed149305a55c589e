"""A folder that says which repository it is a copy of is compared with it; nothing hangs on the hub's answer."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from tests.hub import Hub, Repo, running
from tests.training.jobs import make_job
from training.folder import JobFolder, Message
from training.hub.compare import check_files
from training.params.sft import SftParams
from training.report import Report

FILES = {"config.json": json.dumps({"_name_or_path": "org/model"}).encode(), "model.safetensors": b"weights"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        hub.repos["models/org/model"] = Repo(dict(FILES))
        yield hub


def copy(folder: Path, **changes: bytes) -> Path:
    folder.mkdir(parents=True)
    for name, content in (FILES | {f"{name}.safetensors": each for name, each in changes.items()}).items():
        (folder / name).write_bytes(content)
    return folder


def told(model: Path, tmp_path: Path, **given: Any) -> list[tuple[str, str]]:
    job = JobFolder(make_job(tmp_path / "job", "sft", model=str(model)).path)
    check_files(SftParams(model=str(model), **given), Report(job))
    return [(event.level, event.message) for event, _ in job.read_events() if isinstance(event, Message)]


def test_a_faithful_copy_is_nothing_to_speak_of(hub: Hub, tmp_path: Path) -> None:
    assert told(copy(tmp_path / "model"), tmp_path) == []
    assert hub.asked


@pytest.mark.parametrize(("content", "reason"), [(b"changed", "another content"), (b"cut", "3 bytes in place of 7")])
def test_a_file_that_differs_is_warned_of(hub: Hub, tmp_path: Path, content: bytes, reason: str) -> None:
    [(level, message)] = told(copy(tmp_path / "model", model=content), tmp_path)
    assert level == "warn" and f"not what org/model is on the hub: model.safetensors has {reason}" in message


def test_the_hubs_cache_says_by_its_folders_what_it_holds(hub: Hub, tmp_path: Path) -> None:
    folder = copy(tmp_path / "models--org--model" / "snapshots" / "abc", model=b"changed")
    (folder / "config.json").unlink()
    assert "org/model" in told(folder, tmp_path)[0][1]


def test_without_the_hub_there_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    [(level, message)] = told(copy(tmp_path / "model"), tmp_path)
    assert level == "info" and "could not be compared" in message


def test_nobody_is_asked_where_it_is_turned_off_or_nothing_says_what_is_there(hub: Hub, tmp_path: Path) -> None:
    folder = copy(tmp_path / "model", model=b"changed")
    assert told(folder, tmp_path, check_model=False) == []
    (folder / "config.json").write_text("{}")
    assert told(folder, tmp_path / "again") == []
    assert not hub.asked
