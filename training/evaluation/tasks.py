"""What `eval_dataset` names: a benchmark of the harness, a task of its kind in a YAML file, or rows of one's own.

A file of rows becomes a task by what its rows have:

    {"query": ..., "choices": [...], "answer": 0}    which choice is likeliest: accuracy, also by length
    {"query": ..., "answer": "..."}                  what the model writes up to a line's end: exact match
    {"text": ...}                                    how likely the text is: perplexity by word, by byte
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.errors import InvalidRequest
from training.evaluation import rows
from training.evaluation.rows import check_row, is_file_of_rows, read_rows, read_text

YAML = (".yaml", ".yml")
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
    (rows.CHOICE, CHOICE),
    (rows.WRITTEN, WRITTEN),
    (rows.TEXT, TEXT),
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
        if Path(text).suffix in YAML:
            files.append(_of_yaml(Path(text).expanduser(), allow_code))
        elif is_file_of_rows(text):
            files.append(_of_rows(text, few_shot))
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
    text = read_text(file)
    found = re.search(r"(?m)^task:\s*[\"']?([\w.-]+)", text)
    if found is None:
        raise InvalidRequest(f"{file}: it names no task: `task: NAME`", param="eval_dataset")
    return TaskFile(found[1], file.resolve().parent, found[1])


def _of_rows(text: str, few_shot: int) -> TaskFile:
    file, found = read_rows(text)
    if len(found) <= few_shot:
        message = f"{file.name} has {len(found)} rows: too few to show {few_shot} others before each"
        raise InvalidRequest(message, param="eval_few_shot")
    keys = frozenset(found[0])
    needed, form = next(((needed, form) for needed, form in FORMS if needed <= keys), (None, None))
    if needed is None or form is None:
        message = (
            f"{file.name}: rows have 'query' and 'answer', perhaps 'choices', or 'text'; these have {sorted(keys)}"
        )
        raise InvalidRequest(message, param="eval_dataset")
    for number, row in enumerate(found, 1):
        check_row(row, needed, f"{file.name}, row {number}")
    name = re.sub(r"[^\w.-]+", "_", file.stem)
    kept = [{key: row[key] for key in sorted(needed)} for row in found]
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
