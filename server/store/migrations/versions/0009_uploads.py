"""Uploads in parts, and which part belongs to which."""

import sqlalchemy as sa
from alembic import op

from server.store.tables import Number

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_table(
        "uploads",
        sa.Column("number", Number, primary_key=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("owner", sa.Text),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("file_expires_after", sa.BigInteger),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False, index=True),
        sa.Column("file_id", sa.Text),
        sa.Column("part_ids", sa.Text),
    )
    op.create_index("ix_uploads_owner", "uploads", ["owner", "number"])
    op.add_column("files", sa.Column("upload_id", sa.Text))
    op.create_index("ix_files_upload_id", "files", ["upload_id"])
