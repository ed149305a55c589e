"""The state folder."""

from pathlib import Path

import pytest

from engines.adapters.state_folder import state_folder


def test_the_state_can_be_kept_where_one_likes(tmp_path: Path) -> None:
    assert state_folder(str(tmp_path)) == tmp_path
    assert state_folder("~/state") == Path.home() / "state"


def test_else_it_is_kept_in_the_users_own_folder_which_is_not_made_yet() -> None:
    assert state_folder(None).name == "tuneserve"


def test_a_relative_one_is_where_the_server_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert state_folder("state") == tmp_path / "state"
