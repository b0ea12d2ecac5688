"""Add the ids of the requests that work was started by"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("job", "stage_run"):
        op.add_column(table, sa.Column("request_id", sa.String(), nullable=True))


def downgrade() -> None:
    for table in ("job", "stage_run"):
        op.drop_column(table, "request_id")
