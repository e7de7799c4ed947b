"""The turns of the priorities, shared by every process that claims jobs; an index for claims."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006_job_turns"
down_revision = "0005_store_indexes"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Applies the step."""
    op.create_table(
        "job_turns",
        sa.Column("priority", sa.String(length=16), nullable=False),
        sa.Column("credit", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("priority"),
    )
    op.drop_index("ix_jobs_claim", table_name="jobs")
    columns = ["state", "priority", "not_before_s", "created_at_s"]
    op.create_index("ix_jobs_claim", "jobs", columns, unique=False)


def downgrade() -> None:
    """Undoes the step."""
    op.drop_index("ix_jobs_claim", table_name="jobs")
    op.create_index("ix_jobs_claim", "jobs", ["state", "priority", "created_at_s"], unique=False)
    op.drop_table("job_turns")
