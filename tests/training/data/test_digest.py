"""Rows are told from others by what is learned from them, wherever they lie in memory."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from training.data.digest import rows_of

ROWS: dict[str, list[Any]] = {
    "prompt_ids": [[1, 2], [], [3]],
    "loss_scale": [[0.5, 1.0], [], [2.0]],
    "label": [True, False, True],
    "item": ["{}", "é", ""],
}


def changed(name: str, value: Any) -> dict[str, list[Any]]:
    return ROWS | {name: [*ROWS[name][:2], value]}


def test_the_same_rows_have_the_same_digest_wherever_they_lie(tmp_path: Path) -> None:
    made = datasets.Dataset.from_dict(ROWS)
    twice = datasets.concatenate_datasets([made, made])
    twice.save_to_disk(str(tmp_path / "rows"))
    chosen = [made, twice.select([0, 1, 2]), twice.select([3, 4, 2]), datasets.load_from_disk(str(tmp_path / "rows"))]
    first, *others = [rows_of(each.select(range(3))) for each in chosen]
    assert first is not None
    assert others == [first] * 3
    assert first.samples == 3


@pytest.mark.parametrize(
    "other",
    [changed("prompt_ids", [4]), changed("prompt_ids", [3, 3]), changed("loss_scale", [1.0]), changed("label", False),
     changed("item", " "), {name: values[:2] for name, values in ROWS.items()},
     {name: values[::-1] for name, values in ROWS.items()}, ROWS | {"prompt_ids": [[1], [2], [3]]}],
    ids=["id", "length", "weight", "label", "item", "fewer", "order", "edges"],
)  # fmt: skip
def test_other_rows_have_another(other: dict[str, list[Any]]) -> None:
    assert rows_of(datasets.Dataset.from_dict(other)) != rows_of(datasets.Dataset.from_dict(ROWS))


def test_rows_that_are_encoded_later_are_not_known() -> None:
    assert rows_of(iter([])) is None
