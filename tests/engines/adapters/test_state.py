"""The file that outlives the server."""

import json
from pathlib import Path

import pytest

from engines.adapters.state import BrokenState, Record, State, read_state, write_state

RECORD = Record(snapshot="0" * 64, source="a", pinned=True, created=1)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    assert read_state(file) == State()
    for state in (State(adapters={"a": RECORD}, aliases={"b": "a"}), State()):
        write_state(file, state)
        assert read_state(file) == state
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        json.dumps({"format": 2}),
        json.dumps({"adapters": {"a": {"snapshot": "../../etc", "source": "a", "pinned": False, "created": 1}}}),
        json.dumps({"adapters": {}, "something_newer": 1}),
    ],
)
def test_a_file_that_is_not_ours_is_never_taken_for_an_empty_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(BrokenState, match=r"state\.json"):
        read_state(tmp_path / "state.json")
    assert (tmp_path / "state.json").read_text() == text


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    write_state(file, State(adapters={"a": RECORD}))
    (tmp_path / "state.partial").mkdir()
    with pytest.raises(OSError):
        write_state(file, State())
    assert read_state(file) == State(adapters={"a": RECORD})
