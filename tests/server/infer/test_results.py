"""The file of answers: what a kill leaves is taken up again, whole lines once each."""

import json
from pathlib import Path
from typing import Any

import pytest

from engines.errors import Conflict
from server.infer.results import Results


def line(index: int, response: str = "yes") -> dict[str, Any]:
    return {"index": index, "row": {"query": f"question {index}"}, "response": response}


def written(path: Path, *indices: int) -> Path:
    results = Results(path)
    for index in indices:
        results.add(line(index))
    return path


def indices(path: Path) -> list[int]:
    return [json.loads(text)["index"] for text in path.read_text().splitlines()]


def test_each_prefix_that_a_kill_may_leave_is_gone_on_from(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole.jsonl", 2, 0, 1).read_bytes()
    for length in (*range(0, len(whole), 7), len(whole) - 1, len(whole)):
        path = tmp_path / "cut.jsonl"
        path.write_bytes(whole[:length])
        results = Results(path)
        missing = [index for index in range(3) if not results.has(index, line(index)["row"])]
        assert len(missing) == 3 - whole[:length].count(b"\n")
        for index in missing:
            results.add(line(index))
        results.put_in_order()
        assert path.read_text().splitlines() == [json.dumps(line(i), separators=(",", ":")) for i in range(3)]


def test_several_processes_add_to_one_file(tmp_path: Path) -> None:
    one, other = Results(tmp_path / "a.jsonl"), Results(tmp_path / "a.jsonl")
    one.add(line(0))
    other.add(line(1))
    one.add(line(2))
    other.look()
    assert len(other) == 3 and indices(tmp_path / "a.jsonl") == [0, 1, 2]


def test_a_line_longer_than_what_is_read_at_a_time_is_cut_off_whole(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", 0)
    with path.open("ab") as file:
        file.write(b'{"index":1,"row":"' + b"x" * 200_000)
    assert len(Results(path)) == 1 and indices(path) == [0]


@pytest.mark.parametrize("text", ['{"mine": 1}', '{"mine": 1}\n', "notes\n", '{"index":0,"row":{}}\n'])
def test_a_file_of_something_else_is_left_as_it_is(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(text)
    with pytest.raises(Conflict, match="holds no answers of ours") as refused:
        Results(path)
    assert refused.value.param == "result_path" and path.read_text() == text


def test_answers_to_other_rows_are_not_mixed_with_these(tmp_path: Path) -> None:
    results = Results(written(tmp_path / "a.jsonl", 0))
    with pytest.raises(Conflict, match="answers another row 0"):
        results.has(0, {"query": "another question"})
