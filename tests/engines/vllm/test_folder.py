"""Folders of processes that were killed are cleared away; those of the living are not."""

import os
import tempfile
from pathlib import Path

import pytest

from engines.vllm import folder
from engines.vllm.folder import PrivateFolder


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(folder, "YOUNG_SECONDS", 0.0)


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    killed = PrivateFolder()
    (killed.path / "copy").mkdir()
    os.close(killed._lock)
    living = PrivateFolder()
    assert not killed.path.exists() and living.path.exists()


def test_the_living_and_the_young_keep_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    living, other = PrivateFolder(), PrivateFolder()
    assert living.path.exists() and other.path.exists()
    monkeypatch.setattr(folder, "YOUNG_SECONDS", 60.0)
    young = tmp_path / f"{folder.PREFIX}young"
    young.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / f"{folder.PREFIX}link").symlink_to(elsewhere)
    PrivateFolder()
    assert young.exists() and elsewhere.exists()
    living.remove()
    living.remove()
    assert not living.path.exists()
