"""The tables of evals: JSON that nothing is found by is text."""

from sqlalchemy import JSON, BigInteger, Boolean, Column, ForeignKey, Index, Integer, Table, Text, UniqueConstraint

from server.store.tables import METADATA, Number

EVALS = Table(
    "evals",
    METADATA,
    Column("number", Number, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("owner", Text),
    Column("name", Text, nullable=False),
    Column("metadata", JSON),
    Column("config", Text, nullable=False),
    Column("criteria", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Index("ix_evals_owner", "owner", "number"),
)

RUNS = Table(
    "eval_runs",
    METADATA,
    Column("number", Number, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("eval_id", Text, ForeignKey("evals.id", ondelete="CASCADE"), nullable=False),
    Column("owner", Text),
    Column("by_admin", Boolean, nullable=False),
    Column("status", Text, nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("metadata", JSON),
    Column("data_source", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("counts", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("error", JSON),
    Index("ix_eval_runs_eval", "eval_id", "number"),
    Index("ix_eval_runs_owner", "owner", "number", "bytes"),
)
"""`bytes` are those of its output items, which quotas count."""

ITEMS = Table(
    "eval_output_items",
    METADATA,
    Column("number", Number, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("run_id", Text, ForeignKey("eval_runs.id", ondelete="CASCADE"), nullable=False),
    Column("place", Integer, nullable=False),
    Column("status", Text, nullable=False),
    Column("item", Text, nullable=False),
    UniqueConstraint("run_id", "place"),
    Index("ix_eval_output_items_run", "run_id", "number"),
)
"""`place` is that of the row among those of the run, from 0."""
