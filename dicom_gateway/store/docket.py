"""Keep, beside the series: what is known to be still to come, and what was decided when.

In: counts that a PACS states, a person's word that a series is complete, and the judge's
decisions. Out: the same, when the judge or a person asks. Survives a crash: all of it; each
call is one transaction, unless it is handed one.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from dicom_gateway.database import (
    completed_by_hand,
    now_s,
    reading,
    series_decisions,
    stated_counts,
    transaction,
)
from dicom_gateway.records import Decision, Ruling

INSTANCES = "instances"
SERIES = "series"


@dataclass(frozen=True, slots=True)
class StatedCount:
    """How many there should be, and who says so."""

    count: int
    source: str


class Docket:
    """What the judge must know of a series or study beside its instances.

    A UID is always taken together with the called AE title, as in `SeriesIndex`.

    Args:
        engine: From `open_database`.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    # What should come ---------------------------------------------------------------

    def expect(
        self, series_instance_uid: str, called_ae_title: str, count: int, source: str
    ) -> None:
        """Notes how many instances of a series there are where it comes from.

        May be called before the first of them has come, and again with a newer count.

        Args:
            series_instance_uid: Of the series, or of a study for all its instances.
            called_ae_title: The AE title of ours that it is sent to.
            count: As stated, such as Number of Series Related Instances (0020,1209).
            source: Who states it, in words for a person, such as "C-FIND of pacs"; at most 64
                characters, never a patient's attribute.

        Raises:
            DatabaseUnavailable: the index doesn't answer.
        """
        self._state(series_instance_uid, called_ae_title, INSTANCES, count, source)

    def expect_series(
        self, study_instance_uid: str, called_ae_title: str, count: int, source: str
    ) -> None:
        """Notes how many series of a study will come (Number of Study Related Series).

        Raises:
            DatabaseUnavailable: the index doesn't answer.
        """
        self._state(study_instance_uid, called_ae_title, SERIES, count, source)

    def _state(self, uid: str, called_ae_title: str, what: str, count: int, source: str) -> None:
        values = {
            "uid": uid,
            "called_ae_title": called_ae_title,
            "what": what,
            "source": source[:64],
            "count": count,
            "stated_at_s": now_s(),
        }
        with transaction(self._engine) as connection:
            upsert = _insert(connection, stated_counts).values(**values)
            connection.execute(
                upsert.on_conflict_do_update(
                    index_elements=["uid", "called_ae_title", "what", "source"],
                    set_={"count": count, "stated_at_s": now_s()},
                )
            )

    def expected(self, uid: str, called_ae_title: str, what: str = INSTANCES) -> list[StatedCount]:
        """What was stated about a series or study, the newest first."""
        with reading(self._engine) as connection:
            rows = connection.execute(
                sa.select(stated_counts.c.count, stated_counts.c.source)
                .where(
                    stated_counts.c.uid == uid,
                    stated_counts.c.called_ae_title == called_ae_title,
                    stated_counts.c.what == what,
                )
                .order_by(stated_counts.c.stated_at_s.desc(), stated_counts.c.source)
            ).all()
        return [StatedCount(count, source) for count, source in rows]

    # What a person says -------------------------------------------------------------

    def complete_by_hand(self, uid: str, called_ae_title: str) -> None:
        """A person declares a series or study complete; the judge sees it within a second."""
        with transaction(self._engine) as connection:
            connection.execute(
                _insert(connection, completed_by_hand)
                .values(uid=uid, called_ae_title=called_ae_title, at_s=now_s())
                .on_conflict_do_nothing()
            )
            self.note(connection, uid, called_ae_title, Ruling.BY_HAND, "by a person")

    def declared_complete(self) -> set[tuple[str, str]]:
        """UID (of a series or study) and called AE title of all that wait so declared."""
        with reading(self._engine) as connection:
            rows = connection.execute(
                sa.select(completed_by_hand.c.uid, completed_by_hand.c.called_ae_title)
            ).all()
        return {(row.uid, row.called_ae_title) for row in rows}

    # What was decided ---------------------------------------------------------------

    def decided(
        self,
        connection: sa.Connection,
        series_instance_uid: str,
        called_ae_title: str,
        ruling: Ruling,
        reasons: str,
    ) -> None:
        """Notes the end of a judgement, in the transaction that marks the series.

        A person's word that it was complete has been heard with that.
        """
        self._forget_hand(connection, series_instance_uid, called_ae_title)
        self.note(connection, series_instance_uid, called_ae_title, ruling, reasons)

    def forget_hand(self, uid: str, called_ae_title: str) -> None:
        """A person's word that a series or study was complete has been heard."""
        with transaction(self._engine) as connection:
            self._forget_hand(connection, uid, called_ae_title)

    def waits(self, series_instance_uid: str, called_ae_title: str, reasons: str) -> None:
        """Notes what an open series waits for, unless that is the last line already."""
        with transaction(self._engine) as connection:
            last = connection.execute(
                sa.select(series_decisions.c.ruling, series_decisions.c.reasons)
                .where(
                    series_decisions.c.series_instance_uid == series_instance_uid,
                    series_decisions.c.called_ae_title == called_ae_title,
                )
                .order_by(series_decisions.c.id.desc())
                .limit(1)
            ).first()
            if last is None or tuple(last) != (Ruling.WAITS.value, reasons):
                self.note(connection, series_instance_uid, called_ae_title, Ruling.WAITS, reasons)

    def decisions(self, series_instance_uid: str) -> list[Decision]:
        """A series' (or study's) story, oldest line first, of all called AE titles."""
        with reading(self._engine) as connection:
            rows = connection.execute(
                sa.select(series_decisions)
                .where(series_decisions.c.series_instance_uid == series_instance_uid)
                .order_by(series_decisions.c.id)
            ).all()
        return [
            Decision(
                series_instance_uid=row.series_instance_uid,
                called_ae_title=row.called_ae_title,
                at_s=row.at_s,
                ruling=Ruling(row.ruling),
                reasons=row.reasons,
            )
            for row in rows
        ]

    @staticmethod
    def note(
        connection: sa.Connection,
        series_instance_uid: str,
        called_ae_title: str,
        ruling: Ruling,
        reasons: str,
    ) -> None:
        """Adds one line to a series' story, in the caller's transaction."""
        connection.execute(
            series_decisions.insert().values(
                series_instance_uid=series_instance_uid,
                called_ae_title=called_ae_title,
                at_s=now_s(),
                ruling=ruling.value,
                reasons=reasons,
            )
        )

    @staticmethod
    def _forget_hand(connection: sa.Connection, uid: str, called_ae_title: str) -> None:
        connection.execute(
            completed_by_hand.delete().where(
                completed_by_hand.c.uid == uid,
                completed_by_hand.c.called_ae_title == called_ae_title,
            )
        )


def _insert(connection: sa.Connection, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
    return (
        postgresql.insert(table)
        if connection.dialect.name == "postgresql"
        else sqlite.insert(table)
    )
