"""The fixtures `postgres` and `database_url`: tests that ask for the second run on SQLite and on Postgres."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import Postgres, find_binaries


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("Postgres is not installed")
    # Not in pytest's folder, which only its own user can enter: Postgres may have to run as another.
    with tempfile.TemporaryDirectory(prefix="tuneserve-postgres-") as folder:
        server = Postgres(binaries, Path(folder))
        try:
            yield server
        finally:
            server.close()


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of an empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'tuneserve.sqlite3'}"
        return
    with request.getfixturevalue("postgres").database() as url:
        yield url
