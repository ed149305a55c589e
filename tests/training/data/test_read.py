"""Files are read row by row in little memory; one that is no data is found out at once, with its line."""

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from training.data import read
from training.data.read import Unreadable, form_of, name_of, read_file

ROWS: list[dict[str, Any]] = [{"text": "a\nb"}, {"text": "Größe 日本"}, {"text": '{"[,'}]


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def values(path: Path) -> list[Any]:
    return [found.value for found in read_file(path)]


JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", JSONL),
        ("a.JSONL", JSONL.replace("\n", "\r\n")),
        ("no-end.jsonl", "\n" + JSONL.rstrip()),
        ("bom.jsonl", b"\xef\xbb\xbf" + JSONL.encode()),
        ("a.json", json.dumps(ROWS)),
        ("pretty.json", json.dumps(ROWS, indent=2, ensure_ascii=False)),
        ("lines.json", JSONL),
        ("a.csv", 'text\n"a\nb"\nGröße 日本\n"{""[,"\n'),
    ],
)
def test_each_form_gives_the_same_rows(tmp_path: Path, name: str, content: str | bytes) -> None:
    assert values(written(tmp_path, name, content)) == ROWS


def test_rows_know_their_lines(tmp_path: Path) -> None:
    pretty = written(tmp_path, "a.json", json.dumps([{"a": 1}, {"a": 2}], indent=1))
    assert [found.line for found in read_file(pretty)] == [2, 5]
    table = written(tmp_path, "a.csv", 'text\n"a\nb"\nc\n')
    assert [found.line for found in read_file(table)] == [2, 4]


def test_a_list_longer_than_the_window_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "CHUNK", 7)
    path = written(tmp_path, "a.json", json.dumps(ROWS * 20, ensure_ascii=False, indent=1))
    assert values(path) == ROWS * 20


BROKEN = [
    ("a.jsonl", '{"a": 1}\n{"a": 1\n', 2, "this is not valid JSON: Expecting ',' delimiter"),
    ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', 2, "byte 8 (0xff) is not UTF-8"),
    ("a.jsonl", "[" * 100_000, 1, "this is not JSON that can be read"),
    ("a.jsonl", '{"a": 1}'.encode("utf-16"), 1, "the file is UTF-16: save it as UTF-8"),
    ("a.jsonl", b"PK\x03\x04\0\0\0\x08\0", 1, "there are zero bytes: this is a binary file"),
    ("a.json", '[\n{"a": 1},\n{"a": 1', 3, "this is not valid JSON"),
    ("a.jsonl", '{"a": "\\ud800"}', 1, "there is half a character, a surrogate without its other half"),
    ("a.json", '[\n{"a": 1},\n5]', 3, "an object must begin here, not '5'"),
    ("a.json", '[{"a": 1}\n', 2, "the list does not end"),
    ("a.json", b'[\n{"a": "\xff"}]', 2, "byte 0xff is not UTF-8"),
    ("a.csv", 'a,b\n1,2\n1,2,3\n', 3, "there are 3 values for 2 columns"),
    ("a.csv", 'a\n1\n"2\n', 3, "this is not valid CSV"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "line", "problem"), BROKEN)
def test_what_is_broken_is_told_with_its_line(
    tmp_path: Path, name: str, content: str | bytes, line: int, problem: str
) -> None:
    try:
        told = [(found.line, found.problem) for found in read_file(written(tmp_path, name, content)) if found.problem]
    except Unreadable as error:
        told = [(error.line, str(error))]
    assert told[0][0] == line
    assert str(told[0][1]).startswith(problem)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
def test_a_line_of_a_gigabyte_is_refused_without_being_read(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name, '[{"a": "' if name == "a.json" else "a\n{")
    with path.open("r+b") as file:
        file.truncate(1 << 30)  # a hole: it takes no room
    tracemalloc.start()
    with pytest.raises(Unreadable):
        list(read_file(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 << 20


def test_an_object_that_never_ends_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "MAX_ROW", 1000)
    monkeypatch.setattr(read, "CHUNK", 100)
    path = written(tmp_path, "a.json", '[{"a": "' + "x" * 5000)
    with pytest.raises(Unreadable, match="no object of at most"):
        list(read_file(path))


def test_compressed_files_are_read_as_what_is_in_them(tmp_path: Path) -> None:
    for name, content in (("a.jsonl", JSONL), ("a.json", json.dumps(ROWS)), ("a.csv", "text\nx\n"), ("a.txt", "x\n")):
        plain = written(tmp_path, name, content)
        packed = written(tmp_path, f"{name}.gz", gzip.compress(plain.read_bytes()))
        assert values(packed) == values(plain)
        assert name_of(packed) == "a"


@pytest.mark.parametrize("cut", [10, -4, None])
def test_a_compressed_file_that_is_not_whole_is_told(tmp_path: Path, cut: int | None) -> None:
    content = gzip.compress(JSONL.encode())[:cut] if cut else JSONL.encode()
    with pytest.raises(Unreadable, match="this is not a whole gzip file"):
        list(read_file(written(tmp_path, "a.jsonl.gz", content)))


def test_tables_have_null_where_a_cell_is_empty(tmp_path: Path) -> None:
    rows = [{"a": "1", "b": None}, {"a": None, "b": "x, y"}]
    assert values(written(tmp_path, "a.tsv", "a\tb\n1\t\n\tx, y\n")) == rows
    assert values(written(tmp_path, "a.csv", 'a,b\n1\n,"x, y"\n')) == rows


def test_each_line_of_a_text_file_is_a_text(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", b"One.\r\n\n  Two.\n" + b"\xff\n")
    found = list(read_file(path))
    assert [each.value for each in found] == [{"text": "One."}, {"text": "  Two."}, None]
    assert (found[2].line, found[2].problem) == (4, "byte 1 (0xff) is not UTF-8: save the file as UTF-8")


def test_a_parquet_file_has_the_rows_it_was_made_of(tmp_path: Path) -> None:
    rows = [
        {
            "messages": [{"role": "user", "content": "Hi"}],
            "system": None,
            "n": i,
            "tools": [{"name": "a", f"p{i % 2}": 1}],
        }
        for i in range(150)
    ]
    path = tmp_path / "a.parquet"
    Dataset.from_list(rows).to_parquet(str(path))
    found = list(read_file(path))
    assert [each.value for each in found] == rows
    assert [each.line for each in found] == list(range(1, 151))
    with pytest.raises(Unreadable, match="this is not a parquet file"):
        list(read_file(written(tmp_path, "b.parquet", path.read_bytes()[:-20])))
    assert form_of(Path("a.parquet.gz")) is None
