"""Add webhook endpoints, and what a delivery needs to be sent"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

JOB_KEY = "fk_webhook_delivery_job_id_job"
ENDPOINT_KEY = "fk_webhook_delivery_endpoint_id_webhook_endpoint"


def upgrade() -> None:
    op.create_table(
        "webhook_endpoint",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("event_types", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("encrypted_secret", sa.Text(), nullable=False),
        sa.Column("secret_hint", sa.String(), nullable=False),
        sa.Column("old_encrypted_secret", sa.Text(), nullable=True),
        sa.Column("old_secret_until", sa.DateTime(), nullable=True),
        sa.Column("disabled_at", sa.DateTime(), nullable=True),
        sa.Column("disabled_reason", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("updated_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_endpoint")),
    )
    op.create_index(op.f("ix_webhook_endpoint_tenant_id"), "webhook_endpoint", ["tenant_id"])
    with op.batch_alter_table("webhook_delivery") as batch_op:
        batch_op.add_column(sa.Column("endpoint_id", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("secret_name", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("host", sa.String(), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("tries", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("fence", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("lease_until", sa.DateTime(), nullable=True))
        batch_op.create_foreign_key(op.f(ENDPOINT_KEY), "webhook_endpoint", ["endpoint_id"], ["id"], ondelete="CASCADE")
        batch_op.drop_constraint(JOB_KEY, type_="foreignkey")
        batch_op.create_foreign_key(op.f(JOB_KEY), "job", ["job_id"], ["id"], ondelete="SET NULL")
        batch_op.create_index(op.f("ix_webhook_delivery_endpoint_id"), ["endpoint_id"])
    with op.batch_alter_table("webhook_delivery") as batch_op:
        for column in ("host", "tries", "fence"):
            batch_op.alter_column(column, server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("webhook_delivery") as batch_op:
        batch_op.drop_constraint(ENDPOINT_KEY, type_="foreignkey")
        batch_op.drop_constraint(JOB_KEY, type_="foreignkey")
        batch_op.create_foreign_key(op.f(JOB_KEY), "job", ["job_id"], ["id"], ondelete="CASCADE")
        batch_op.drop_index(op.f("ix_webhook_delivery_endpoint_id"))
        for column in ("lease_until", "fence", "tries", "host", "secret_name", "endpoint_id"):
            batch_op.drop_column(column)
    op.drop_table("webhook_endpoint")
