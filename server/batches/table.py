"""The table of batches."""

from sqlalchemy import JSON, BigInteger, Boolean, Column, Index, Integer, Table, Text

from server.store.tables import METADATA, Number

BATCHES = Table(
    "batches",
    METADATA,
    Column("number", Number, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("status", Text, nullable=False, index=True),
    Column("endpoint", Text, nullable=False),
    Column("input_file_id", Text, nullable=False),
    Column("completion_window", Text, nullable=False),
    Column("output_expires_after", BigInteger),
    Column("metadata", JSON),
    Column("model", Text),
    Column("errors", JSON),
    Column("output_file_id", Text),
    Column("error_file_id", Text),
    Column("total", Integer, nullable=False, default=0),
    Column("completed", Integer, nullable=False, default=0),
    Column("failed", Integer, nullable=False, default=0),
    Column("input_tokens", BigInteger, nullable=False, default=0),
    Column("cached_tokens", BigInteger, nullable=False, default=0),
    Column("output_tokens", BigInteger, nullable=False, default=0),
    Column("reasoning_tokens", BigInteger, nullable=False, default=0),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("in_progress_at", BigInteger),
    Column("finalizing_at", BigInteger),
    Column("completed_at", BigInteger),
    Column("failed_at", BigInteger),
    Column("expired_at", BigInteger),
    Column("cancelling_at", BigInteger),
    Column("cancelled_at", BigInteger),
    Column("owner", Text),
    Column("by_admin", Boolean, nullable=False),
    Index("ix_batches_owner", "owner", "number"),
)
