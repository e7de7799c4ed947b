"""Keep, after a disaster: which series need not be computed again?

In: an index that was just made again, and the result files that it doesn't know. Out: series
marked decided, and a line in the story of those that have results and are judged again all the
same. Survives a crash: one transaction.

A result says which source instances it was made from, and its file when. It doesn't say which
called AE title it was made for. So a result is taken for the one AE title to which all that it
lists of a series had come by then; where there are several such, it is taken for none. A series
is decided where everything that is in use of it is in results that are so taken for its AE
title.

This errs on one side. To compute a series again costs time, and its results reach the PACS
twice; a series that wrongly counted as decided would never be computed, although it was
acknowledged. So these are judged again too: a series of which instances were left out of the
results (a scout among slices, the second role of a pair, key images only), and one that came to
several AE titles before its results were made.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import pydicom
import sqlalchemy as sa

from dicom_gateway.database import arrivals, instances, reading, results, series, transaction
from dicom_gateway.records import Ruling, SeriesState
from dicom_gateway.store.docket import Docket
from dicom_gateway.store.examine import RESULTS

_REBUILT = "the index was made again from the files"
_HAS_RESULTS = (
    f"{_REBUILT}; results that lie in the store were made from all of this series, and whether "
    "they were delivered isn't known any more"
)
_WHICH_TITLE = (
    f"{_REBUILT}; results of this series lie in the store, but it came to several AE titles "
    "before they were made, and which one they were made for isn't known any more; so it is "
    "judged again, and what it has already may be made and sent once more"
)
CLOCKS_S = 1.0
"""A file's time may lag behind the clock that arrivals are noted by."""


@dataclass(frozen=True, slots=True)
class _Made:
    """A result without a row.

    Attributes:
        made_at_s: Seconds since the epoch; of its file.
        listed: SOP Instance UIDs that it refers to.
    """

    made_at_s: float
    listed: frozenset[str]


def decide_what_was_computed(
    engine: sa.Engine, folder: Path, before: Collection[tuple[str, str]]
) -> int:
    """Marks series decided that are new in the index and of which all is in results.

    Args:
        engine: From `open_database`.
        folder: The store's.
        before: Series Instance UID and called AE title of the series that the index knew
            already; they are left as they are.

    Returns:
        How many were marked.

    Raises:
        DatabaseUnavailable: the index does not answer.
    """
    with reading(engine) as connection:
        known = set(connection.execute(sa.select(results.c.path)).scalars())
    made = [
        _read(path)
        for path in sorted((folder / RESULTS).glob("*.dcm"))
        if path.relative_to(folder).as_posix() not in known
    ]
    of_series: dict[str, list[_Made]] = {}
    with reading(engine) as connection:
        for one in made:
            for uid in _series_of(connection, one.listed):
                of_series.setdefault(uid, []).append(one)
    decided = 0
    with transaction(engine) as connection:
        for uid, some in of_series.items():
            came = _came(connection, uid)
            computed, unclear = _computed(came, some)
            for title in _open_titles(connection, uid):
                if (uid, title) in before or title not in came:
                    continue
                missing = set(came[title]) - computed.get(title, set())
                if missing:
                    reasons = _WHICH_TITLE if title in unclear else _left_out(len(missing))
                    Docket.note(connection, uid, title, Ruling.WAITS, reasons)
                else:
                    _mark(connection, uid, title)
                    decided += 1
    return decided


def _computed(
    came: Mapping[str, Mapping[str, float]], made: Collection[_Made]
) -> tuple[dict[str, set[str]], set[str]]:
    """What was computed for each called AE title, and the titles for which it isn't clear.

    Args:
        came: Called AE title -> SOP Instance UID -> when what is in use came there.
        made: Results that list any of it.
    """
    ours = {uid for times in came.values() for uid in times}
    computed: dict[str, set[str]] = {}
    unclear: set[str] = set()
    for one in made:
        listed = one.listed & ours
        by_s = one.made_at_s + CLOCKS_S
        titles = [
            title
            for title, times in came.items()
            if all(uid in times and times[uid] <= by_s for uid in listed)
        ]
        if len(titles) == 1:
            computed.setdefault(titles[0], set()).update(listed)
        else:
            unclear.update(titles)
    return computed, unclear


def _left_out(count: int) -> str:
    return (
        f"{_REBUILT}; results of this series lie in the store, but {count} of its instances are "
        "in none that was made after they came; so it is judged again, and what it has already "
        "may be made and sent once more"
    )


def _mark(connection: sa.Connection, uid: str, title: str) -> None:
    connection.execute(
        series.update()
        .where(series.c.series_instance_uid == uid, series.c.called_ae_title == title)
        .values(state=SeriesState.DECIDED.value, reasons=_HAS_RESULTS)
    )


def _open_titles(connection: sa.Connection, uid: str) -> list[str]:
    return list(
        connection.execute(
            sa.select(series.c.called_ae_title)
            .where(
                series.c.series_instance_uid == uid,
                series.c.state == SeriesState.RECEIVING.value,
            )
            .order_by(series.c.called_ae_title)
        ).scalars()
    )


def _came(connection: sa.Connection, uid: str) -> dict[str, dict[str, float]]:
    """Called AE title -> SOP Instance UID -> when what is in use of the series came there."""
    found: dict[str, dict[str, float]] = {}
    for title, sop_instance_uid, at_s in connection.execute(
        sa.select(
            arrivals.c.called_ae_title, instances.c.sop_instance_uid, arrivals.c.received_at_s
        )
        .join(instances, instances.c.id == arrivals.c.instance_id)
        .where(instances.c.series_instance_uid == uid, arrivals.c.conflicts.is_(False))
    ):
        found.setdefault(title, {})[sop_instance_uid] = at_s
    return found


def _series_of(connection: sa.Connection, sop_instance_uids: Collection[str]) -> set[str]:
    found: set[str] = set()
    wanted = sorted(sop_instance_uids)
    for first in range(0, len(wanted), 500):  # a statement has a limited number of parameters
        found.update(
            connection.execute(
                sa.select(instances.c.series_instance_uid)
                .where(instances.c.sop_instance_uid.in_(wanted[first : first + 500]))
                .distinct()
            ).scalars()
        )
    return found


def _read(result: Path) -> _Made:
    """What a result says; nothing where it can't be read."""
    try:
        made_at_s = result.stat().st_mtime
        ds = pydicom.dcmread(result, stop_before_pixels=True)
        listed = frozenset(
            str(element.value)
            for element in ds.iterall()
            if element.keyword == "ReferencedSOPInstanceUID"
        )
    except (pydicom.errors.InvalidDicomError, OSError, ValueError, AttributeError, KeyError):
        return _Made(0.0, frozenset())
    return _Made(made_at_s, listed)
