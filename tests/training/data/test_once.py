"""Of several processes of a training, one prepares the data, and the others take it or hear why there is none."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from engines.errors import InvalidRequest, TuneserveError
from training.data.once import once
from training.data.saved import Made
from training.processes import Processes

MADE = Dataset.from_list([{"input_ids": [1, 2], "labels": [1, 2]}])


def three(make: Callable[[], Made], place: Path) -> list[Future[Made]]:
    """What each of three processes gets; here, threads."""
    processes = [Processes(rank, 3, rank, 3, "1-0-0") for rank in (2, 1, 0)]
    with ThreadPoolExecutor(3) as pool:
        return [pool.submit(once, make, place, each) for each in processes]


@pytest.mark.parametrize("evaluation", [None, MADE])
def test_the_first_makes_what_all_take(tmp_path: Path, evaluation: Any) -> None:
    made = []

    def make() -> Made:
        made.append(1)
        return MADE, evaluation, ["a note"]

    for future in three(make, tmp_path):
        train, held, notes = future.result()
        assert train is not None
        assert list(train) == list(MADE)
        assert (held is None) == (evaluation is None)
        assert notes == ["a note"]
    assert made == [1]
    assert list(tmp_path.iterdir()) == [], "nothing is left once all have it"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InvalidRequest("no row can be used", param="dataset"), "no row can be used"),
        (MemoryError("full"), "the first process could not prepare the data"),
    ],
    ids=str,
)
def test_all_hear_why_there_is_none_and_nobody_waits_on(tmp_path: Path, error: Exception, message: str) -> None:
    def make() -> Made:
        time.sleep(0.1)  # the others are waiting by now
        raise error

    second, third, first = three(make, tmp_path)
    assert first.exception() is error
    for future in (second, third):
        told = future.exception()
        assert isinstance(told, TuneserveError)
        assert message in told.message
        assert (told.param, told.code) == (getattr(error, "param", None), getattr(error, "code", None))
    assert list(tmp_path.iterdir()) == []


def test_one_process_alone_needs_no_folder(tmp_path: Path) -> None:
    made: Made = (MADE, None, [])
    assert once(lambda: made, tmp_path / "no", Processes()) is made
    assert not (tmp_path / "no").exists()
