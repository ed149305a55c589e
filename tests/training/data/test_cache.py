"""Kept data takes no more room than its rule says, and is whole for whoever uses it meanwhile."""

import os
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from tests.training.data.tokenizers import tokenizer
from training.data import build, cache
from training.params.sft import SftParams

DAY = 86400
TEXT = "some words that take room " * 20


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNESERVE_CACHE", str(tmp_path / "cache"))
    return cache.cached_data()


@pytest.fixture
def prepared(tmp_path: Path, place: Path) -> Callable[[str], Path]:
    """Prepares a set of that name, and returns where it is kept."""

    def prepare(name: str) -> Path:
        path = tmp_path / f"{name}.jsonl"
        if not path.exists():
            path.write_text(f'{{"query": "{name}", "response": "{TEXT}"}}\n' * 20)
        known = set(kept(place))
        assert len(rows(str(path))) == 20
        return (set(kept(place)) - known or known).pop()

    return prepare


def rows(path: str) -> Any:
    made = build(SftParams(dataset=(path,), enable_cache=True), tokenizer(), learns="answers").train
    assert len(made[len(made) - 1]["input_ids"]) > 100
    return made


def kept(place: Path) -> list[Path]:
    return list(place.glob("[!.]*"))


def used(folder: Path, days: float) -> None:
    """Say that it was last used so many days ago."""
    then = time.time() - days * DAY
    os.utime(folder / cache.USED, (then, then))


def test_what_was_not_used_for_longest_goes_when_room_is_needed(
    prepared: Callable[[str], Path], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, older = prepared("old"), prepared("older")
    used(old, 1)
    used(older, 2)
    monkeypatch.setattr(cache, "MOST", 2.5 * sum(path.stat().st_size for path in old.rglob("*") if path.is_file()))
    new = prepared("new")
    assert set(kept(place)) == {old, new}


def test_using_data_keeps_it(prepared: Callable[[str], Path], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = prepared("one"), prepared("other")
    used(one, 3)
    used(other, 2)
    prepared("one")
    monkeypatch.setattr(cache, "MOST", 2.5 * sum(path.stat().st_size for path in one.rglob("*") if path.is_file()))
    new = prepared("new")
    assert set(kept(place)) == {one, new}


def test_what_was_not_used_for_a_month_goes(prepared: Callable[[str], Path], place: Path) -> None:
    forgotten, recent = prepared("forgotten"), prepared("recent")
    used(forgotten, 31)
    used(recent, 29)
    new = prepared("new")
    assert set(kept(place)) == {recent, new}


def test_data_that_takes_all_the_room_alone_is_kept(
    prepared: Callable[[str], Path], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared("small")
    monkeypatch.setattr(cache, "MOST", 1)
    large = prepared("large")
    assert kept(place) == [large]


def test_what_killed_processes_left_behind_goes(prepared: Callable[[str], Path], place: Path) -> None:
    prepared("first")
    for name, days in ((".partial-a", 3), (".run-1-0-0", 3), (".partial-b", 1)):
        (place / name).mkdir()
        then = time.time() - days * DAY
        os.utime(place / name, (then, then))
    prepared("second")
    assert [path.name for path in place.glob(".*-*")] == [".partial-b"]


def _often(path: str) -> int:
    cache.MOST = 1  # each process needs the room that another one's data takes
    return sum(len(rows(path)) for _ in range(5))


def test_several_processes_make_and_remove_at_once(tmp_path: Path, place: Path) -> None:
    paths = [tmp_path / f"{name}.jsonl" for name in "abc"]
    for path in paths:
        path.write_text(f'{{"query": "{path.name}", "response": "{TEXT}"}}\n' * 20)
    with get_context("fork").Pool(3) as pool:
        assert pool.map(_often, map(str, paths)) == [100] * 3
    assert len(kept(place)) == 1
