"""Evals, their runs, and what came of each row."""

import sqlalchemy as sa
from alembic import op

from server.store.tables import Number

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.create_table(
        "evals",
        sa.Column("number", Number, primary_key=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("owner", sa.Text),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("metadata", sa.JSON),
        sa.Column("config", sa.Text, nullable=False),
        sa.Column("criteria", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_evals_owner", "evals", ["owner", "number"])
    op.create_table(
        "eval_runs",
        sa.Column("number", Number, primary_key=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("eval_id", sa.Text, sa.ForeignKey("evals.id", ondelete="CASCADE"), nullable=False),
        sa.Column("owner", sa.Text),
        sa.Column("by_admin", sa.Boolean, nullable=False),
        sa.Column("status", sa.Text, nullable=False, index=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("metadata", sa.JSON),
        sa.Column("data_source", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("counts", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("error", sa.JSON),
    )
    op.create_index("ix_eval_runs_eval", "eval_runs", ["eval_id", "number"])
    op.create_index("ix_eval_runs_owner", "eval_runs", ["owner", "number", "bytes"])
    op.create_table(
        "eval_output_items",
        sa.Column("number", Number, primary_key=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("run_id", sa.Text, sa.ForeignKey("eval_runs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("item", sa.Text, nullable=False),
        sa.UniqueConstraint("run_id", "place"),
    )
    op.create_index("ix_eval_output_items_run", "eval_output_items", ["run_id", "number"])
