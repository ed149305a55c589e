"""The cache folder."""

from pathlib import Path

import pytest

from engines.setup.cache import cache_folder


def test_the_cache_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNESERVE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path


def test_an_empty_name_means_the_users_own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESERVE_CACHE", "")
    assert cache_folder().name == "tuneserve"
