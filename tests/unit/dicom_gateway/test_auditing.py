"""What the gateway does is in its audit trail, by study, and the patient as the settings say."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import sqlalchemy as sa
from pydicom import Dataset
from pydicom.uid import CTImageStorage

from dicom_gateway.auditing import Audit
from dicom_gateway.deliver import Entries
from dicom_gateway.jobs import JobQueue
from dicom_gateway.receiving import reports_of
from tests.support.audit_trail import messages, settings_of, what
from tests.support.dicom import PATIENT_ID, a_ct_series, an_arrival
from tests.support.gateway import Keeping, a_store
from tests.support.jobs import a_finished_job


def _kept(keeping: Keeping) -> str:
    """A series in the store; gives the association that brought it."""
    association_id = ""
    for ds in a_ct_series(frames=3):
        arrival = an_arrival(ds)
        keeping.store.keep(arrival)
        association_id = arrival.association_id
    return association_id


def test_an_association_is_one_message_for_each_study(tmp_path: Path) -> None:
    """With who sent, how many of which class, and whose they are."""
    with a_store(tmp_path) as keeping:
        audit = Audit(settings_of(tmp_path, patient="plain"), keeping.engine)
        audit.received(_kept(keeping))

    (message,) = messages(tmp_path)
    assert what(message) == ("DICOM Instances Transferred", "0")
    found = message.find(".//SOPClass")
    assert found is not None
    assert found.attrib["NumberOfInstances"] == "3"
    patients = [
        one.attrib["ParticipantObjectID"]
        for one in message.findall("ParticipantObjectIdentification")
        if one.attrib["ParticipantObjectTypeCode"] == "1"
    ]
    assert patients == [PATIENT_ID]


@pytest.mark.parametrize("patient", ["digest", "none"])
def test_a_patient_is_not_named_unless_the_site_says_so(tmp_path: Path, patient: str) -> None:
    """The default is a digest."""
    with a_store(tmp_path) as keeping:
        Audit(settings_of(tmp_path, patient=patient), keeping.engine).received(_kept(keeping))

    text = b"".join(path.read_bytes() for path in (tmp_path / "audit").iterdir())
    assert b"AuditMessage" in text
    assert PATIENT_ID.encode() not in text


def test_a_job_and_its_deliveries_are_told(tmp_path: Path) -> None:
    """Made, begun to be sent, arrived; or failed, with the code."""
    with a_store(tmp_path) as keeping:
        settings = settings_of(tmp_path)
        audit = Audit(settings, keeping.engine)
        queue = JobQueue(keeping.engine, keeping.folder)
        entries = Entries(keeping.engine, keeping.folder, settings.dicom.scu, audit.sent)
        job, _ = a_finished_job(queue, keeping.engine, keeping.folder, "pacs")
        audit.job_ended(job.job_id, None)
        delivery = entries.claim("pacs")
        assert delivery is not None
        audit.sending(delivery)
        entries.delivered(delivery, "accepted", 0.1)
        audit.job_ended(job.job_id, "missing_slices")

    assert [what(one) for one in messages(tmp_path)] == [
        ("DICOM Instances Accessed", "0"),
        ("Begin Transferring DICOM Instances", "0"),
        ("DICOM Instances Transferred", "0"),
        ("DICOM Instances Accessed", "8"),
    ]


def test_who_was_turned_away_and_who_asked_is_told(tmp_path: Path) -> None:
    """A viewer that asks frame by frame has accessed a study once."""
    with a_store(tmp_path) as keeping:
        audit = Audit(settings_of(tmp_path), keeping.engine)
        audit.started()
        audit.turned_away("STRANGER", "LUNG", "10.0.0.9", "calling AE title not recognised")
        audit.heard(None, "10.0.0.9", "GET", "/dicom-web/studies", 401)
        audit.heard("VIEWER", "10.0.0.7", "GET", "/dicom-web/studies", 200)
        for frame in range(5):
            path = f"/dicom-web/studies/1.2.3/series/4/instances/5/frames/{frame}"
            audit.heard("VIEWER", "10.0.0.7", "GET", path, 200)
        audit.heard("MONITOR", "10.0.0.8", "GET", "/health", 200)
        audit.stopped()

    assert [what(one)[0] for one in messages(tmp_path)] == [
        "Application Activity",
        "Security Alert",
        "Security Alert",
        "Query",
        "DICOM Instances Accessed",
        "Application Activity",
    ]


def test_an_access_after_one_in_vain_is_told_too(tmp_path: Path) -> None:
    """Who was given nothing, asks anew in another way, and then has the study."""
    path = "/dicom-web/studies/1.2.3"
    with a_store(tmp_path) as keeping:
        audit = Audit(settings_of(tmp_path), keeping.engine)
        for status in (406, 406, 200, 200):
            audit.heard("VIEWER", "10.0.0.7", "GET", path, status)

    assert [what(one) for one in messages(tmp_path)] == [
        ("DICOM Instances Accessed", "4"),
        ("DICOM Instances Accessed", "0"),
    ]


def test_a_stranger_cannot_fill_the_trail(tmp_path: Path) -> None:
    """The first of his attempts is told, and how many more there were."""
    engine = sa.create_engine("sqlite://")
    audit = Audit(settings_of(tmp_path), engine)
    for _ in range(100):
        audit.turned_away("STRANGER", "LUNG", "10.0.0.9", "calling AE title not recognised")
        audit.heard(None, "10.0.0.9", "GET", "/dicom-web/studies", 401)
    audit.stopped()
    engine.dispose()

    found = messages(tmp_path)
    assert [what(one)[0] for one in found] == ["Security Alert"] * 4 + ["Application Activity"]
    text = b"".join(ET.tostring(one) for one in found)
    assert text.count(b"refused 99 times more: ") == 2


def test_what_a_report_at_our_door_proves_is_told(tmp_path: Path) -> None:
    """By whichever process took it."""
    with a_store(tmp_path) as keeping:
        settings = settings_of(tmp_path)
        (place,) = settings.dicom.scu.destinations
        place = place.model_copy(update={"confirm": "storage-commitment"})
        scu = settings.dicom.scu.model_copy(update={"destinations": (place,)})
        dicom = settings.dicom.model_copy(update={"scu": scu})
        settings = settings.model_copy(update={"dicom": dicom})
        queue = JobQueue(keeping.engine, keeping.folder)
        entries = Entries(keeping.engine, keeping.folder, scu)
        _, uid = a_finished_job(queue, keeping.engine, keeping.folder, "pacs")
        delivery = entries.claim("pacs")
        assert delivery is not None
        entries.accepted(delivery, "accepted", 0.0, 0.1)
        entries.asked([delivery], 600.0, "2.25.5")
        audit = Audit(settings, keeping.engine)
        reports = reports_of(settings, keeping.engine, audit.sent)
        assert reports is not None
        report, item = Dataset(), Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CTImageStorage, uid
        report.TransactionUID, report.ReferencedSOPSequence = "2.25.5", [item]

        assert reports.take(report)

    assert [what(one) for one in messages(tmp_path)] == [("DICOM Instances Transferred", "0")]


def test_a_trail_that_is_off_writes_nothing(tmp_path: Path) -> None:
    """Not even its folder."""
    with a_store(tmp_path) as keeping:
        audit = Audit(settings_of(tmp_path, enabled=False), keeping.engine)
        audit.started()
        audit.received(_kept(keeping))

    assert not (tmp_path / "audit").exists()


def test_messages_past_the_limit_are_said_in_the_trail(tmp_path: Path) -> None:
    """What had not been shipped and had to go is counted."""
    engine = sa.create_engine("sqlite://")
    settings = settings_of(tmp_path, **{"limit-bytes": 1 << 20, "file-bytes": 1 << 18})
    audit = Audit(settings, engine)
    for _ in range(1400):
        audit.heard("VIEWER", "10.0.0.7", "GET", "/dicom-web/studies", 200)
    engine.dispose()

    told = [what(one) for one in messages(tmp_path)]
    types = [one.find("EventIdentification/EventTypeCode") for one in messages(tmp_path)]
    assert len(told) < 1400
    assert "110133" in {one.attrib["csd-code"] for one in types if one is not None}
