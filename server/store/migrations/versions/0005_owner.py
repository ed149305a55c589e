"""Owners of files, batches, jobs and fine-tuned models.

What was made before belongs to nobody. Batches of before keep every right, as when they were made.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    for table in ("files", "batches", "jobs"):
        op.add_column(table, sa.Column("owner", sa.Text))
        op.create_index(f"ix_{table}_owner", table, ["owner", "number"])
    op.add_column("batches", sa.Column("by_admin", sa.Boolean, nullable=False, server_default=sa.false()))
    op.execute(sa.update(sa.table("batches", sa.column("by_admin"))).values(by_admin=sa.true()))
    op.create_table(
        "fine_tuned_models",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("owner", sa.Text, nullable=False),
    )
