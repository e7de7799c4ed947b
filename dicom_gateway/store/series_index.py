"""Keep, the questions: what was received, is it still coming, what was decided about it.

In: questions of the judge, the workers and the command line. Out: `Series` and
`OpenSeries`. Survives a crash: all of it; the answers are the rows of the index, and every
age in them is by the database's clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from dicom_gateway.database import (
    arrivals,
    instances,
    job_instances,
    jobs,
    now_s,
    open_associations,
    reading,
    series,
    transaction,
)
from dicom_gateway.records import Series, SeriesState
from dicom_gateway.store.rows import as_instance


@dataclass(frozen=True, slots=True)
class OpenSeries:
    """A series that waits for its judgement.

    Attributes:
        instances: How many usable instances there are by now.
        since_first_arrival_s: Since the first instance came to this called AE title.
        since_last_arrival_s: Since the last instance was kept.
        since_association_ended_s: Since the last of the associations that brought
            instances ended; None while any of them is open.
        broken_off: One of them was aborted or lost, so there may be more to come.
    """

    series_instance_uid: str
    called_ae_title: str
    instances: int
    since_first_arrival_s: float
    since_last_arrival_s: float
    since_association_ended_s: float | None
    broken_off: bool = False
    study_instance_uid: str = ""

    @property
    def association_open(self) -> bool:
        """True while any association that brought instances is open."""
        return self.since_association_ended_s is None


@dataclass(frozen=True, slots=True)
class IgnoredSeries:
    """A series that is kept and that no pipeline wants, and why."""

    series_instance_uid: str
    study_instance_uid: str
    called_ae_title: str
    calling_ae_title: str
    modality: str
    instances: int
    reasons: str
    last_arrival_at_s: float


class SeriesIndex:
    """Reads and decides series. A series is the pair of its UID and the called AE title.

    Args:
        engine: From `open_database`.
        folder: The store's folder.
    """

    def __init__(self, engine: sa.Engine, folder: Path) -> None:
        self._engine = engine
        self._folder = folder.resolve()

    # Associations ---------------------------------------------------------------------

    def association_ended(self, association_id: str, *, in_order: bool) -> None:
        """Notes that nothing more comes by this association.

        A series counts as released when none of those that brought its instances is open.

        Args:
            association_id: As its arrivals named it.
            in_order: It was released; False for an abort and a lost connection.
        """
        with transaction(self._engine) as connection:
            brought = connection.execute(
                sa.select(
                    open_associations.c.series_instance_uid, open_associations.c.called_ae_title
                )
                .where(open_associations.c.association_id == association_id)
                .order_by(
                    open_associations.c.series_instance_uid, open_associations.c.called_ae_title
                )
            ).all()
            for uid, title in brought:
                # PostgreSQL: of two associations that end at once the second sees the first.
                ours = _is(series, uid, title)
                connection.execute(sa.select(series.c.state).where(ours).with_for_update())
                connection.execute(
                    open_associations.delete().where(
                        open_associations.c.association_id == association_id,
                        _is(open_associations, uid, title),
                    )
                )
                if not in_order:
                    connection.execute(series.update().where(ours).values(broken_off=True))
                connection.execute(
                    series.update()
                    .where(
                        ours,
                        series.c.released_at_s.is_(None),
                        ~sa.exists().where(_is(open_associations, uid, title)),
                    )
                    .values(released_at_s=now_s())
                )

    def close_orphaned_associations(self) -> int:
        """After a start no association is open; call it before the first one is accepted.

        Returns:
            How many series were waiting for an association of an earlier process; whatever
            ended that has broken them off.
        """
        with transaction(self._engine) as connection:
            connection.execute(open_associations.delete())
            return connection.execute(
                series.update()
                .where(series.c.released_at_s.is_(None))
                .values(released_at_s=now_s(), broken_off=True)
            ).rowcount

    # Questions ------------------------------------------------------------------------

    def open_series(self) -> list[OpenSeries]:
        """All series in `receiving`, the longest quiet one first."""
        with reading(self._engine) as connection:
            rows = connection.execute(
                sa.select(
                    series.c.series_instance_uid,
                    series.c.called_ae_title,
                    (now_s() - series.c.last_arrival_at_s).label("quiet_s"),
                    (now_s() - series.c.released_at_s).label("ended_s"),
                    (now_s() - sa.func.min(arrivals.c.received_at_s)).label("first_s"),
                    sa.func.count(sa.case((arrivals.c.conflicts.is_(False), 1))).label("members"),
                    series.c.broken_off,
                    series.c.study_instance_uid,
                )
                .join_from(series, instances, _same_series())
                .join(arrivals, _same_arrival())
                .where(series.c.state == SeriesState.RECEIVING.value)
                .group_by(series.c.series_instance_uid, series.c.called_ae_title)
                .order_by(series.c.last_arrival_at_s)
            ).all()
        return [
            OpenSeries(
                series_instance_uid=row.series_instance_uid,
                called_ae_title=row.called_ae_title,
                instances=row.members,
                since_first_arrival_s=max(0.0, row.first_s),
                since_last_arrival_s=max(0.0, row.quiet_s),
                since_association_ended_s=None if row.ended_s is None else max(0.0, row.ended_s),
                broken_off=row.broken_off,
                study_instance_uid=row.study_instance_uid,
            )
            for row in rows
        ]

    def load_series(self, series_instance_uid: str, called_ae_title: str) -> Series:
        """The series with its usable instances, in the order in which they came.

        Instances that are set apart (another object under the same UID) are not among
        them; where all are, `instances` is empty.

        Raises:
            KeyError: no such series was sent to that called AE title.
        """
        with reading(self._engine) as connection:
            row = connection.execute(
                sa.select(series).where(
                    series.c.series_instance_uid == series_instance_uid,
                    series.c.called_ae_title == called_ae_title,
                )
            ).one_or_none()
            if row is None:
                msg = f"no series {series_instance_uid} was sent to {called_ae_title}"
                raise KeyError(msg)
            members = connection.execute(
                sa.select(instances)
                .join(arrivals, arrivals.c.instance_id == instances.c.id)
                .where(
                    instances.c.series_instance_uid == series_instance_uid,
                    arrivals.c.called_ae_title == called_ae_title,
                    arrivals.c.conflicts.is_(False),
                )
                .order_by(instances.c.id)
            ).all()
        return Series(
            series_instance_uid=row.series_instance_uid,
            study_instance_uid=row.study_instance_uid,
            modality=row.modality,
            called_ae_title=row.called_ae_title,
            calling_ae_title=row.calling_ae_title,
            instances=tuple(as_instance(member, self._folder) for member in members),
        )

    def instances_of_job(self, job_id: str) -> Series:
        """The series exactly as the job was made from it, whatever came since.

        Raises:
            KeyError: no such job.
        """
        with reading(self._engine) as connection:
            job = connection.execute(
                sa.select(
                    jobs.c.series_instance_uid,
                    jobs.c.study_instance_uid,
                    jobs.c.called_ae_title,
                    jobs.c.calling_ae_title,
                ).where(jobs.c.job_id == job_id)
            ).one_or_none()
            if job is None:
                msg = f"no job {job_id}"
                raise KeyError(msg)
            members = connection.execute(
                sa.select(instances)
                .join(job_instances, job_instances.c.instance_id == instances.c.id)
                .where(job_instances.c.job_id == job_id)
                .order_by(instances.c.id)
            ).all()
        return Series(
            series_instance_uid=job.series_instance_uid,
            study_instance_uid=job.study_instance_uid,
            modality=members[0].modality if members else "",
            called_ae_title=job.called_ae_title,
            calling_ae_title=job.calling_ae_title,
            instances=tuple(as_instance(member, self._folder) for member in members),
        )

    def ignored_series(self) -> list[IgnoredSeries]:
        """All series that no pipeline wanted, the newest first."""
        with reading(self._engine) as connection:
            rows = connection.execute(
                sa.select(series, sa.func.count(arrivals.c.instance_id).label("members"))
                .join_from(series, instances, _same_series())
                .join(arrivals, _same_arrival())
                .where(series.c.state == SeriesState.IGNORED.value)
                .group_by(series.c.series_instance_uid, series.c.called_ae_title)
                .order_by(series.c.last_arrival_at_s.desc())
            ).all()
        return [
            IgnoredSeries(
                series_instance_uid=row.series_instance_uid,
                study_instance_uid=row.study_instance_uid,
                called_ae_title=row.called_ae_title,
                calling_ae_title=row.calling_ae_title,
                modality=row.modality,
                instances=row.members,
                reasons=row.reasons,
                last_arrival_at_s=row.last_arrival_at_s,
            )
            for row in rows
        ]

    # Decisions ------------------------------------------------------------------------

    def mark_series(
        self, connection: sa.Connection, judged: Series, state: SeriesState, reasons: str = ""
    ) -> bool:
        """Marks a series decided or ignored, in the caller's transaction.

        Call it in the transaction that makes the jobs. Where another instance came since
        `judged` was loaded, or took another's place, nothing is marked: the series stays
        open and is judged again.

        Args:
            connection: Inside `transaction(engine)`.
            judged: As `load_series` gave it.
            state: What was decided.
            reasons: In words, for a person.

        Returns:
            False where another instance came in the meantime.
        """
        ours = _is(series, judged.series_instance_uid, judged.called_ae_title)
        # PostgreSQL: hold the row, so that a `keep` that is under way comes before or after.
        connection.execute(sa.select(series.c.state).where(ours).with_for_update())
        usable = connection.execute(
            sa.select(instances.c.sop_instance_uid, instances.c.sha256)
            .join(arrivals, arrivals.c.instance_id == instances.c.id)
            .where(
                instances.c.series_instance_uid == judged.series_instance_uid,
                arrivals.c.called_ae_title == judged.called_ae_title,
                arrivals.c.conflicts.is_(False),
            )
        )
        if {tuple(row) for row in usable} != {
            (one.sop_instance_uid, one.sha256) for one in judged.instances
        }:
            return False
        connection.execute(
            series.update().where(ours).values(state=state.value, reasons=reasons, renewable=False)
        )
        return True


def _is(table: sa.Table, series_instance_uid: str, called_ae_title: str) -> sa.ColumnElement[bool]:
    return sa.and_(
        table.c.series_instance_uid == series_instance_uid,
        table.c.called_ae_title == called_ae_title,
    )


def _same_series() -> sa.ColumnElement[bool]:
    return instances.c.series_instance_uid == series.c.series_instance_uid


def _same_arrival() -> sa.ColumnElement[bool]:
    return sa.and_(
        arrivals.c.instance_id == instances.c.id,
        arrivals.c.called_ae_title == series.c.called_ae_title,
    )
