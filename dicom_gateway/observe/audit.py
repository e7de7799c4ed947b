"""Audit messages as PS3.15 A.5 wants them: who did what to whose objects, and how it ended.

In: what happened, as plain values. Out: one XML document a message, on one line. Nothing is
kept here: `audit_spool` does that.

The patient: A.5 makes Patient ID the object of most messages, so that a privacy officer can ask
who has seen whose images. This spool is the one place outside the store where a patient may be
named, and how is a setting: by a keyed digest (the same patient is the same digest, nobody can
go back without the key), as it is, or not at all. Names and birth dates never stand in it.

Source: PS3.15 A.5.1 (schema), A.5.3 (messages), PS3.16 CID 400 to 405.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, IntEnum
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree as ET

from dicom_gateway.errors import ConfigurationError


class EventKind(Enum):
    """The messages that we send: code value and meaning (PS3.16 CID 400)."""

    APPLICATION_ACTIVITY = ("110100", "Application Activity")
    BEGIN_TRANSFERRING = ("110102", "Begin Transferring DICOM Instances")
    INSTANCES_ACCESSED = ("110103", "DICOM Instances Accessed")
    INSTANCES_TRANSFERRED = ("110104", "DICOM Instances Transferred")
    STUDY_DELETED = ("110105", "DICOM Study Deleted")
    QUERY = ("110112", "Query")
    SECURITY_ALERT = ("110113", "Security Alert")


class EventType(Enum):
    """What kind of activity or alert (PS3.16 CID 401 and 403)."""

    START = ("110120", "Application Start")
    STOP = ("110121", "Application Stop")
    NODE_AUTHENTICATION = ("110126", "Node Authentication")
    RECORDING_STOPPED = ("110133", "Audit Recording Stopped")


class Outcome(IntEnum):
    """EventOutcomeIndicator (PS3.15 A.5.2)."""

    SUCCESS = 0
    MINOR_FAILURE = 4
    SERIOUS_FAILURE = 8
    MAJOR_FAILURE = 12


Role = Literal["source", "destination", "application", "none"]
_ROLES = {
    "source": ("110153", "Source Role ID"),
    "destination": ("110152", "Destination Role ID"),
    "application": ("110150", "Application"),
}
Action = Literal["C", "R", "U", "D", "E"]
"""Create, read, update, delete, execute."""


@dataclass(frozen=True, slots=True)
class Party:
    """An ActiveParticipant: a machine that took part.

    Attributes:
        user_id: AE title, or the title of a web caller.
        is_requestor: Whether it began.
        address: IP address or host, where known.
    """

    user_id: str
    role: Role = "none"
    is_requestor: bool = False
    address: str = ""
    alternative_id: str = ""


@dataclass(frozen=True, slots=True)
class Instances:
    """What of a study it was about: SOP class UID -> how many instances."""

    study_instance_uid: str
    sop_classes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    Attributes:
        patient_ids: Of those whose objects it was about; written as the settings say.
        note: EventOutcomeDescription, or what an alert is about. Nothing of a patient.
        query: The class or service that was asked, of a query.
    """

    kind: EventKind
    action: Action
    outcome: Outcome = Outcome.SUCCESS
    type: EventType | None = None
    parties: Sequence[Party] = ()
    studies: Sequence[Instances] = ()
    patient_ids: Collection[str] = ()
    note: str = ""
    query: str = ""


class Scribe:
    """Writes events as messages.

    Args:
        source_id: Who we are in the trail.
        patient: How a patient is named.
        key: Of the digest.
    """

    def __init__(
        self, source_id: str, patient: Literal["digest", "plain", "none"], key: bytes
    ) -> None:
        self._source_id = source_id
        self._patient = patient
        self._key = key

    def message(self, event: Event, at: datetime | None = None) -> bytes:
        """The XML of one message, without a line break.

        Source: PS3.15 A.5.1 (the order of elements and attributes).
        """
        root = ET.Element("AuditMessage")
        what = ET.SubElement(
            root,
            "EventIdentification",
            EventActionCode=event.action,
            EventDateTime=(at or datetime.now(UTC)).isoformat(timespec="milliseconds"),
            EventOutcomeIndicator=str(int(event.outcome)),
        )
        _coded(what, "EventID", *event.kind.value)
        if event.type is not None:
            _coded(what, "EventTypeCode", *event.type.value)
        if event.note:
            ET.SubElement(what, "EventOutcomeDescription").text = _plain(event.note)
        for party in event.parties:
            _party(root, party)
        source = ET.SubElement(
            root, "AuditSourceIdentification", AuditSourceID=_plain(self._source_id)
        )
        # PS3.15 A.5.2.3: 4 is an application server process.
        ET.SubElement(source, "AuditSourceTypeCode", {"csd-code": "4"})
        for study in event.studies:
            _study(root, study)
        if event.query:
            _object(root, event.query, "3", "110181", "SOP Class UID")
        for patient_id in sorted(set(event.patient_ids)):
            named = self._named(patient_id)
            if named:
                _patient(root, named)
        if event.kind is EventKind.SECURITY_ALERT:
            alerted = _object(root, self._source_id, "13", "110182", "Node ID")
            ET.SubElement(
                alerted, "ParticipantObjectDetail", type="Alert Description", value=_b64(event.note)
            )
        whole: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
        return whole.replace(b"\n", b" ")

    def _named(self, patient_id: str) -> str:
        if self._patient == "none" or not patient_id:
            return ""
        if self._patient == "plain":
            return _plain(patient_id)
        return hmac.new(self._key, patient_id.encode(), hashlib.sha256).hexdigest()


def digest_key(folder: Path) -> bytes:
    """The key of the digests; made at the first start, readable by the gateway only.

    Raises:
        ConfigurationError: it can't be read or written.
    """
    path = folder / "patient-digest.key"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            key = path.read_bytes()
            if len(key) >= 32:
                return key
            msg = f"{path} is no key of ours; move it away, then start again"
            raise ConfigurationError(msg) from None
        key = secrets.token_bytes(32)
        with os.fdopen(made, "wb") as file:
            file.write(key)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        msg = f"the audit trail can't be kept in {folder} ({error.strerror})"
        raise ConfigurationError(msg) from error
    return key


def _party(root: ET.Element, party: Party) -> None:
    attributes = {"UserID": _plain(party.user_id) or "unknown"}
    if party.alternative_id:
        attributes["AlternativeUserID"] = _plain(party.alternative_id)
    attributes["UserIsRequestor"] = "true" if party.is_requestor else "false"
    if party.address:
        attributes["NetworkAccessPointID"] = _plain(party.address)
        # 1 is a name, 2 an IP address.
        is_number = party.address.replace(".", "").replace(":", "").isalnum() and (
            ":" in party.address or party.address.replace(".", "").isdigit()
        )
        attributes["NetworkAccessPointTypeCode"] = "2" if is_number else "1"
    made = ET.SubElement(root, "ActiveParticipant", attributes)
    if party.role != "none":
        _coded(made, "RoleIDCode", *_ROLES[party.role])


def _object(
    root: ET.Element, identifier: str, role: str, id_code: str, id_meaning: str
) -> ET.Element:
    """A system object (type code 2)."""
    made = ET.SubElement(
        root,
        "ParticipantObjectIdentification",
        ParticipantObjectID=_plain(identifier),
        ParticipantObjectTypeCode="2",
        ParticipantObjectTypeCodeRole=role,
    )
    _coded(made, "ParticipantObjectIDTypeCode", id_code, id_meaning)
    ET.SubElement(made, "ParticipantObjectName")
    return made


def _study(root: ET.Element, study: Instances) -> None:
    made = _object(root, study.study_instance_uid, "3", "110180", "Study Instance UID")
    if study.sop_classes:
        described = ET.SubElement(made, "ParticipantObjectDescription")
        for uid, count in sorted(study.sop_classes.items()):
            ET.SubElement(described, "SOPClass", UID=uid, NumberOfInstances=str(count))


def _patient(root: ET.Element, named: str) -> None:
    made = ET.SubElement(
        root,
        "ParticipantObjectIdentification",
        ParticipantObjectID=named,
        ParticipantObjectTypeCode="1",  # person
        ParticipantObjectTypeCodeRole="1",  # patient
    )
    # RFC 3881 5.5: 2 is a patient number.
    _coded(made, "ParticipantObjectIDTypeCode", "2", "Patient Number", "RFC-3881")
    ET.SubElement(made, "ParticipantObjectName")


def _coded(parent: ET.Element, tag: str, code: str, meaning: str, system: str = "DCM") -> None:
    ET.SubElement(
        parent, tag, {"csd-code": code, "codeSystemName": system, "originalText": meaning}
    )


def _plain(text: str) -> str:
    """Without characters that XML 1.0 can't hold."""
    return "".join(one for one in text if one >= " " and one not in "\ufffe\uffff").strip()


def _b64(text: str) -> str:
    import base64  # noqa: PLC0415 - only here

    return base64.b64encode(text.encode()).decode("ascii")
