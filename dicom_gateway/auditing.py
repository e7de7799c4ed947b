"""What of the gateway's doings goes into the audit trail, and who took part.

In: what the rooms tell: starts, associations that ended or were refused, deliveries, jobs that
ended, queries. Out: audit messages, durable. What survives a crash is the spool.

Part of `app.py`, in a file of its own: it asks the index for what an association brought and a
job made, and no room knows of it. An audit message that can't be written is said in the log and
stops nothing: images are for a patient who waits.
"""

from __future__ import annotations

import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from dicom_gateway.config import GatewaySettings
from dicom_gateway.database import arrivals, instances, jobs, reading, results
from dicom_gateway.errors import DatabaseUnavailable
from dicom_gateway.observe.audit import (
    Event,
    EventKind,
    EventType,
    Instances,
    Outcome,
    Party,
    Scribe,
    digest_key,
)
from dicom_gateway.observe.audit_repeats import Repeats
from dicom_gateway.observe.audit_spool import AuditSpool, SpoolUnwritable
from dicom_gateway.observe.audit_syslog import AuditShipper
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.records import Delivery
from dicom_gateway.walk import has_too_many_items

_STUDY = re.compile(r"/studies/([0-9.]{1,64})(?:/|$)")
_SEARCHED = frozenset(("studies", "series", "instances"))
_ONE_ACCESS_S = 60.0


class Audit:
    """The gateway's audit trail; where `audit.enabled` is false, it hears and writes nothing.

    Args:
        settings: The whole of gateway.yaml.
        engine: From `open_database`.

    Raises:
        ConfigurationError: its folder or the collector's certificates can't be used.
    """

    def __init__(self, settings: GatewaySettings, engine: sa.Engine) -> None:
        self._audit = settings.audit
        self._folder = settings.store.folder.resolve()
        self._engine = engine
        self._ae_title = settings.dicom.scu.ae_title
        self._known = {one.name: one for one in settings.dicom.scu.destinations}
        self.shipper: AuditShipper | None = None
        """To be run in a thread, where there is a collector."""
        self._log = get_logger(room="observe")
        self._lock = threading.Lock()
        self._told: dict[tuple[str, str, str, Outcome], float] = {}
        self._repeats = Repeats()
        self._spool: AuditSpool | None = None
        if not self._audit.enabled:
            return
        folder = self._audit.folder or self._folder / "audit"
        self._spool = AuditSpool(
            folder, file_bytes=self._audit.file_bytes, limit_bytes=self._audit.limit_bytes
        )
        key = digest_key(folder) if self._audit.patient == "digest" else b""
        self._scribe = Scribe(self._audit.source_id, self._audit.patient, key)
        if self._audit.syslog is not None:
            self.shipper = AuditShipper(self._spool, self._audit.syslog)

    def started(self) -> None:
        """The gateway is open."""
        self._activity(EventType.START)

    def stopped(self) -> None:
        """The gateway ends in order."""
        self._tell_repeats(all_of_them=True)
        self._activity(EventType.STOP)

    def turned_away(
        self, calling_ae_title: str, called_ae_title: str, host_ip: str, reason: str
    ) -> None:
        """An association was refused: told at once, and what comes again as a number.

        Source: PS3.15 A.5.3.11 (Security Alert, Node Authentication).
        """
        self._tell_repeats()
        if self._repeats.is_first(host_ip, reason):
            who = (calling_ae_title, called_ae_title, host_ip)
            self._append(_refused(*who, f"association refused: {reason}"))

    def received(self, association_id: str) -> None:
        """An association, or a STOW-RS body, has ended: what it brought, by study.

        Source: PS3.15 A.5.3.7 (DICOM Instances Transferred); action C, since they are new here.
        """
        if self._spool is None:
            return
        try:
            with reading(self._engine) as connection:
                rows = connection.execute(
                    sa.select(
                        instances.c.study_instance_uid,
                        instances.c.sop_class_uid,
                        arrivals.c.calling_ae_title,
                        arrivals.c.called_ae_title,
                        sa.func.count().label("count"),
                        sa.func.min(instances.c.path).label("path"),
                    )
                    .join(instances, instances.c.id == arrivals.c.instance_id)
                    .where(arrivals.c.association_id == association_id)
                    .group_by(
                        instances.c.study_instance_uid,
                        instances.c.sop_class_uid,
                        arrivals.c.calling_ae_title,
                        arrivals.c.called_ae_title,
                    )
                ).all()
        except DatabaseUnavailable as error:
            self._log.error("audit_message_lost", reason=str(error))
            return
        studies: dict[str, list[sa.Row[Any]]] = defaultdict(list)
        for row in rows:
            studies[row.study_instance_uid].append(row)
        for uid, some in studies.items():
            classes = {row.sop_class_uid: int(row._mapping["count"]) for row in some}
            self._write(
                Event(
                    EventKind.INSTANCES_TRANSFERRED,
                    "C",
                    parties=[
                        Party(some[0].calling_ae_title, "source", is_requestor=True),
                        Party(some[0].called_ae_title, "destination"),
                    ],
                    studies=[Instances(uid, classes)],
                    patient_ids=self._patients([self._folder / some[0].path]),
                )
            )

    def sending(self, delivery: Delivery) -> None:
        """An object goes out for the first time.

        Source: PS3.15 A.5.3.3 (Begin Transferring DICOM Instances).
        """
        if self._spool is not None and delivery.attempts == 1:
            self._write(self._transfer(EventKind.BEGIN_TRANSFERRING, "E", delivery))

    def sent(self, delivery: Delivery, failure: str | None) -> None:
        """A delivery has ended; `failure` is the code of what ended it in vain."""
        if self._spool is None:
            return
        outcome = Outcome.SUCCESS if failure is None else Outcome.SERIOUS_FAILURE
        self._write(
            self._transfer(EventKind.INSTANCES_TRANSFERRED, "R", delivery, outcome, failure or "")
        )

    def job_ended(self, job_id: str, failure: str | None) -> None:
        """A job has made its results, or failed.

        Source: PS3.15 A.5.3.6 (DICOM Instances Accessed); action C for what it made.
        """
        if self._spool is None:
            return
        try:
            with reading(self._engine) as connection:
                job = connection.execute(
                    sa.select(jobs.c.study_instance_uid, jobs.c.pipeline).where(
                        jobs.c.job_id == job_id
                    )
                ).first()
                made = connection.execute(
                    sa.select(results.c.sop_class_uid, results.c.path).where(
                        results.c.job_id == job_id
                    )
                ).all()
        except DatabaseUnavailable as error:
            self._log.error("audit_message_lost", reason=str(error))
            return
        if job is None:
            return
        classes: dict[str, int] = defaultdict(int)
        for row in made:
            classes[row.sop_class_uid] += 1
        self._write(
            Event(
                EventKind.INSTANCES_ACCESSED,
                "C",
                Outcome.SUCCESS if failure is None else Outcome.SERIOUS_FAILURE,
                parties=[
                    Party(
                        self._ae_title,
                        "application",
                        is_requestor=True,
                        alternative_id=f"{job.pipeline} job {job_id}",
                    )
                ],
                studies=[Instances(job.study_instance_uid, dict(classes))],
                patient_ids=self._patients([self._folder / row.path for row in made[:1]]),
                note=failure or "",
            )
        )

    def going(
        self, study_instance_uid: str, sop_classes: Mapping[str, int], file: Path
    ) -> Callable[[bool], None]:
        """Instances are about to leave the store: what this gives is called once they have left.

        Source: PS3.15 A.5.3.8 (DICOM Study Deleted), where nothing of the study is left, and
        otherwise A.5.3.6 (DICOM Instances Accessed).
        """
        # Of a file that is still there.
        patient_ids = self._patients([file]) if self._spool is not None else []

        def gone(is_whole_study: bool) -> None:
            kind = EventKind.STUDY_DELETED if is_whole_study else EventKind.INSTANCES_ACCESSED
            who = [Party(self._ae_title, "application", is_requestor=True)]
            what = [Instances(study_instance_uid, dict(sop_classes))]
            self._write(Event(kind, "D", parties=who, studies=what, patient_ids=patient_ids))

        return gone

    def heard(
        self, calling_ae_title: str | None, host_ip: str, method: str, path: str, status: int
    ) -> None:
        """Somebody asked over HTTP. What was searched for isn't said: it names patients.

        Source: PS3.15 A.5.3.10 (Query), A.5.3.6 (DICOM Instances Accessed).
        """
        if calling_ae_title is None:
            self.turned_away("unknown", "DICOMweb", host_ip, "no known token or certificate")
            return
        if self._spool is None or method != "GET" or "/dicom-web" not in path:
            return
        outcome = Outcome.SUCCESS if status < 400 else Outcome.MINOR_FAILURE
        who = [
            Party(calling_ae_title, "source", is_requestor=True, address=host_ip),
            Party(self._ae_title, "destination"),
        ]
        if path.rstrip("/").rpartition("/")[2] in _SEARCHED:
            self._write(Event(EventKind.QUERY, "E", outcome, parties=who, query="QIDO-RS"))
            return
        study = _STUDY.search(path)
        if study is None or not self._is_news((calling_ae_title, host_ip, study[1], outcome)):
            return
        self._write(
            Event(
                EventKind.INSTANCES_ACCESSED,
                "R",
                outcome,
                parties=who,
                studies=[Instances(study[1])],
                patient_ids=self._patients(self._one_file(study[1])),
            )
        )

    def _is_news(self, what: tuple[str, str, str, Outcome]) -> bool:
        """A viewer asks for a study frame by frame: that is one access in a minute.

        One that succeeds after one that didn't is another one.
        """
        with self._lock:
            now = time.monotonic()
            self._told = {one: at for one, at in self._told.items() if now - at < _ONE_ACCESS_S}
            if what in self._told:
                return False
            self._told[what] = now
            return True

    def _one_file(self, study_instance_uid: str) -> list[Path]:
        try:
            with reading(self._engine) as connection:
                path = connection.execute(
                    sa.select(instances.c.path)
                    .where(instances.c.study_instance_uid == study_instance_uid)
                    .limit(1)
                ).scalar()
        except DatabaseUnavailable:
            return []
        return [] if path is None else [self._folder / path]

    def _activity(self, what: EventType) -> None:
        self._write(
            Event(
                EventKind.APPLICATION_ACTIVITY,
                "E",
                type=what,
                parties=[Party(self._ae_title, "application", alternative_id="tritome gateway")],
            )
        )

    def _transfer(
        self,
        kind: EventKind,
        action: str,
        delivery: Delivery,
        outcome: Outcome = Outcome.SUCCESS,
        note: str = "",
    ) -> Event:
        to = self._known.get(delivery.destination)
        user, address = delivery.destination, ""
        if to is not None and to.dicomweb is None:
            user, address = to.dimse.ae_title, to.dimse.host_ip
        elif to is not None and to.dicomweb is not None:
            user = to.dicomweb.url
        study, patient = _whose(delivery.result.path)
        return Event(
            kind,
            "E" if action == "E" else "R",
            outcome,
            parties=[
                Party(self._ae_title, "source", is_requestor=True),
                Party(user, "destination", address=address),
            ],
            studies=[Instances(study, {delivery.result.sop_class_uid: 1})] if study else (),
            patient_ids=[patient] if patient else (),
            note=note,
        )

    def _patients(self, files: Sequence[Path]) -> list[str]:
        if self._audit.patient == "none":
            return []
        return [patient for _, patient in map(_whose, files) if patient]

    def _tell_repeats(self, *, all_of_them: bool = False) -> None:
        for one in self._repeats.over(all_of_them=all_of_them):
            whence = "" if one.address else ", from several addresses"
            note = f"association refused {one.times} times more{whence}: {one.reason}"
            self._append(_refused("unknown", self._ae_title, one.address, note))

    def _write(self, event: Event) -> None:
        self._tell_repeats()
        self._append(event)

    def _append(self, event: Event) -> None:
        if self._spool is None:
            return
        try:
            lost = self._spool.append(self._scribe.message(event))
            if lost:
                self._log.error("audit_messages_lost", count=lost, reason="audit.limit-bytes")
                told = Event(
                    EventKind.SECURITY_ALERT,
                    "E",
                    Outcome.SERIOUS_FAILURE,
                    EventType.RECORDING_STOPPED,
                    parties=[Party(self._ae_title, "application")],
                    note=f"{lost} messages went unshipped: the spool has reached its limit",
                )
                self._spool.append(self._scribe.message(told))
        except SpoolUnwritable as error:
            self._log.error("audit_message_lost", reason=str(error))
        if self.shipper is not None:
            self.shipper.notify()


def _refused(calling_ae_title: str, called_ae_title: str, host_ip: str, note: str) -> Event:
    return Event(
        EventKind.SECURITY_ALERT,
        "E",
        Outcome.MINOR_FAILURE,
        EventType.NODE_AUTHENTICATION,
        parties=[
            Party(called_ae_title, "destination"),
            Party(calling_ae_title, "source", is_requestor=True, address=host_ip),
        ],
        note=note,
    )


def _whose(path: Path) -> tuple[str, str]:
    """Study Instance UID and Patient ID of a DICOM file; empty where it can't be read."""
    try:
        if has_too_many_items(path):
            return "", ""
        read = dcmread(
            path, stop_before_pixels=True, specific_tags=["StudyInstanceUID", "PatientID"]
        )
        return str(read.get("StudyInstanceUID", "") or ""), str(read.get("PatientID", "") or "")
    except (OSError, InvalidDicomError, ValueError, AttributeError):
        return "", ""
