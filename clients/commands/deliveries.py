"""`tritome deliveries`: what still waits to be sent, to whom, and why.

In: gateway.yaml and the index it names. Out: tables for people. Changes nothing.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from rich.text import Text

from clients.commands.jobs import open_index
from clients.console import out, plain_table
from dicom_gateway.config import load_settings
from dicom_gateway.database import deliveries, now_s, reading
from dicom_gateway.records import DeliveryState

_SHORT = 8
_OPEN = (DeliveryState.WAITING.value, DeliveryState.SENT.value)
_WORDS = {
    DeliveryState.WAITING.value: ("waits", "yellow"),
    DeliveryState.SENT.value: ("accepted, to be proven", "blue"),
    DeliveryState.FAILED.value: ("failed", "red"),
}


def run(config: Path, limit: int) -> None:
    """Prints how many there are per destination, and those that have not arrived."""
    settings = load_settings(config)
    engine = open_index(settings)
    try:
        with reading(engine) as connection:
            counts = connection.execute(
                sa.select(deliveries.c.destination, deliveries.c.state, sa.func.count())
                .group_by(deliveries.c.destination, deliveries.c.state)
                .order_by(deliveries.c.destination)
            ).all()
            waiting = connection.execute(
                sa.select(deliveries, (deliveries.c.not_before_s - now_s()).label("due_in_s"))
                .where(deliveries.c.state != DeliveryState.DELIVERED.value)
                .order_by(deliveries.c.created_at_s)
                .limit(limit)
            ).all()
    finally:
        engine.dispose()
    names = [one.name for one in settings.dicom.scu.destinations]
    table = plain_table("destination", "waits", "to be proven", "delivered", "failed")
    for name in [*names, *sorted({row.destination for row in counts} - set(names))]:
        found = {row.state: row[2] for row in counts if row.destination == name}
        table.add_row(
            name if name in names else f"{name} (not in gateway.yaml)",
            *(str(found.get(state.value, 0)) for state in DeliveryState),
        )
    out.print(table)
    if not waiting:
        out.print("Nothing waits: every result has arrived.")
        return
    lines = plain_table("job", "to", "is", "tries", "next", "why")
    for row in waiting:
        words, colour = _WORDS[row.state]
        due = "" if row.state not in _OPEN else f"in {max(0.0, row.due_in_s):.0f} s"
        lines.add_row(
            row.job_id[:_SHORT],
            row.destination,
            Text(words, style=colour),
            str(row.attempts),
            due,
            row.last_error or "",
        )
    out.print(lines)
