"""Which priority goes next: immediate first, the others 6:3:1 by smooth weighted turns.

In: the priorities that have a job due, inside the transaction that claims one of them. Out: the
one whose turn it is. The turns are in the index: several workers, processes and hosts that each
counted for themselves would share in other parts than these.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from dicom_gateway.database import job_turns
from dicom_gateway.records import Priority

WEIGHTS = {Priority.HIGH: 6, Priority.NORMAL: 3, Priority.LOW: 1}

_LOCK = 74727470
"""PostgreSQL's advisory lock for the turns; SQLite has one writer at a time anyway."""


def pick(
    due: Collection[Priority], credit: Mapping[Priority, int]
) -> tuple[Priority, dict[Priority, int]]:
    """The priority that goes next among those in `due` (not empty), and the credit after it.

    Smooth weighted round robin: H N H H N H L H N H, not six H in a row.

    Source: the scheme of nginx's upstream balancer: each turn every candidate gains its
    weight, the richest goes and pays the sum.
    """
    candidates = [priority for priority in WEIGHTS if priority in due]
    # Who had nothing to do saves nothing up: no burst when its jobs come back.
    after = {
        priority: credit.get(priority, 0) + weight if priority in candidates else 0
        for priority, weight in WEIGHTS.items()
    }
    chosen = max(candidates, key=lambda priority: after[priority])
    after[chosen] -= sum(WEIGHTS[priority] for priority in candidates)
    return chosen, after


def hold_turns(connection: sa.Connection) -> None:
    """Lets nobody else take a turn until the transaction ends; call before looking who is due."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))


def take_turn(connection: sa.Connection, due: Collection[Priority]) -> Priority:
    """`pick`, with the credit that all processes share; after `hold_turns`."""
    found = connection.execute(sa.select(job_turns.c.priority, job_turns.c.credit)).all()
    before = {Priority(row.priority): row.credit for row in found}
    chosen, after = pick(due, before)
    changed = [
        {"priority": priority.value, "credit": credit}
        for priority, credit in after.items()
        if before.get(priority) != credit
    ]
    if changed:
        insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        new = insert(job_turns)
        connection.execute(
            new.on_conflict_do_update(
                index_elements=["priority"], set_={"credit": new.excluded.credit}
            ),
            changed,
        )
    return chosen
