"""Storage commitments that were asked for and not yet reported."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004_commitments"
down_revision = "0003_catalogue"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Applies the step."""
    op.create_table(
        "storage_commitments",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("transaction_uid", sa.String(length=64), nullable=False),
        sa.Column("called_ae_title", sa.String(length=16), nullable=False),
        sa.Column("calling_ae_title", sa.String(length=16), nullable=False),
        sa.Column("association_id", sa.String(length=32), nullable=False),
        sa.Column("instances", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("requested_at_s", sa.Double(), nullable=False),
        sa.Column("not_before_s", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("storage_commitments", schema=None) as batch_op:
        batch_op.create_index("ix_storage_commitments_due", ["not_before_s"], unique=False)


def downgrade() -> None:
    """Undoes the step."""
    with op.batch_alter_table("storage_commitments", schema=None) as batch_op:
        batch_op.drop_index("ix_storage_commitments_due")
    op.drop_table("storage_commitments")
