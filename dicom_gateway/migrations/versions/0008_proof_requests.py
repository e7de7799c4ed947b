"""Every commitment that was asked for; indexes for what an association brought and for claims."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008_proof_requests"
down_revision = "0007_proof_of_arrival"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Applies the step."""
    op.create_table(
        "proof_requests",
        sa.Column("transaction_uid", sa.String(length=64), nullable=False),
        sa.Column("delivery_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["delivery_id"], ["deliveries.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("transaction_uid", "delivery_id"),
    )
    op.create_index("ix_proof_requests_delivery", "proof_requests", ["delivery_id"], unique=False)
    op.execute(
        "INSERT INTO proof_requests (transaction_uid, delivery_id) "
        "SELECT proof_uid, id FROM deliveries WHERE proof_uid IS NOT NULL"
    )
    # Without a batch: that would make the table anew, and dropping the old one cascades.
    op.drop_index("ix_deliveries_proof", table_name="deliveries")
    op.drop_column("deliveries", "proof_uid")

    op.create_index("ix_arrivals_association", "arrivals", ["association_id"], unique=False)

    # An index that an early 0006 has made has its columns in another order, or fewer.
    op.drop_index("ix_jobs_claim", table_name="jobs")
    columns = ["state", "priority", "not_before_s", "created_at_s"]
    op.create_index("ix_jobs_claim", "jobs", columns, unique=False)


def downgrade() -> None:
    """Undoes the step; of several requests for one delivery, the last by name is kept."""
    op.drop_index("ix_arrivals_association", table_name="arrivals")
    op.add_column("deliveries", sa.Column("proof_uid", sa.String(length=64), nullable=True))
    op.create_index("ix_deliveries_proof", "deliveries", ["proof_uid"], unique=False)
    op.execute(
        "UPDATE deliveries SET proof_uid = (SELECT max(transaction_uid) FROM proof_requests "
        "WHERE proof_requests.delivery_id = deliveries.id)"
    )
    op.drop_index("ix_proof_requests_delivery", table_name="proof_requests")
    op.drop_table("proof_requests")
