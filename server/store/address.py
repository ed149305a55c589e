"""`database_url` as SQLAlchemy's asynchronous drivers take it."""

from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from engines.errors import InvalidRequest

DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
}


def read_address(text: str) -> URL:
    """Raises InvalidRequest for what is no address of a database that the store can use."""
    try:
        url = make_url(text)
    except ArgumentError:
        raise InvalidRequest("it is no address of a database, such as postgresql://user@host/name") from None
    if url.drivername not in DRIVERS:
        raise InvalidRequest(f"{url.drivername!r} is not supported; choose postgresql://... or sqlite:///FILE")
    if url.drivername == "sqlite" and url.database in (None, "", ":memory:"):
        raise InvalidRequest("a database in memory is lost with the server: name a file, sqlite:///FILE")
    return url.set(drivername=DRIVERS[url.drivername])


def sqlite_address(file: Path) -> URL:
    return URL.create(DRIVERS["sqlite"], database=str(file))
