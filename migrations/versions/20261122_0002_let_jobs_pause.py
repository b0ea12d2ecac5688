"""Let jobs pause and be queued again"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("job") as batch_op:
        batch_op.add_column(sa.Column("pause_requested_at", sa.DateTime(), nullable=True))
        batch_op.add_column(sa.Column("queued_at", sa.DateTime(), nullable=True))
    op.execute("UPDATE job SET queued_at = created_at")
    with op.batch_alter_table("job") as batch_op:
        batch_op.alter_column("queued_at", existing_type=sa.DateTime(), nullable=False)


def downgrade() -> None:
    with op.batch_alter_table("job") as batch_op:
        batch_op.drop_column("queued_at")
        batch_op.drop_column("pause_requested_at")
