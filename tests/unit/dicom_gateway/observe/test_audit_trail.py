"""Audit messages: as the standard wants them, kept, bounded, and shipped however long it takes."""

from __future__ import annotations

import base64
import errno
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from dicom_gateway.config_delivery import SyslogSettings
from dicom_gateway.errors import ConfigurationError
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
from dicom_gateway.observe.audit_spool import AuditSpool, Mark
from dicom_gateway.observe.audit_syslog import AuditShipper
from tests.support.certificates import Authority, Credentials, an_authority
from tests.support.patience import until
from tests.support.processes import free_port
from tests.support.syslog_collector import Collector, a_collector

SCANNER = Party("CT_1", "source", is_requestor=True, address="10.0.0.5")
GATEWAY = Party("TRITOME", "destination")
EVENTS = [
    Event(EventKind.APPLICATION_ACTIVITY, "E", type=EventType.START, parties=[GATEWAY]),
    Event(
        EventKind.INSTANCES_TRANSFERRED,
        "C",
        parties=[SCANNER, GATEWAY],
        studies=[Instances("1.2.3", {"1.2.840.10008.5.1.4.1.1.2": 40})],
        patient_ids=["4711"],
    ),
    Event(
        EventKind.SECURITY_ALERT,
        "E",
        Outcome.MINOR_FAILURE,
        EventType.NODE_AUTHENTICATION,
        parties=[SCANNER, GATEWAY],
        note="association refused: calling AE title not recognised",
    ),
    Event(EventKind.QUERY, "E", parties=[SCANNER, GATEWAY], query="QIDO-RS"),
    Event(
        EventKind.INSTANCES_ACCESSED,
        "C",
        Outcome.SERIOUS_FAILURE,
        parties=[Party("TRI<&\x01TOME", "application", address="gateway.example")],
        studies=[Instances("1.2.3")],
        note='reason "quoted"\nand broken',
    ),
]


def test_every_message_has_the_structure_of_the_standard():
    """Elements in the order of the schema of PS3.15 A.5.1, with the attributes it asks for."""
    scribe = Scribe("tritome", "plain", b"")
    for event in EVENTS:
        message = scribe.message(event)
        assert b"\n" not in message
        root = ET.fromstring(message)
        assert root.tag == "AuditMessage"
        tags = [child.tag for child in root]
        objects = tags.count("ParticipantObjectIdentification")
        assert tags == [
            "EventIdentification",
            *["ActiveParticipant"] * len(event.parties),
            "AuditSourceIdentification",
            *["ParticipantObjectIdentification"] * objects,
        ]
        what = root[0]
        assert what.attrib["EventActionCode"] in set("CRUDE")
        assert what.attrib["EventOutcomeIndicator"] in {"0", "4", "8", "12"}
        assert what.attrib["EventDateTime"].endswith("+00:00")
        assert [one.tag for one in what] == [
            "EventID",
            *["EventTypeCode"] * (event.type is not None),
            *["EventOutcomeDescription"] * bool(event.note),
        ]
        for party in root.findall("ActiveParticipant"):
            assert party.attrib["UserID"]
            assert party.attrib["UserIsRequestor"] in {"true", "false"}
            if "NetworkAccessPointID" in party.attrib:
                assert party.attrib["NetworkAccessPointTypeCode"] in {"1", "2"}
        for one in root.findall("ParticipantObjectIdentification"):
            assert one.attrib["ParticipantObjectTypeCode"] in {"1", "2"}
            assert [child.tag for child in one][:2] == [
                "ParticipantObjectIDTypeCode",
                "ParticipantObjectName",
            ]
        for coded in root.iter():
            if coded.tag in {"EventID", "EventTypeCode", "RoleIDCode"}:
                assert set(coded.attrib) == {"csd-code", "codeSystemName", "originalText"}


def test_a_study_is_named_with_its_classes_and_counts():
    """What a privacy officer asks for."""
    root = ET.fromstring(Scribe("tritome", "none", b"").message(EVENTS[1]))
    (study,) = root.findall("ParticipantObjectIdentification")
    sop_class = study.find("ParticipantObjectDescription/SOPClass")

    assert study.attrib["ParticipantObjectID"] == "1.2.3"
    assert sop_class is not None
    assert sop_class.attrib == {"UID": "1.2.840.10008.5.1.4.1.1.2", "NumberOfInstances": "40"}


def test_an_alert_says_what_it_is_about():
    """As the detail of a node, in base64 as the schema wants it."""
    root = ET.fromstring(Scribe("tritome", "none", b"").message(EVENTS[2]))
    detail = root.find("ParticipantObjectIdentification/ParticipantObjectDetail")

    assert detail is not None
    assert detail.attrib["type"] == "Alert Description"
    assert base64.b64decode(detail.attrib["value"]).decode() == EVENTS[2].note


def test_a_patient_is_named_as_the_settings_say(tmp_path: Path):
    """A digest is the same for the same patient, over a restart too, and can't be guessed."""
    key = digest_key(tmp_path)
    assert digest_key(tmp_path) == key
    assert stat.S_IMODE((tmp_path / "patient-digest.key").stat().st_mode) == 0o600

    assert _patient(Scribe("t", "plain", b"")) == "4711"
    assert _patient(Scribe("t", "none", b"")) is None
    digest = _patient(Scribe("t", "digest", key))
    assert digest == _patient(Scribe("t", "digest", key))
    assert digest != _patient(Scribe("t", "digest", b"another key"))
    assert digest is not None
    assert "4711" not in digest


def test_the_spool_is_private_and_keeps_the_order_over_files(tmp_path: Path):
    """Rotated by size; nothing of it is readable by others."""
    spool = AuditSpool(tmp_path / "audit", file_bytes=100, limit_bytes=10_000)
    messages = [f"<message number='{number}'/>".encode() for number in range(20)]
    for message in messages:
        assert spool.append(message) == 0

    files = sorted((tmp_path / "audit").glob("audit-*.xmll"))
    assert len(files) > 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE((tmp_path / "audit").stat().st_mode) == 0o700
    assert [message for _, message in spool.unshipped(Mark())] == messages
    middle = spool.unshipped(Mark())[9][0]
    assert [message for _, message in spool.unshipped(middle)] == messages[10:]


def test_several_writers_never_mix_their_messages(tmp_path: Path):
    """Processes of one gateway: each has a spool of its own on the same folder."""

    def write(letter: str) -> None:
        spool = AuditSpool(tmp_path, file_bytes=2_000, limit_bytes=1_000_000)
        for _ in range(20):
            spool.append(b"<" + letter.encode() * 50)

    writers = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for one in writers:
        one.start()
    for one in writers:
        one.join()

    spool = AuditSpool(tmp_path, file_bytes=2_000, limit_bytes=1_000_000)
    found = [message for _, message in spool.unshipped(Mark(), limit=1000)]
    assert sorted(found) == sorted(b"<" + x.encode() * 50 for x in "abcd" for _ in range(20))


def test_half_a_line_that_a_power_cut_left_is_skipped(tmp_path: Path):
    """And no collector gets it, also not when the next message has come behind it."""
    spool = AuditSpool(tmp_path, file_bytes=1_000, limit_bytes=10_000)
    spool.append(b"<first/>")
    with (tmp_path / "audit-00000001.xmll").open("ab") as file:
        file.write(b"<half")
    assert [one for _, one in spool.unshipped(Mark())] == [b"<first/>"]

    spool.append(b"<second/>")

    assert [one for _, one in spool.unshipped(Mark())] == [b"<first/>", b"<second/>"]


def test_past_its_limit_the_oldest_go_and_the_unshipped_are_counted(tmp_path: Path):
    """The disk is for images; what was shipped goes without a word."""
    message = b"<" + b"x" * 99
    spool = AuditSpool(tmp_path, file_bytes=1_000, limit_bytes=4_000)
    lost = [spool.append(message) for _ in range(60)]
    size_bytes = sum(path.stat().st_size for path in tmp_path.glob("audit-*.xmll"))
    assert size_bytes <= 4_000
    assert sum(lost) == 60 - len(spool.unshipped(Mark()))
    assert sum(lost) > 0

    spool.mark_shipped(spool.unshipped(Mark())[-1][0])
    assert sum(spool.append(message) for _ in range(20)) == 0


def test_a_folder_that_cannot_be_used_is_said_at_the_start(tmp_path: Path):
    """Not when the first study comes."""
    (tmp_path / "audit").write_text("a file", encoding="ascii")

    with pytest.raises(ConfigurationError, match="audit trail can't be kept"):
        AuditSpool(tmp_path / "audit", file_bytes=1_000, limit_bytes=4_000)


# Shipping -----------------------------------------------------------------------------------------


@dataclass
class Trail:
    """A spool, and whoever ships it."""

    spool: AuditSpool
    shipper: AuditShipper
    written: list[bytes] = field(default_factory=list)

    def write(self, count: int) -> None:
        """Appends numbered messages."""
        for _ in range(count):
            message = f"<message number='{len(self.written)}'/>".encode()
            self.written.append(message)
            self.spool.append(message)
        self.shipper.notify()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs the collector's certificate, and ours."""
    return an_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def collectors(authority: Authority) -> Credentials:
    """The collector's certificate."""
    return authority.sign("audit.example")


@pytest.fixture(scope="module")
def ours(authority: Authority) -> Credentials:
    """The gateway's certificate."""
    return authority.sign("gateway")


@contextmanager
def a_trail(folder: Path, authority: Authority, ours: Credentials, port: int) -> Iterator[Trail]:
    """Ships to this port while the block lasts."""
    spool = AuditSpool(folder / "audit", file_bytes=500, limit_bytes=100_000)
    settings = SyslogSettings(
        host="localhost",
        port=port,
        ca_file=authority.certificate,
        certificate_file=ours.certificate,
        key_file=ours.key,
        retry_max_s=0.1,
    )
    shipper = AuditShipper(spool, settings)
    thread = threading.Thread(target=shipper.run)
    thread.start()
    try:
        yield Trail(spool, shipper)
    finally:
        shipper.stop()
        thread.join()


def _messages(collector: Collector) -> list[bytes]:
    return [one.partition("\ufeff".encode())[2] for one in collector.received]


def test_messages_arrive_framed_and_in_order(
    authority: Authority, collectors: Credentials, ours: Credentials, tmp_path: Path
):
    """RFC 5424 in RFC 5425 frames, over mutual TLS."""
    with (
        a_collector(collectors, client_ca=authority.certificate) as collector,
        a_trail(tmp_path, authority, ours, collector.port) as trail,
    ):
        trail.write(30)
        until(lambda: len(collector.received) == 30)
        until(lambda: trail.spool.unshipped(trail.spool.shipped()) == [])

    assert _messages(collector) == trail.written
    header = collector.received[0].split(b" ")[:7]
    assert header[0] == b"<85>1"
    assert header[3] == b"tritome"
    assert header[5] == b"DICOM+RFC3881"


def test_a_trail_that_cannot_be_read_is_shipped_once_it_can(
    authority: Authority, collectors: Credentials, ours: Credentials, tmp_path: Path
):
    """A disk that fails must not end the thread, and the gateway with it."""
    with (
        a_collector(collectors, client_ca=authority.certificate) as collector,
        a_trail(tmp_path, authority, ours, collector.port) as trail,
    ):
        looks, unshipped = [], trail.spool.unshipped

        def fails(after: Mark, limit: int = 100) -> list[tuple[Mark, bytes]]:
            looks.append(after)
            raise OSError(errno.EIO, "Input/output error")

        trail.spool.unshipped = fails  # type: ignore[method-assign]
        trail.write(3)
        until(lambda: len(looks) > 1)
        trail.spool.unshipped = unshipped  # type: ignore[method-assign]
        until(lambda: len(collector.received) == 3)

    assert _messages(collector) == trail.written


def test_a_collector_that_was_away_gets_everything(
    authority: Authority, collectors: Credentials, ours: Credentials, tmp_path: Path
):
    """Also what was written before, and over a restart of the gateway."""
    port = free_port()
    with a_trail(tmp_path, authority, ours, port) as trail:
        trail.write(10)
    with a_trail(tmp_path, authority, ours, port) as again:
        again.written = trail.written
        again.write(10)
        with a_collector(collectors, port=port) as collector:
            until(lambda: len(collector.received) == 20)
            until(lambda: again.spool.unshipped(again.spool.shipped()) == [])

    assert _messages(collector) == again.written


def test_what_a_collector_dropped_when_it_died_is_sent_again(
    authority: Authority, collectors: Credentials, ours: Credentials, tmp_path: Path
):
    """It closes without reading; nothing is lost, and what came twice is the same."""
    port = free_port()
    with a_trail(tmp_path, authority, ours, port) as trail:
        with a_collector(collectors, port=port, reads=False) as deaf:
            trail.write(10)
            until(lambda: deaf.connections > 0)
        with a_collector(collectors, port=port) as collector:
            trail.write(10)
            until(lambda: set(_messages(collector)) == set(trail.written))

    assert deaf.received == []


def test_a_collector_with_a_strange_certificate_gets_nothing(
    authority: Authority, ours: Credentials, tmp_path: Path
):
    """The trail is for one pair of eyes."""
    stranger = an_authority(tmp_path / "stranger", "somebody else").sign("audit.example")
    with (
        a_collector(stranger) as collector,
        a_trail(tmp_path, authority, ours, collector.port) as trail,
    ):
        trail.write(3)
        until(lambda: collector.failures > 0)
        assert len(trail.spool.unshipped(trail.spool.shipped())) == 3

    assert collector.received == []


def _patient(scribe: Scribe) -> str | None:
    root = ET.fromstring(scribe.message(EVENTS[1]))
    for one in root.findall("ParticipantObjectIdentification"):
        if one.attrib["ParticipantObjectTypeCode"] == "1":
            return one.attrib["ParticipantObjectID"]
    return None
