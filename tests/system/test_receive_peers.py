"""The door with real peers: Orthanc asks for storage commitment, dcmtk and many at once store.

Also what several receiving processes promise: one port, one limit, and nothing acknowledged is
lost when one of them is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa
from pydicom import Dataset
from pydicom.uid import generate_uid

from dicom_gateway.config import GatewaySettings
from dicom_gateway.database import instances, open_associations, open_database
from dicom_gateway.receive import Receiver
from dicom_gateway.receiving import commitments_of, receiving_child, spool_of
from dicom_gateway.store import SeriesIndex
from tests.support.certificates import Authority, an_authority
from tests.support.dicom import a_ct_series, encoded, write_series
from tests.support.gateway import Door, an_open_door
from tests.support.patience import until
from tests.support.peers import Orthanc, orthanc, storescu
from tests.support.raw_peer import ASSOCIATE_AC, ASSOCIATE_RJ, a_raw_peer

pytestmark = pytest.mark.system


# Orthanc ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs Orthanc's certificate and ours."""
    return an_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def archive(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """An Orthanc with a few instances; it calls by TLS where it is told to."""
    own = authority.sign("orthanc")
    settings = {
        "DicomTlsEnabled": False,
        "DicomTlsCertificate": str(own.certificate),
        "DicomTlsPrivateKey": str(own.key),
        "DicomTlsTrustedCertificates": str(authority.certificate),
    }
    with orthanc(tmp_path_factory.mktemp("orthanc"), settings=settings) as peer:
        for ds in a_ct_series(3):
            peer.post("/instances", _file_of(ds))
        yield peer


def _file_of(ds: Dataset) -> bytes:
    from io import BytesIO  # noqa: PLC0415

    file = BytesIO()
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue()


@contextmanager
def a_door_for(archive: Orthanc, folder: Path, **settings: Any) -> Iterator[Door]:
    """Where Orthanc reaches it, and knows where Orthanc listens."""
    source = {"ae-title": archive.ae_title, "host-ip": archive.host, "port": archive.dicom_port}
    with an_open_door(
        folder, host="0.0.0.0", sources=[source], reject_unknown_sources=True, **settings
    ) as door:
        yield door


def _introduce(archive: Orthanc, port: int, *, tls: bool = False) -> None:
    gateway = {
        "AET": "LUNG",
        "Host": archive.our_host,
        "Port": port,
        "UseDicomTls": tls,
        "AllowStorageCommitment": True,
    }
    archive.put("/modalities/gateway", gateway)


def _store_by(archive: Orthanc) -> list[str]:
    found = archive.instances()
    archive.post("/modalities/gateway/store", {"Resources": found, "Synchronous": True})
    return found


def test_orthanc_stores_and_is_told_that_all_of_it_is_safe(
    archive: Orthanc, tmp_path: Path
) -> None:
    """By a report on an association of our own, since Orthanc closes its at once."""
    with a_door_for(archive, tmp_path) as door:
        _introduce(archive, door.port)
        found = _store_by(archive)
        assert sorted(i.sop_instance_uid for i in door.kept) == archive.sop_instance_uids()
        asked = archive.post("/modalities/gateway/storage-commitment", {"Resources": found})
        until(lambda: archive.get(asked["Path"])["Status"] != "Pending")
        told = archive.get(asked["Path"])
        assert told["Status"] == "Success"
        assert len(told["Success"]) == len(found)


def test_orthanc_is_told_what_is_not_safe(archive: Orthanc, tmp_path: Path) -> None:
    """One that never came, though the others did."""
    with a_door_for(archive, tmp_path) as door:
        _introduce(archive, door.port)
        _store_by(archive)
        never = generate_uid()
        asked = archive.post(
            "/modalities/gateway/storage-commitment",
            {
                "DicomInstances": [
                    {"SOPClassUID": i.sop_class_uid, "SOPInstanceUID": i.sop_instance_uid}
                    for i in door.kept
                ]
                + [{"SOPClassUID": door.kept[0].sop_class_uid, "SOPInstanceUID": never}]
            },
        )
        until(lambda: archive.get(asked["Path"])["Status"] != "Pending")
        told = archive.get(asked["Path"])
        assert told["Status"] == "Failure"
        assert [one["SOPInstanceUID"] for one in told["Failures"]] == [never]
        assert len(told["Success"]) == len(door.kept)


def test_orthanc_stores_by_tls_with_its_certificate(
    archive: Orthanc, authority: Authority, tmp_path: Path
) -> None:
    """Mutual: it checks ours, and its title is bound to its own."""
    ours = authority.sign("gateway")
    tls = {
        "port": 0,
        "certificate-file": ours.certificate,
        "key-file": ours.key,
        "client-ca-file": authority.certificate,
    }
    source = {"ae-title": archive.ae_title, "certificates": ["orthanc"]}
    with an_open_door(
        tmp_path, host="0.0.0.0", sources=[source], reject_unknown_sources=True, tls=tls
    ) as door:
        _introduce(archive, door.tls_port, tls=True)
        _store_by(archive)
        assert sorted(i.sop_instance_uid for i in door.kept) == archive.sop_instance_uids()


# Several processes ------------------------------------------------------------------------------


@dataclass
class Crowd:
    """A door with several receiving processes, and what it told of associations."""

    receiver: Receiver
    settings: GatewaySettings
    engine: sa.Engine
    ended: dict[str, bool] = field(default_factory=dict)

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.receiver.port

    def kept(self) -> dict[str, bytes]:
        """SOP Instance UID -> the file of each indexed instance."""
        with self.engine.connect() as connection:
            rows = connection.execute(sa.select(instances)).all()
        folder = self.settings.store.folder
        return {row.sop_instance_uid: (folder / row.path).read_bytes() for row in rows}

    def open_associations(self) -> int:
        """Those that the index believes to be open."""
        with self.engine.connect() as connection:
            return len(connection.execute(sa.select(open_associations)).all())


@contextmanager
def a_crowd(folder: Path, processes: int = 2, **scp: Any) -> Iterator[Crowd]:
    """Receives for LUNG from anybody."""
    settings = GatewaySettings.model_validate(
        {
            "dicom": {
                "scp": {
                    "host": "127.0.0.1",
                    "port": 0,
                    "processes": processes,
                    "ae-titles": [{"ae-title": "LUNG", "pipelines": ["lung_ct"]}],
                    "reject-unknown-sources": False,
                    **scp,
                }
            },
            "store": {"folder": str(folder / "data"), "min-free-bytes": 0},
        }
    )
    engine = open_database(settings.database_url)
    index = SeriesIndex(engine, settings.store.folder)
    crowd: Crowd

    def ended(association_id: str, in_order: bool) -> None:
        index.association_ended(association_id, in_order=in_order)
        crowd.ended[association_id] = in_order

    def nobody(_arrival: Any) -> Any:
        raise AssertionError("the process that accepts keeps nothing itself")

    receiver = Receiver(
        settings.dicom.scp,
        nobody,
        ended,
        spool=spool_of(settings),
        commitments=commitments_of(settings, engine),
        child=receiving_child(settings),
    )
    crowd = Crowd(receiver, settings, engine)
    receiver.start()
    try:
        yield crowd
    finally:
        receiver.stop()
        engine.dispose()


def test_several_processes_share_the_work_and_the_limit(tmp_path: Path) -> None:
    """Four senders at once: every byte is kept, both processes serve, the limit is one."""
    series = [a_ct_series(6) for _ in range(4)]
    with a_crowd(tmp_path, max_associations=4) as crowd:
        with ThreadPoolExecutor(4) as pool:
            sent = list(
                pool.map(
                    lambda number: (
                        storescu(
                            write_series(tmp_path / f"s{number}", series[number]),
                            "127.0.0.1",
                            crowd.port,
                            called="LUNG",
                        ).exit_code
                    ),
                    range(4),
                )
            )
        assert sent == [0, 0, 0, 0]
        kept = crowd.kept()
        assert all(kept[ds.SOPInstanceUID].endswith(encoded(ds)) for one in series for ds in one)
        until(lambda: list(crowd.ended.values()) == [True] * 4)
        with ExitStack() as guests:
            for _ in range(4):
                guest = guests.enter_context(a_raw_peer(crowd.port))
                assert guest.associate() == ASSOCIATE_AC
            busy = [psutil.Process(pid).num_threads() for pid in crowd.receiver.process_ids]
            assert len(busy) == 2
            assert max(busy) - min(busy) <= 2  # two threads for each association
            with a_raw_peer(crowd.port) as fifth:
                assert fifth.associate() == ASSOCIATE_RJ


def test_a_killed_process_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """The ledger of 0x0000 answers and the store agree; another process takes its place."""
    ledger: dict[str, bytes] = {}
    stop = threading.Event()

    def send_on(crowd: Crowd) -> None:
        while not stop.is_set():
            with suppress(OSError), a_raw_peer(crowd.port) as peer:
                if peer.associate() != ASSOCIATE_AC:
                    continue
                for ds in a_ct_series(4):
                    if peer.store(encoded(ds), str(ds.SOPInstanceUID)) != 0x0000:
                        break
                    ledger[str(ds.SOPInstanceUID)] = encoded(ds)

    with a_crowd(tmp_path) as crowd:
        senders = [threading.Thread(target=send_on, args=(crowd,)) for _ in range(3)]
        for sender in senders:
            sender.start()
        for _ in range(int(os.environ.get("TRITOME_KILLS", "3"))):
            known = len(ledger)
            until(lambda known=known: len(ledger) > known + 4)  # type: ignore[misc]
            victim = crowd.receiver.process_ids[0]
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
            until(
                lambda victim=victim: (  # type: ignore[misc]
                    len(crowd.receiver.process_ids) == 2
                    and victim not in crowd.receiver.process_ids
                )
            )
        known = len(ledger)
        until(lambda: len(ledger) > known + 4)
        stop.set()
        for sender in senders:
            sender.join(60)
        assert crowd.receiver.is_alive
        until(lambda: crowd.open_associations() == 0)
        kept = crowd.kept()
        assert all(kept[uid].endswith(data) for uid, data in ledger.items())
        assert False in crowd.ended.values()  # those that died with a process
        last = [psutil.Process(pid) for pid in crowd.receiver.process_ids]
    assert not any(one.is_running() for one in last)  # a stop ends them in order


def test_the_processes_end_with_the_one_that_accepts(tmp_path: Path) -> None:
    """`kill -9` of that one: they see it, finish what they keep, and go."""
    script = f"""
import sys, time
from pathlib import Path
from tests.system.test_receive_peers import a_crowd
with a_crowd(Path({str(tmp_path / "killed")!r})) as crowd:
    print(*crowd.receiver.process_ids, flush=True)
    time.sleep(600)
"""
    (tmp_path / "killed").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as accepting:
        assert accepting.stdout is not None
        children = [psutil.Process(int(pid)) for pid in accepting.stdout.readline().split()]
        accepting.kill()
    assert len(children) == 2
    until(lambda: not any(one.is_running() for one in children))
