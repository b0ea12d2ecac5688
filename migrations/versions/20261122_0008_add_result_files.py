"""Add result files"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("file") as table:
        table.add_column(sa.Column("job_id", sa.String(), nullable=True))
        table.create_foreign_key(op.f("fk_file_job_id_job"), "job", ["job_id"], ["id"], ondelete="CASCADE")
        table.create_index(op.f("ix_file_job_id"), ["job_id"])


def downgrade() -> None:
    with op.batch_alter_table("file") as table:
        table.drop_index(op.f("ix_file_job_id"))
        table.drop_constraint(op.f("fk_file_job_id_job"), type_="foreignkey")
        table.drop_column("job_id")
