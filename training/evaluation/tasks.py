"""What `eval_dataset` names: a benchmark of the harness, a task of its kind in a YAML file, or rows of one's own.

A file of rows becomes a task by what its rows have:

    {"query": ..., "choices": [...], "answer": 0}    which choice is likeliest: accuracy, also by length
    {"query": ..., "answer": "..."}                  what the model writes up to a line's end: exact match
    {"text": ...}                                    how likely the text is: perplexity by word, by byte
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.errors import InvalidRequest

YAML = (".yaml", ".yml")
ROWS = (".jsonl", ".json")
CHOICE: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{query}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")],
}
WRITTEN: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_text": "{{query}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 64},
    "metric_list": [
        {
            "metric": "exact_match",
            "aggregation": "mean",
            "higher_is_better": True,
            "ignore_case": True,
            "ignore_punctuation": True,
        }
    ],
}
TEXT: dict[str, Any] = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
}
FORMS: tuple[tuple[frozenset[str], dict[str, Any]], ...] = (
    (frozenset({"query", "choices", "answer"}), CHOICE),
    (frozenset({"query", "answer"}), WRITTEN),
    (frozenset({"text"}), TEXT),
)
SPLIT = "test"


@dataclass(frozen=True, slots=True)
class TaskFile:
    """A task of a user's, ready for the harness."""

    name: str
    folder: Path
    config: dict[str, Any] | str
    """Its configuration, or its name in a file of `folder`."""


def read_tasks(given: Sequence[str], *, allow_code: bool, few_shot: int = 0) -> tuple[list[str], list[TaskFile]]:
    """Names that the harness knows, and files. Raises InvalidRequest.

    `allow_code`: whether a YAML file may be read, which may name functions of Python's; `few_shot`: other rows that are
    shown before each.
    """
    names: list[str] = []
    files: list[TaskFile] = []
    for text in given:
        path, _, count = text.partition("#")
        file = Path(path).expanduser()
        if file.suffix in YAML:
            files.append(_of_yaml(file, allow_code))
        elif file.suffix in ROWS:
            files.append(_of_rows(file, int(count) if count.isdecimal() else None, few_shot))
        else:
            names.append(text)
    names_of_files = [file.name for file in files]
    for name in names_of_files:
        if names_of_files.count(name) > 1 or name in names:
            raise InvalidRequest(f"two benchmarks are called {name!r}", param="eval_dataset")
    return names, files


def _of_yaml(file: Path, allow_code: bool) -> TaskFile:
    if not allow_code:
        message = f"{file.name}: a task in YAML may run code, and is for the command line alone"
        raise InvalidRequest(message, param="eval_dataset")
    text = _text(file)
    found = re.search(r"(?m)^task:\s*[\"']?([\w.-]+)", text)
    if found is None:
        raise InvalidRequest(f"{file}: it names no task: `task: NAME`", param="eval_dataset")
    return TaskFile(found[1], file.resolve().parent, found[1])


def _of_rows(file: Path, count: int | None, few_shot: int) -> TaskFile:
    rows = _rows(file)[:count]
    if len(rows) <= few_shot:
        message = f"{file.name} has {len(rows)} rows: too few to show {few_shot} others before each"
        raise InvalidRequest(message, param="eval_few_shot")
    keys = frozenset(rows[0])
    form = next((config for needed, config in FORMS if needed <= keys), None)
    if form is None:
        message = (
            f"{file.name}: rows have 'query' and 'answer', perhaps 'choices', or 'text'; these have {sorted(keys)}"
        )
        raise InvalidRequest(message, param="eval_dataset")
    needed = next(needed for needed, config in FORMS if config is form)
    for number, row in enumerate(rows, 1):
        if not needed <= row.keys():
            missing = min(needed - row.keys())
            raise InvalidRequest(f"{file.name}, row {number}: there is no {missing!r}", param="eval_dataset")
        _check(row, form, f"{file.name}, row {number}")
    name = re.sub(r"[^\w.-]+", "_", file.stem)
    kept = [{key: row[key] for key in sorted(needed)} for row in rows]
    config = {
        "task": name,
        "custom_dataset": _Dataset(kept),
        "test_split": SPLIT,
        "fewshot_split": SPLIT,
        **form,
        "metadata": {"version": 1},
    }
    return TaskFile(name, file.resolve().parent, config)


class _Dataset:
    """The rows as the harness asks for them."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows

    def __call__(self, **kwargs: Any) -> dict[str, Any]:
        from datasets import Dataset

        return {SPLIT: Dataset.from_list(self._rows)}


def _check(row: dict[str, Any], form: dict[str, Any], where: str) -> None:
    """Raises InvalidRequest."""
    if form is CHOICE:
        choices, answer = row["choices"], row["answer"]
        if not isinstance(choices, list) or not all(isinstance(each, str) and each for each in choices):
            raise InvalidRequest(f"{where}: 'choices' is a list of texts", param="eval_dataset")
        if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
            raise InvalidRequest(f"{where}: 'answer' is the place of the right choice, from 0", param="eval_dataset")
        texts: tuple[str, ...] = ("query",)
    else:
        texts = ("query", "answer") if form is WRITTEN else ("text",)
    for name in texts:
        if not isinstance(row[name], str):
            raise InvalidRequest(f"{where}: {name!r} is a text", param="eval_dataset")


def _rows(file: Path) -> list[dict[str, Any]]:
    text = _text(file)
    try:
        rows = json.loads(text) if file.suffix == ".json" else [json.loads(line) for line in text.splitlines() if line]
    except ValueError as error:
        raise InvalidRequest(f"{file.name}: it is no valid JSON: {error}", param="eval_dataset") from None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise InvalidRequest(f"{file.name}: it has no rows, or some are no objects", param="eval_dataset")
    return rows


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{file.name}: it cannot be read: {error}", param="eval_dataset") from None
