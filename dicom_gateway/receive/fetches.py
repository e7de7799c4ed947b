"""Receive, the list of what is to be fetched from a PACS.

In: wishes, from `tritome fetch`. Out: the next one, for the gateway's fetcher; and how far each
is, for whoever asks. Survives a crash: all of it; what was under way is begun anew at the
next start, which does no harm, since the same object twice is one.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from dicom_gateway.database import fetches, now_s, reading, transaction
from dicom_gateway.records import Fetch, FetchState

_OPEN = (FetchState.WAITING.value, FetchState.RUNNING.value)


class FetchDesk:
    """Reads and writes the list; each call is one transaction.

    Args:
        engine: From `open_database`. Every call raises DatabaseUnavailable where the index
            does not answer.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def ask(
        self, peer: str, called_ae_title: str, keys: Mapping[str, str], series: Sequence[str] = ()
    ) -> str:
        """Adds a wish; gives its id."""
        fetch_id = uuid.uuid4().hex
        with transaction(self._engine) as connection:
            connection.execute(
                fetches.insert().values(
                    fetch_id=fetch_id,
                    peer=peer,
                    called_ae_title=called_ae_title,
                    keys=dict(keys),
                    series=list(series),
                    state=FetchState.WAITING.value,
                    kept=0,
                    failed=0,
                    note="",
                    created_at_s=now_s(),
                )
            )
        return fetch_id

    def show(self, fetch_id: str) -> Fetch | None:
        """How far it is; None where there is no such fetch."""
        with reading(self._engine) as connection:
            row = connection.execute(
                sa.select(fetches).where(fetches.c.fetch_id == fetch_id)
            ).one_or_none()
        return None if row is None else _fetch(row)

    def claim(self) -> Fetch | None:
        """The oldest one that waits, which is running from now on."""
        with transaction(self._engine) as connection:
            row = connection.execute(
                sa.select(fetches)
                .where(fetches.c.state == FetchState.WAITING.value)
                .order_by(fetches.c.created_at_s, fetches.c.fetch_id)
                .limit(1)
                .with_for_update(skip_locked=True)
            ).one_or_none()
            if row is None:
                return None
            connection.execute(
                fetches.update()
                .where(fetches.c.fetch_id == row.fetch_id)
                .values(state=FetchState.RUNNING.value)
            )
        return _fetch(row)

    def progress(self, fetch_id: str, *, expected: int | None, kept: int, failed: int) -> bool:
        """Notes how far it is; False where a person has cancelled it."""
        with transaction(self._engine) as connection:
            written = connection.execute(
                fetches.update()
                .where(fetches.c.fetch_id == fetch_id, fetches.c.state == FetchState.RUNNING.value)
                .values(expected=expected, kept=kept, failed=failed)
            )
        return written.rowcount == 1

    def finish(self, fetch_id: str, state: FetchState, note: str) -> None:
        """Ends it, unless it has ended; what was looked for is forgotten."""
        with transaction(self._engine) as connection:
            connection.execute(
                fetches.update()
                .where(fetches.c.fetch_id == fetch_id, fetches.c.state.in_(_OPEN))
                .values(state=state.value, note=note, keys={}, finished_at_s=now_s())
            )

    def put_back(self, fetch_id: str) -> None:
        """One that was cut off waits again, unless it has ended."""
        self._release(fetches.c.fetch_id == fetch_id)

    def release_own(self) -> int:
        """What an earlier life had under way waits again; call it before fetching."""
        return self._release(sa.true())

    def _release(self, which: sa.ColumnElement[bool]) -> int:
        with transaction(self._engine) as connection:
            return connection.execute(
                fetches.update()
                .where(which, fetches.c.state == FetchState.RUNNING.value)
                .values(state=FetchState.WAITING.value, kept=0, failed=0)
            ).rowcount


def _fetch(row: sa.Row[Any]) -> Fetch:
    return Fetch(
        fetch_id=row.fetch_id,
        peer=row.peer,
        called_ae_title=row.called_ae_title,
        keys=dict(row._mapping["keys"]),  # a row has a method of that name
        series=tuple(row.series),
        state=FetchState(row.state),
        expected=row.expected,
        kept=row.kept,
        failed=row.failed,
        note=row.note,
    )
