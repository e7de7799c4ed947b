"""DICOMweb, the catalogue: what headers of kept files say, in a table that can be asked.

In: rows of `instances` and `results`, and their files. Out: rows of `catalogue`. Survives a
crash: all of it; and what is missing is read again from the files, so that nobody who keeps
an object has to wait for it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from sqlalchemy.exc import IntegrityError

from dicom_gateway.database import catalogue, instances, jobs, reading, results, transaction
from dicom_gateway.errors import CatalogueBehind, DatabaseUnavailable
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.web.dicomweb.attributes import CATALOGUED, LAST_CATALOGUED
from dicom_gateway.web.dicomweb.headers import UNREADABLE, HeaderUnreadable, read_elements
from dicom_gateway.web.dicomweb.json_model import as_json

_BATCH = 200
_EVERY_S = 2.0
_ALL_AGAIN_S = 300.0
PATIENCE_S = 5.0
"""So long a question waits for headers that are still to be read: those of the newest objects are
there at once; of a store that has never been asked, they may take an hour."""
_OVERLAP = 1000
"""Ids are given before they are committed: one may appear below those seen already."""
_TEXT_LIMIT = 256


@dataclass(frozen=True, slots=True)
class _Missing:
    instance_id: int | None
    result_uid: str | None
    path: Path
    uids: dict[str, str]


class Catalogue:
    """Keeps the table up to date; `run` returns when `stop` was called.

    Args:
        engine: From `open_database`.
        folder: The store's folder.
    """

    def __init__(self, engine: sa.Engine, folder: Path) -> None:
        self.engine = engine
        self.folder = folder.resolve()
        self._lock = threading.Lock()
        self._mark = 0
        self._marked_at_s = -_ALL_AGAIN_S
        self._stopping = threading.Event()
        self._log = get_logger(room="web")

    def run(self) -> None:
        """Reads new headers now and then, so that a question seldom waits for them."""
        while not self._stopping.wait(_EVERY_S):
            try:
                self.refresh()
            except DatabaseUnavailable as error:
                self._log.warning("index_away", reason=str(error))

    def stop(self) -> None:
        """Asks `run` to end."""
        self._stopping.set()

    def refresh(self, patience_s: float = math.inf) -> int:
        """Reads the headers of whatever has come until now; gives how many.

        Args:
            patience_s: How long that may take.

        Raises:
            CatalogueBehind: it takes longer.
            DatabaseUnavailable: the index does not answer.
        """
        count = 0
        until_s = time.monotonic() + patience_s
        with self._alone(patience_s):
            if time.monotonic() - self._marked_at_s > _ALL_AGAIN_S:
                self._mark, self._marked_at_s = 0, time.monotonic()
            while not self._stopping.is_set():
                missing, newest = self._missing()
                if missing:
                    self._write([_row(one) for one in missing])
                count += len(missing)
                # What has come meanwhile is for the next question: one that wanted that too
                # would wait for as long as a modality sends.
                if newest is not None:
                    self._mark = max(0, newest - _OVERLAP)
                    break
                if time.monotonic() > until_s:
                    raise _behind()
        return count

    @contextmanager
    def _alone(self, patience_s: float) -> Iterator[None]:
        if not self._lock.acquire(timeout=min(patience_s, threading.TIMEOUT_MAX)):
            raise _behind()
        try:
            yield
        finally:
            self._lock.release()

    def _missing(self) -> tuple[list[_Missing], int | None]:
        """Some of what isn't there yet; the newest instance's id where that is all of it."""
        with reading(self.engine) as connection:
            newest = connection.execute(sa.select(sa.func.max(instances.c.id))).scalar() or 0
            kept = connection.execute(
                sa.select(instances)
                .outerjoin(catalogue, catalogue.c.instance_id == instances.c.id)
                .where(catalogue.c.id.is_(None), instances.c.id > self._mark)
                .order_by(instances.c.id)
                .limit(_BATCH)
            ).all()
            made = connection.execute(
                sa.select(results, jobs.c.study_instance_uid)
                .join(jobs, jobs.c.job_id == results.c.job_id)
                .outerjoin(catalogue, catalogue.c.result_uid == results.c.sop_instance_uid)
                .where(catalogue.c.id.is_(None))
                .limit(_BATCH)
            ).all()
        missing = [
            _Missing(
                row.id,
                None,
                self.folder / row.path,
                {
                    "sop_class_uid": row.sop_class_uid,
                    "sop_instance_uid": row.sop_instance_uid,
                    "series_instance_uid": row.series_instance_uid,
                    "study_instance_uid": row.study_instance_uid,
                    "modality": row.modality,
                },
            )
            for row in kept
        ] + [
            _Missing(
                None,
                row.sop_instance_uid,
                self.folder / row.path,
                {
                    "sop_class_uid": row.sop_class_uid,
                    "sop_instance_uid": row.sop_instance_uid,
                    "study_instance_uid": row.study_instance_uid,
                },
            )
            for row in made
        ]
        return missing, newest if max(len(kept), len(made)) < _BATCH else None

    def _write(self, rows: list[dict[str, Any]]) -> None:
        try:
            with transaction(self.engine) as connection:
                connection.execute(catalogue.insert(), rows)
        except IntegrityError:
            # Another process wrote one of them, or an instance has just been deleted.
            for row in rows:
                with suppress(IntegrityError), transaction(self.engine) as connection:
                    connection.execute(catalogue.insert().values(**row))


def _behind() -> CatalogueBehind:
    return CatalogueBehind("the headers of what is kept here are still being read; ask again later")


def _row(one: _Missing) -> dict[str, Any]:
    try:
        ds = read_elements(one.path, CATALOGUED, LAST_CATALOGUED)
    except (HeaderUnreadable, OSError):
        ds = Dataset()  # kept all the same, so it can be found by its UIDs
    attributes = as_json(ds, CATALOGUED)
    uids = {
        "modality": _text(ds, "Modality")[:16],
        "series_instance_uid": _text(ds, "SeriesInstanceUID")[:64],
        **one.uids,
    }
    for tag, vr, name in (
        ("00080016", "UI", "sop_class_uid"),
        ("00080018", "UI", "sop_instance_uid"),
        ("0020000D", "UI", "study_instance_uid"),
        ("0020000E", "UI", "series_instance_uid"),
        ("00080060", "CS", "modality"),
    ):
        attributes[tag] = {"vr": vr, "Value": [uids[name]]} if uids[name] else {"vr": vr}
    return {
        "instance_id": one.instance_id,
        "result_uid": one.result_uid,
        **uids,
        "patient_name": _text(ds, "PatientName").casefold(),
        "patient_id": _text(ds, "PatientID"),
        "patient_birth_date": _text(ds, "PatientBirthDate"),
        "referring_physician_name": _text(ds, "ReferringPhysicianName").casefold(),
        "accession_number": _text(ds, "AccessionNumber"),
        "study_id": _text(ds, "StudyID"),
        "study_date": _text(ds, "StudyDate"),
        "study_time": _text(ds, "StudyTime"),
        "study_description": _text(ds, "StudyDescription"),
        "series_description": _text(ds, "SeriesDescription"),
        "series_number": _number(ds, "SeriesNumber"),
        "instance_number": _number(ds, "InstanceNumber"),
        "attributes": attributes,
    }


def _text(ds: Dataset, keyword: str) -> str:
    try:
        value = ds.get(keyword)
        # A backslash in a description makes several values of it (PS3.5 6.4).
        values = value if isinstance(value, MultiValue) else [] if value is None else [value]
        text = "\\".join(map(str, values)).strip().rstrip("\0")
    except UNREADABLE:
        return ""
    # PostgreSQL stores no NUL, and an attribute that long is none.
    return text.replace("\0", "")[:_TEXT_LIMIT]


def _number(ds: Dataset, keyword: str) -> int | None:
    try:
        number = int(str(ds.get(keyword)))
    except UNREADABLE:
        return None
    return number if abs(number) < 1 << 62 else None
