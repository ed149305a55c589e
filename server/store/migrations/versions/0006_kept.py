"""Kept responses, kept chat completions and conversations."""

from typing import Any

import sqlalchemy as sa
from alembic import op

from server.store.tables import Number

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    _create_kept(
        "kept_responses",
        sa.Column("status", sa.Text, nullable=False, index=True),
        sa.Column("previous_response_id", sa.Text),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("input", sa.Text, nullable=False),
    )
    _create_kept(
        "kept_completions",
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("asked", sa.Text, nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
    )
    _create_kept("conversations", sa.Column("metadata", sa.JSON, nullable=False))
    op.create_table(
        "conversation_items",
        sa.Column("number", Number, primary_key=True),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("conversation_id", sa.Text, sa.ForeignKey("conversations.id", ondelete="CASCADE"), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("item", sa.Text, nullable=False),
        sa.UniqueConstraint("conversation_id", "id"),
    )


def _create_kept(name: str, *own: sa.Column[Any]) -> None:
    op.create_table(
        name,
        sa.Column("number", Number, primary_key=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("owner", sa.Text),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False, index=True),
        *own,
    )
    op.create_index(f"ix_{name}_owner", name, ["owner", "number", "bytes"])
