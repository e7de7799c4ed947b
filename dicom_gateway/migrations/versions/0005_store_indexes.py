"""Indexes for the questions of retention: what belongs to a study, which job uses an instance."""

from __future__ import annotations

from alembic import op

revision = "0005_store_indexes"
down_revision = "0004_commitments"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Applies the step."""
    op.create_index("ix_series_study", "series", ["study_instance_uid"], unique=False)
    op.create_index("ix_jobs_series", "jobs", ["series_instance_uid"], unique=False)
    op.create_index("ix_jobs_study", "jobs", ["study_instance_uid"], unique=False)
    op.create_index("ix_job_instances_instance", "job_instances", ["instance_id"], unique=False)


def downgrade() -> None:
    """Undoes the step."""
    op.drop_index("ix_job_instances_instance", table_name="job_instances")
    op.drop_index("ix_jobs_study", table_name="jobs")
    op.drop_index("ix_jobs_series", table_name="jobs")
    op.drop_index("ix_series_study", table_name="series")
