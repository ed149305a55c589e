"""The tables of jobs, of their attempts, and of what these reported."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    Table,
    Text,
    UniqueConstraint,
)

from server.store.tables import METADATA, Number

JOBS = Table(
    "jobs",
    METADATA,
    Column("number", Number, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("type", Text, nullable=False),
    Column("status", Text, nullable=False, index=True),
    Column("parameters", JSON, nullable=False),
    Column("told", JSON(none_as_null=True)),
    Column("priority", Integer, nullable=False),
    Column("devices", Integer),
    Column("metadata", JSON(none_as_null=True)),
    Column("fine_tuning", JSON(none_as_null=True)),
    Column("fine_tuned_model", Text),
    Column("attempt", Integer, nullable=False),
    Column("deaths", Integer, nullable=False),
    Column("validated", Boolean, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("queued_at", Float),
    Column("not_before", Float),
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("error", JSON(none_as_null=True)),
    Column("result", JSON(none_as_null=True)),
    Column("owner", Text),
    Index("ix_jobs_owner", "owner", "number"),
)

ATTEMPTS = Table(
    "job_attempts",
    METADATA,
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("started_at", Float, nullable=False),
    Column("pid", Integer),
    Column("pid_started", Float),
    Column("offset", BigInteger, nullable=False),
)
"""`pid` and `pid_started` tell the worker from a later process of the same number; `offset` is how many bytes of its
events.jsonl are in the table of events."""

EVENTS = Table(
    "job_events",
    METADATA,
    Column("number", Number, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("attempt", Integer, nullable=False),
    Column("type", Text, nullable=False),
    Column("step", Integer),
    Column("time", Float, nullable=False),
    Column("data", JSON, nullable=False),
    UniqueConstraint("job_id", "type", "step"),
)
"""A step that a second attempt does again is told once: what was told first stands."""

CHECKPOINTS = Table(
    "job_checkpoints",
    METADATA,
    Column("number", Number, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("attempt", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    Column("path", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("announced", Boolean, nullable=False),
    UniqueConstraint("job_id", "step"),
)
"""`path` lies within the attempt's folder. `announced`: the hook `on_checkpoint` has been called to its end."""
