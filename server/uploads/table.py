"""The table of uploads. Their parts are rows of the files' table."""

from sqlalchemy import BigInteger, Column, Index, Table, Text

from server.store.tables import METADATA, Number

UPLOADS = Table(
    "uploads",
    METADATA,
    Column("number", Number, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("owner", Text),
    Column("status", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("filename", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("file_expires_after", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False, index=True),
    Column("file_id", Text),
    Column("part_ids", Text),
    Index("ix_uploads_owner", "owner", "number"),
)
