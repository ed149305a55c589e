"""Two models on the same questions, and the files that an evaluation leaves."""

import json
from pathlib import Path
from typing import Any

import pytest

from engines.errors import InvalidRequest
from training.evaluation import results
from training.evaluation.compare import compare, mcnemar
from training.evaluation.results import Measured, measured_by_harness
from training.evaluation.rows import read_rows
from training.evaluation.tasks import read_tasks


@pytest.mark.parametrize(
    ("only_one", "only_two", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (10, 2, 0.03857421875), (0, 6, 0.03125), (1, 7, 0.0703125)],  # by R's binom.test
)
def test_mcnemars_test_is_exact(only_one: int, only_two: int, p: float) -> None:
    ones = [1] * only_one + [0] * only_two + [1, 0]
    twos = [0] * only_one + [1] * only_two + [1, 0]
    assert mcnemar(ones, twos) == pytest.approx(p, rel=1e-9)


def of(values: list[Any]) -> dict[str, Any]:
    return {str(number): value for number, value in enumerate(values)}


def test_the_better_model_is_named_only_where_chance_is_unlikely() -> None:
    clear = compare("t", "acc", of([1.0] * 20), of([1.0] * 10 + [0.0] * 10), higher_is_better=True, seed=1)
    assert (clear.test, clear.value, clear.other, clear.better) == ("McNemar", 1, 0.5, True)
    assert 0.2 < clear.low <= 0.5 <= clear.high < 0.8
    unclear = compare("t", "acc", of([1.0, 0.0, 1.0]), of([0.0, 1.0, 0.0]), higher_is_better=True, seed=1)
    assert unclear.better is None
    worse = compare("t", "loss", of([2.0, 3.1, 4.2] * 9), of([1.0, 2.0, 3.0] * 9), higher_is_better=False, seed=1)
    assert (worse.test, worse.better) == ("paired bootstrap", False)


def test_log_likelihoods_are_compared_by_their_weights() -> None:
    mine, other = of([(-10.0, 5.0), (-30.0, 5.0)]), of([(-20.0, 5.0), (-40.0, 5.0)])
    found = compare("t", "word_perplexity", mine, other, higher_is_better=True, seed=1)
    assert (found.value, found.other) == (-4, -6)
    assert [found.low, found.high] == pytest.approx([2, 2])


def test_other_questions_are_not_compared() -> None:
    with pytest.raises(InvalidRequest, match="other questions"):
        compare("t", "acc", of([1.0, 0.0]), of([1.0]), higher_is_better=True, seed=1)


def measured(name: str, right: list[float]) -> Measured:
    samples = [
        {"doc_id": n, "doc_hash": "x", "filter": "none", "acc": value, "resps": ["one\u2028two\x85"]}
        for n, value in enumerate(right)
    ]
    found = {
        "results": {"capitals": {"alias": "capitals", "acc,none": sum(right) / len(right), "acc_stderr,none": 0.1}},
        "higher_is_better": {"capitals": {"acc": True}},
        "n-samples": {"capitals": {"original": len(right), "effective": len(right)}},
        "samples": {"capitals": samples},
    }
    return measured_by_harness(name, found, {"eval_limit": None})


def test_what_is_written_is_read_to_compare_with(tmp_path: Path) -> None:
    base, tuned = measured("base", [0.0] * 8 + [1.0] * 2), measured("tuned", [1.0] * 10)
    assert tuned.metrics() == {"capitals/acc": 1.0, "capitals/acc_stderr": 0.1}
    results.write(base, [], tmp_path / "base")
    differences = results.differences(tuned, results.read(tmp_path / "base"), seed=1)
    results.write(tuned, differences, tmp_path / "tuned")
    assert {file.name for file in (tmp_path / "tuned").iterdir()} == {
        "results.json", "samples_capitals.jsonl", "table.md", "plot.svg",
    }  # fmt: skip
    told = json.loads((tmp_path / "tuned" / "results.json").read_text())
    assert [(each["value"], each["other"], each["p"]) for each in told["differences"]] == [
        (1.0, 0.2, pytest.approx(2 / 2**8))
    ]
    assert "| this " in (tmp_path / "tuned" / "table.md").read_text()
    assert (tmp_path / "tuned" / "plot.svg").read_text().count("<rect") == 2
    with pytest.raises(InvalidRequest, match="no evaluation of ours"):
        results.read(tmp_path)


# ---- files of rows


WRONG_ROWS = [
    ('{"query": "a", "choices": ["b"], "answer": 1}', "'answer' is the place"),
    ('{"query": "a", "choices": "b", "answer": 0}', "'choices' is a list"),
    ('{"query": 1, "answer": "b"}', "'query' is a text"),
    ('{"question": "a"}', "rows have 'query' and 'answer'"),
    ('{"text": "a"}\n{"other": "b"}', "row 2: there is no 'text'"),
    ("{", "no valid JSON"),
    ("", "no rows"),
]


@pytest.mark.parametrize(("text", "told"), WRONG_ROWS)
def test_rows_that_ask_nothing_are_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(InvalidRequest, match=told):
        read_tasks([str(tmp_path / "rows.jsonl")], allow_code=True)


@pytest.mark.parametrize("count", ["0", "x", "", "-1", "1.5"])
def test_no_number_of_rows_is_refused(tmp_path: Path, count: str) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(InvalidRequest, match="after # there must be a number of rows") as refused:
        read_tasks([f"{tmp_path}/rows.jsonl#{count}"], allow_code=True)
    assert refused.value.param == "eval_dataset"


def test_a_row_ends_with_a_line_feed_alone_and_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    rows = [{"text": "one\u2028two\x85"}, {"text": "three"}]
    lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "rows.jsonl").write_bytes(f"\ufeff{lines}\n \n".encode())
    assert read_rows(str(tmp_path / "rows.jsonl"))[1] == rows


def test_files_and_names_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    (tmp_path / "own.yaml").write_text("task: my_task\n")
    names, files = read_tasks(["arc_easy", str(tmp_path / "rows.jsonl#1"), str(tmp_path / "own.yaml")], allow_code=True)
    assert names == ["arc_easy"] and [file.name for file in files] == ["rows", "my_task"]
    with pytest.raises(InvalidRequest, match="may run code"):
        read_tasks([str(tmp_path / "own.yaml")], allow_code=False)
