"""What a series waits for and what was decided; jobs that take each other's place."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002_series_docket"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Applies the step."""
    op.create_table(
        "stated_counts",
        sa.Column("uid", sa.String(length=64), nullable=False),
        sa.Column("called_ae_title", sa.String(length=16), nullable=False),
        sa.Column("what", sa.String(length=16), nullable=False),
        sa.Column("source", sa.String(length=64), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("stated_at_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("uid", "called_ae_title", "what", "source"),
    )
    op.create_table(
        "completed_by_hand",
        sa.Column("uid", sa.String(length=64), nullable=False),
        sa.Column("called_ae_title", sa.String(length=16), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("uid", "called_ae_title"),
    )
    op.create_table(
        "series_decisions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("series_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("called_ae_title", sa.String(length=16), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("ruling", sa.String(length=16), nullable=False),
        sa.Column("reasons", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("series_decisions", schema=None) as batch_op:
        batch_op.create_index("ix_series_decisions_series", ["series_instance_uid"], unique=False)
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("subject", sa.String(length=160), nullable=False, server_default="")
        )
        batch_op.add_column(
            sa.Column("rule", sa.String(length=64), nullable=False, server_default="")
        )
        batch_op.add_column(sa.Column("roles", sa.JSON(), nullable=False, server_default="{}"))
        batch_op.add_column(sa.Column("superseded_by", sa.String(length=32), nullable=True))
        batch_op.create_index("ix_jobs_subject", ["subject"], unique=False)
        batch_op.create_index("ix_jobs_superseded_by", ["superseded_by"], unique=False)
    op.execute("UPDATE jobs SET subject = series_instance_uid")


def downgrade() -> None:
    """Undoes the step."""
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_index("ix_jobs_superseded_by")
        batch_op.drop_index("ix_jobs_subject")
        batch_op.drop_column("superseded_by")
        batch_op.drop_column("roles")
        batch_op.drop_column("rule")
        batch_op.drop_column("subject")
    with op.batch_alter_table("series_decisions", schema=None) as batch_op:
        batch_op.drop_index("ix_series_decisions_series")
    op.drop_table("series_decisions")
    op.drop_table("completed_by_hand")
    op.drop_table("stated_counts")
