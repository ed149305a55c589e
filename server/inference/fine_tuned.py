"""The owners of fine-tuned models: those that jobs make, called `ft:...`. Every other model is everybody's."""

from sqlalchemy import Column, Table, Text, select
from sqlalchemy.dialects import postgresql, sqlite

from server.store.access import Access
from server.store.database import Database
from server.store.tables import METADATA

FINE_TUNED = "ft:"
"""Beginning of the names of models that jobs have made."""
CHECKPOINT = ":ckpt-step-"
"""In the name of a checkpoint, what separates the name of its job's model from the step."""

OWNERS_OF_MODELS = Table(
    "fine_tuned_models",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("owner", Text, nullable=False),
)
"""The names of models, without those of their checkpoints. A name that is not here is nobody's."""


class FineTunedModels:
    """The owner of each name. It stays even when the job or the model is gone: a name contains the id of its job, so no
    other model ever gets it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._owners: dict[str, str] = {}

    async def open(self) -> None:
        """Called once, when the database is open. Where it is not, all that jobs have made is nobody's."""
        async with self._database.reading() as connection:
            rows = await connection.execute(select(OWNERS_OF_MODELS.c.name, OWNERS_OF_MODELS.c.owner))
            self._owners = {row.name: row.owner for row in rows}

    async def give(self, name: str, owner: str | None) -> None:
        """Note the owner, before the model answers. `name` may be that of a checkpoint; an owner of None is nobody."""
        name = _model_of(name)
        if owner is None or name in self._owners:
            return
        async with self._database.writing() as connection:
            made = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
            row = made(OWNERS_OF_MODELS).values(name=name, owner=owner)
            await connection.execute(row.on_conflict_do_nothing())
        self._owners[name] = owner

    def are_known_to(self, access: Access, name: str) -> bool:
        """Whether a client with this access may know of a model of this name."""
        return not name.startswith(FINE_TUNED) or access.covers(self._owners.get(_model_of(name)))


def _model_of(name: str) -> str:
    return name.partition(CHECKPOINT)[0]
