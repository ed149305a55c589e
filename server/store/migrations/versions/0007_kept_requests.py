"""Requests of responses that have not ended, so that the next server begins them again."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("kept_responses", sa.Column("request", sa.Text))
