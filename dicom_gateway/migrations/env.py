"""Alembic's entry point: runs on the connection that `open_database` hands over."""

from __future__ import annotations

from alembic import context

from dicom_gateway.database import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
