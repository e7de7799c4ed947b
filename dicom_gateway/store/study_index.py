"""Keep, the questions about a study: which series has it, and is more of it coming.

In: a Study Instance UID and a called AE title. Out: `StudyLook`. Survives a crash: all of it;
the answers are rows of the index, every age in them is by the database's clock.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from dicom_gateway.database import arrivals, instances, now_s, reading, series
from dicom_gateway.records import SeriesState


@dataclass(frozen=True, slots=True)
class StudyLook:
    """A study as it is just now, for one called AE title.

    Attributes:
        states: Series Instance UID -> where the series is on its way, in a fixed order.
        instances: Usable instances of all its series.
        since_last_arrival_s: Since the last instance of any series was kept.
        since_association_ended_s: Since the last association that brought any of it ended;
            None while one is open.
        broken_off: One of them was aborted or lost.
        together: One association has brought instances of every series, and there are several.
    """

    states: dict[str, SeriesState]
    instances: int
    since_last_arrival_s: float
    since_association_ended_s: float | None
    broken_off: bool
    together: bool

    @property
    def association_open(self) -> bool:
        """True while any association that brought instances is open."""
        return self.since_association_ended_s is None

    @property
    def open_series(self) -> set[str]:
        """The series that wait for their judgement."""
        return {uid for uid, state in self.states.items() if state is SeriesState.RECEIVING}


class StudyIndex:
    """Reads studies.

    Args:
        engine: From `open_database`.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def look(self, study_instance_uid: str, called_ae_title: str) -> StudyLook:
        """The study as it is now; without series where nothing of it has come."""
        ours = sa.and_(
            series.c.study_instance_uid == study_instance_uid,
            series.c.called_ae_title == called_ae_title,
        )
        with reading(self._engine) as connection:
            rows = connection.execute(
                sa.select(
                    series.c.series_instance_uid,
                    series.c.state,
                    (now_s() - series.c.last_arrival_at_s).label("quiet_s"),
                    (now_s() - series.c.released_at_s).label("ended_s"),
                    series.c.broken_off,
                )
                .where(ours)
                .order_by(series.c.series_instance_uid)
            ).all()
            brought = connection.execute(
                sa.select(
                    instances.c.series_instance_uid,
                    arrivals.c.association_id,
                    sa.func.count(sa.case((arrivals.c.conflicts.is_(False), 1))),
                )
                .join(arrivals, arrivals.c.instance_id == instances.c.id)
                .where(
                    instances.c.series_instance_uid.in_(
                        sa.select(series.c.series_instance_uid).where(ours)
                    ),
                    arrivals.c.called_ae_title == called_ae_title,
                )
                .group_by(instances.c.series_instance_uid, arrivals.c.association_id)
            ).all()
        by_series: dict[str, set[str]] = {row.series_instance_uid: set() for row in rows}
        for uid, association_id, _ in brought:
            by_series.setdefault(uid, set()).add(association_id)
        ended = [row.ended_s for row in rows]
        return StudyLook(
            states={row.series_instance_uid: SeriesState(row.state) for row in rows},
            instances=sum(count for _, _, count in brought),
            since_last_arrival_s=max(0.0, min((row.quiet_s for row in rows), default=0.0)),
            since_association_ended_s=(
                None if any(age is None for age in ended) else max(0.0, min(ended, default=0.0))
            ),
            broken_off=any(row.broken_off for row in rows),
            together=len(rows) > 1 and bool(set.intersection(*by_series.values())),
        )
