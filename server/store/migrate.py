"""Brings a database to the tables of this version, by the steps in `migrations/versions`."""

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from engines.errors import TuneserveError

MIGRATIONS = Path(__file__).with_name("migrations")


class NewerDatabase(TuneserveError):
    """A later version of tuneserve has changed the tables: this one does not know them."""

    code = "newer_database"


def migrate(connection: Connection) -> None:
    """All steps that are missing, in the transaction of `connection`. Raises NewerDatabase.

    Where none is, which is most starts, that is found out without Alembic, which would read all of them.
    """
    if _last_step(connection) == max(file.name[:4] for file in (MIGRATIONS / "versions").glob("[0-9]*.py")):
        return
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        message = "the database was last used by a later version of tuneserve: use that one, or another database"
        raise NewerDatabase(message) from error


def _last_step(connection: Connection) -> str | None:
    """The number of the step that was taken last: Alembic keeps it."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    number: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return number
