"""The fixtures `postgres` and `database_url`: tests that ask for the second run on SQLite and on Postgres."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import Postgres, find_binaries


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("Postgres is not installed")
    server = Postgres(binaries, tmp_path_factory.mktemp("postgres"))
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
