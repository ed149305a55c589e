"""A server that is killed at any step of an upload: nothing is half there, and nothing twice."""

from pathlib import Path

from tests.killed import run_scenario


def test_an_end_that_is_killed_at_any_step_has_happened_or_has_not(tmp_path: Path) -> None:
    assert run_scenario("tests.server.uploads.killed", str(tmp_path)).count("steps") == 3
