"""What proves that a delivery has arrived, and how often it was lost or not understood."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007_proof_of_arrival"
down_revision = "0006_job_turns"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Applies the step."""
    with op.batch_alter_table("deliveries", schema=None) as batch_op:
        for count in ("refusals", "losses", "proof_tries"):
            batch_op.add_column(sa.Column(count, sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("sent_at_s", sa.Double(), nullable=True))
        batch_op.add_column(sa.Column("proof_uid", sa.String(length=64), nullable=True))
        batch_op.create_index("ix_deliveries_proof", ["proof_uid"], unique=False)


def downgrade() -> None:
    """Undoes the step."""
    with op.batch_alter_table("deliveries", schema=None) as batch_op:
        batch_op.drop_index("ix_deliveries_proof")
        for column in ("proof_uid", "sent_at_s", "proof_tries", "losses", "refusals"):
            batch_op.drop_column(column)
