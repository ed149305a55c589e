"""Files of rows that a model is to be measured by, whatever measures it: `.jsonl` or `.json`, `#N` for the first N."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.errors import InvalidRequest

CHOICE = frozenset({"query", "choices", "answer"})
WRITTEN = frozenset({"query", "answer"})
TEXT = frozenset({"text"})
"""What rows of each form have."""
ENDINGS = (".jsonl", ".json")


def is_file_of_rows(text: str) -> bool:
    return Path(text.partition("#")[0]).suffix in ENDINGS


def read_rows(text: str) -> tuple[Path, list[dict[str, Any]]]:
    """The file and its rows, as many as are asked for; not yet checked. Raises InvalidRequest."""
    path, sharp, count = text.partition("#")
    if sharp and (not count.isdecimal() or int(count) < 1):
        message = f"{text!r}: after # there must be a number of rows, not {count!r}"
        raise InvalidRequest(message, param="eval_dataset")
    file = Path(path).expanduser()
    return file, _rows(file)[: int(count) if sharp else None]


def read_text(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{file.name}: it cannot be read: {error}", param="eval_dataset") from None


def check_row(row: Mapping[str, Any], form: frozenset[str], where: str) -> None:
    """Raises InvalidRequest where a row is none of its form."""
    if missing := form - row.keys():
        raise InvalidRequest(f"{where}: there is no {min(missing)!r}", param="eval_dataset")
    if form == CHOICE:
        choices, answer = row["choices"], row["answer"]
        if not isinstance(choices, list) or not all(isinstance(each, str) and each for each in choices):
            raise InvalidRequest(f"{where}: 'choices' is a list of texts", param="eval_dataset")
        if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
            raise InvalidRequest(f"{where}: 'answer' is the place of the right choice, from 0", param="eval_dataset")
    for name in sorted(form & {"query", "text"}) if form == CHOICE else sorted(form):
        if not isinstance(row[name], str):
            raise InvalidRequest(f"{where}: {name!r} is a text", param="eval_dataset")


def json_lines(text: str) -> list[Any]:
    """What stands in each line. Only a line feed ends one: JSON's strings may hold what else Python takes for an end.
    Raises ValueError."""
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _rows(file: Path) -> list[dict[str, Any]]:
    text = read_text(file)
    try:
        rows = json.loads(text) if file.suffix == ".json" else json_lines(text)
    except ValueError as error:
        raise InvalidRequest(f"{file.name}: it is no valid JSON: {error}", param="eval_dataset") from None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise InvalidRequest(f"{file.name}: it has no rows, or some are no objects", param="eval_dataset")
    return rows
