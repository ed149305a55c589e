"""A server that is killed at any step of a change to files: row and content are both there, or neither."""

from pathlib import Path

from tests.killed import run_scenario


def test_a_change_that_is_killed_at_any_step_has_happened_or_has_not(tmp_path: Path) -> None:
    assert run_scenario("tests.server.files.killed", str(tmp_path)).count("steps") == 2
