"""The tables of what is kept of answers: JSON as text, since what it says is read by those who asked for it alone.

`bytes` are those of a row's JSON, or of a conversation's items together: what quotas count.
"""

from typing import Any

from sqlalchemy import JSON, BigInteger, Column, ForeignKey, Index, Table, Text, UniqueConstraint

from server.store.tables import METADATA, Number


def _kept(name: str, *own: Column[Any]) -> Table:
    columns: list[Column[Any]] = [
        Column("number", Number, primary_key=True),
        Column("id", Text, nullable=False, unique=True),
        Column("owner", Text),
        Column("bytes", BigInteger, nullable=False),
        Column("created_at", BigInteger, nullable=False),
        Column("expires_at", BigInteger, nullable=False, index=True),
    ]
    return Table(name, METADATA, *columns, *own, Index(f"ix_{name}_owner", "owner", "number", "bytes"))


RESPONSES = _kept(
    "kept_responses",
    Column("status", Text, nullable=False, index=True),
    Column("previous_response_id", Text),
    Column("answer", Text, nullable=False),
    Column("input", Text, nullable=False),
    Column("request", Text),
)

COMPLETIONS = _kept(
    "kept_completions",
    Column("model", Text, nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("asked", Text, nullable=False),
    Column("answer", Text, nullable=False),
)

CONVERSATIONS = _kept("conversations", Column("metadata", JSON, nullable=False))

ITEMS = Table(
    "conversation_items",
    METADATA,
    Column("number", Number, primary_key=True),
    Column("id", Text, nullable=False),
    Column("conversation_id", Text, ForeignKey("conversations.id", ondelete="CASCADE"), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("item", Text, nullable=False),
    UniqueConstraint("conversation_id", "id"),
)
