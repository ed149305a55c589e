"""The table of files: a row says that the whole content is stored."""

from sqlalchemy import BigInteger, Column, Index, Table, Text

from server.store.tables import METADATA, Number

FILES = Table(
    "files",
    METADATA,
    Column("number", Number, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("purpose", Text, nullable=False),
    Column("filename", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, index=True),
    Column("owner", Text),
    Column("upload_id", Text, index=True),
    Index("ix_files_owner", "owner", "number"),
)
