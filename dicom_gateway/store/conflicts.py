"""Keep, for a person: which objects were set apart, and in favour of which.

In: the index. Out: one `Conflict` for each. Nothing is changed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from dicom_gateway.database import arrivals, instances, reading


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two objects under one SOP Instance UID, at one called AE title.

    Attributes:
        set_apart: File of the one that isn't used.
        in_use: File of the one that is; None where it has gone.
        set_apart_calling_ae_title: Who sent the one that isn't used.
        same_series: False where the other lies in another series.
    """

    sop_instance_uid: str
    series_instance_uid: str
    called_ae_title: str
    set_apart: Path
    set_apart_calling_ae_title: str
    set_apart_at_s: float
    in_use: Path | None
    in_use_calling_ae_title: str
    same_series: bool


def find_conflicts(engine: sa.Engine, folder: Path) -> list[Conflict]:
    """All conflicts, the newest first.

    Raises:
        DatabaseUnavailable: the index does not answer.
    """
    apart_i, apart_a = instances.alias(), arrivals.alias()
    used = (
        sa.select(
            instances.c.sop_instance_uid,
            instances.c.series_instance_uid,
            instances.c.path,
            arrivals.c.called_ae_title,
            arrivals.c.calling_ae_title,
        )
        .join(arrivals, arrivals.c.instance_id == instances.c.id)
        .where(arrivals.c.conflicts.is_(False))
        .subquery()
    )
    query = (
        sa.select(
            apart_i.c.sop_instance_uid,
            apart_i.c.series_instance_uid,
            apart_i.c.path,
            apart_a.c.called_ae_title,
            apart_a.c.calling_ae_title,
            apart_a.c.received_at_s,
            used.c.path.label("used_path"),
            used.c.calling_ae_title.label("used_calling"),
            used.c.series_instance_uid.label("used_series"),
        )
        .join_from(apart_i, apart_a, apart_a.c.instance_id == apart_i.c.id)
        .join(
            used,
            sa.and_(
                used.c.sop_instance_uid == apart_i.c.sop_instance_uid,
                used.c.called_ae_title == apart_a.c.called_ae_title,
            ),
            isouter=True,
        )
        .where(apart_a.c.conflicts.is_(True))
        .order_by(apart_a.c.received_at_s.desc())
    )
    with reading(engine) as connection:
        return [
            Conflict(
                sop_instance_uid=row.sop_instance_uid,
                series_instance_uid=row.series_instance_uid,
                called_ae_title=row.called_ae_title,
                set_apart=folder / row.path,
                set_apart_calling_ae_title=row.calling_ae_title,
                set_apart_at_s=row.received_at_s,
                in_use=None if row.used_path is None else folder / row.used_path,
                in_use_calling_ae_title=row.used_calling or "",
                same_series=row.used_series == row.series_instance_uid,
            )
            for row in connection.execute(query)
        ]
