"""What `eval_dataset` names for EvalScope: a benchmark of its, or a file of rows, which becomes one of its two kinds of
data of one's own.

    {"query": ..., "choices": [...], "answer": 0}            general_mcq: the letter that the model names
    {"question": ..., "A": ..., "B": ..., "answer": "A"}     the same, as EvalScope has it
    {"query": ..., "answer": ...}                            general_qa: ROUGE and BLEU of what it writes; also
                                                             `question`, `response`, `system`, `messages`
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.errors import InvalidRequest
from training.evaluation.rows import CHOICE, WRITTEN, check_row, is_file_of_rows, read_rows

LETTERS = "ABCDEFGHIJ"
"""Names of choices that EvalScope knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    name: str
    """What its scores are told under."""
    kind: str
    """EvalScope's name for it."""
    rows: Sequence[Mapping[str, Any]] | None = None
    """Those of a file."""

    def arguments(self, folder: Path) -> dict[str, Any]:
        """EvalScope's `dataset_args`. Rows go to files of `folder`."""
        if self.rows is None:
            return {}
        split = "_val" if self.kind == "general_mcq" else ""
        folder.mkdir(parents=True)
        lines = (json.dumps(row, ensure_ascii=False) for row in self.rows)
        (folder / f"{self.name}{split}.jsonl").write_text("".join(f"{line}\n" for line in lines))
        return {"local_path": str(folder), "subset_list": [self.name]}


def read_benchmarks(given: Sequence[str]) -> list[Benchmark]:
    """Raises InvalidRequest."""
    if tasks := [text for text in given if text.endswith((".yaml", ".yml"))]:
        message = f"{Path(tasks[0]).name}: tasks in YAML are the harness's, eval_backend lm_eval"
        raise InvalidRequest(message, param="eval_dataset")
    found = [_of_file(text) if is_file_of_rows(text) else Benchmark(name=text, kind=text) for text in given]
    for name in (names := [each.name for each in found]):
        if names.count(name) > 1:
            raise InvalidRequest(f"two benchmarks are called {name!r}", param="eval_dataset")
    return found


def _of_file(text: str) -> Benchmark:
    file, rows = read_rows(text)
    name = re.sub(r"[^\w.-]+", "_", file.stem)
    keys = rows[0].keys()
    if keys >= CHOICE:
        return Benchmark(name=name, kind="general_mcq", rows=[_lettered(row, file, n) for n, row in enumerate(rows, 1)])
    if keys >= {"question", "A", "answer"}:
        return Benchmark(name=name, kind="general_mcq", rows=[_letters(row, file, n) for n, row in enumerate(rows, 1)])
    for number, row in enumerate(rows, 1):
        _check_written(row, f"{file.name}, row {number}")
    return Benchmark(name=name, kind="general_qa", rows=rows)


def _lettered(row: dict[str, Any], file: Path, number: int) -> dict[str, Any]:
    where = f"{file.name}, row {number}"
    check_row(row, CHOICE, where)
    if len(row["choices"]) > len(LETTERS):
        raise InvalidRequest(f"{where}: EvalScope knows {len(LETTERS)} choices at most", param="eval_dataset")
    choices = dict(zip(LETTERS, row["choices"], strict=False))
    return {"question": row["query"], **choices, "answer": LETTERS[row["answer"]]}


def _letters(row: dict[str, Any], file: Path, number: int) -> dict[str, Any]:
    there = [letter for letter in LETTERS if letter in row]
    if not isinstance(row.get("question"), str) or row.get("answer") not in there:
        message = (
            f"{file.name}, row {number}: it has a 'question', choices from 'A' on, and the letter of one as 'answer'"
        )
        raise InvalidRequest(message, param="eval_dataset")
    return row


def _check_written(row: Mapping[str, Any], where: str) -> None:
    asked = row.get("messages") or row.get("question") or row.get("query")
    answer = row.get("answer") or row.get("response")
    if not isinstance(asked, list if row.get("messages") else str) or not isinstance(answer, str):
        message = (
            f"{where}: EvalScope takes rows with {sorted(WRITTEN)}, with 'choices' too, or as its own data has them"
        )
        raise InvalidRequest(message, param="eval_dataset")
