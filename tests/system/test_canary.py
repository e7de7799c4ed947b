"""A patient's attributes stay in the objects: nothing else that the gateway writes has them.

One study with a canary in every attribute that may say who the patient is goes the whole way,
and every way on which it fails, at the most talkative log level; then everything is searched.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from pydicom import Dataset
from pydicom.datadict import dictionary_VR
from pydicom.uid import SegmentationStorage

from dicom_gateway.records import JobState
from tests.support.dicom import a_ct_series, as_file_bytes, write_series
from tests.support.dicomweb import ask, multipart, web_port
from tests.support.patience import until
from tests.support.peers import storescu
from tests.support.road import GatewayProcess, a_gateway
from tests.support.scripted_pacs import a_pacs
from tests.support.shared_memory import DEV_SHM
from tests.support.small_triton import SmallTriton, a_repository

pytestmark = pytest.mark.system

BIRD = "ZQCANARYQZ"
"""In none of the generated objects, and in no word of ours."""
KEYWORDS = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "OtherPatientIDs", "OtherPatientNames"),
    *("PatientBirthName", "PatientMotherBirthName", "PatientAddress", "PatientTelephoneNumbers"),
    *("EthnicGroup", "Occupation", "MilitaryRank", "PatientComments", "AdditionalPatientHistory"),
    *("PatientReligiousPreference", "AdmittingDiagnosesDescription", "AccessionNumber", "StudyID"),
    *("StudyDescription", "SeriesDescription", "ProtocolName", "ImageComments", "StationName"),
    *("InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName", "OperatorsName"),
    *("ReferringPhysicianName", "PerformingPhysicianName", "PhysiciansOfRecord"),
    *("NameOfPhysiciansReadingStudy", "RequestingPhysician", "RequestedProcedureDescription"),
    *("DeviceSerialNumber", "RequestedProcedureID"),
)
INDEXED_FOR_QIDO = "catalogue"
"""The one table that may hold patients: what QIDO-RS answers from (PS3.18 Table 10.6.1-5)."""


def a_canary_study(frames: int = 6, **more: Any) -> list[Dataset]:
    """A CT series with the bird in every attribute of `KEYWORDS`, and in private ones."""
    made = a_ct_series(frames, **more)
    for ds in made:
        for keyword in KEYWORDS:
            is_name = dictionary_VR(keyword) == "PN"
            setattr(ds, keyword, f"{BIRD}^{BIRD}" if is_name else BIRD)
        private = ds.private_block(0x0011, "TRITOME TESTS", create=True)
        private.add_new(0x01, "LO", BIRD)
        private.add_new(0x02, "OB", BIRD.encode())
    return made


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline, and one whose contract this gateway doesn't speak."""
    folder = tmp_path_factory.mktemp("models")
    a_repository(folder, "lung_ct")
    return a_repository(folder, "from_the_future", schema_version=99)


def _tritome(gateway: GatewayProcess, *words: str) -> str:
    """What a command says, to a person, in full width."""
    command = [sys.executable, "-m", "clients", *words]
    said = subprocess.run(
        [*command, "--config", str(gateway.folder / "gateway.yaml")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"COLUMNS": "400"},
    )
    return said.stdout + said.stderr


def _columns_with_the_bird(index: Path) -> set[str]:
    """table.column of every value in the index that holds it."""
    found = set()
    with sqlite3.connect(index) as connection:
        tables = [
            name
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")
        ]
        for table in tables:
            rows = connection.execute(f'SELECT * FROM "{table}"')
            names = [column[0] for column in rows.description]
            for row in rows:
                found |= {
                    f"{table}.{name}"
                    for name, value in zip(names, row, strict=True)
                    if BIRD.lower() in str(value).lower()
                }
    connection.close()
    return found


def _titles(process_id: int) -> str:
    """Command lines and names of a process and its children, and of their threads."""
    one = psutil.Process(process_id)
    said = []
    for process in [one, *one.children(recursive=True)]:
        said += [" ".join(process.cmdline()), process.name()]
        tasks = Path(f"/proc/{process.pid}/task")
        said += [path.read_text() for path in tasks.glob("*/comm")]
    return "\n".join(said)


def _destination(name: str, port: int) -> dict[str, Any]:
    return {"name": name, "host-ip": "127.0.0.1", "port": port, "ae-title": "PACS"}


def _settings(ports: Sequence[int]) -> dict[str, Any]:
    titles = {
        "LUNG": ("lung_ct", ["pacs"]),
        "STRICT": ("lung_ct", ["strict"]),
        "FUTURE": ("from_the_future", ["pacs"]),
    }
    return {
        "scp": {
            "host": "127.0.0.1",
            "port": 0,
            "ae-titles": [
                {"ae-title": title, "pipelines": [pipeline], "destinations": destinations}
                for title, (pipeline, destinations) in titles.items()
            ],
            "sources": [{"ae-title": "SCANNER"}],
        },
        "scu": {
            "retry-first-s": 0.2,
            "retry-max-s": 1.0,
            "destinations": [_destination("pacs", ports[0]), _destination("strict", ports[1])],
        },
    }


def test_a_canary_is_seen_in_objects_only(repository: Path, tmp_path: Path) -> None:
    """Logs, errors, stories, commands, names of files and memory, titles, index, audit trail."""
    assert len(KEYWORDS) >= 30
    everything: list[str] = []
    with (
        SmallTriton(tmp_path, repository) as triton,
        a_pacs(takes=SegmentationStorage) as pacs,
        a_pacs([0xA900], takes=SegmentationStorage) as strict,
        a_gateway(
            tmp_path / "gateway",
            triton=triton.url,
            dicom=_settings([pacs.port, strict.port]),
            results={"lung_ct": {"objects": ["segmentation"]}},
            web={"enabled": True, "port": 0},
            environment={"TRITOME_LOG_LEVEL": "debug"},
        ) as gateway,
    ):
        strict.comment = f"{BIRD} refused"
        url = f"http://127.0.0.1:{web_port(gateway)}"
        number = iter(range(100))

        def send(called: str, made: list[Dataset], calling: str = "SCANNER") -> None:
            files = write_series(tmp_path / "sent" / str(next(number)), made)
            storescu(files, "127.0.0.1", gateway.port, calling, called)

        def jobs_end(count: int) -> None:
            gateway.wait_for_jobs(count)

        # The good way; and the PACS refuses and quotes the patient; and no such contract.
        study = a_canary_study()
        send("LUNG", study)
        send("STRICT", a_canary_study())
        send("FUTURE", a_canary_study())
        jobs_end(3)
        # Broken pixels; a hole; a sender whom nobody knows; other bytes under a known UID.
        send("LUNG", a_canary_study(broken_at=2))
        send("LUNG", a_canary_study(8, gap_at=4))
        jobs_end(5)
        send("LUNG", a_canary_study(), calling="STRANGER")
        for ds in study:
            ds.PatientComments = f"{BIRD} again"
        send("LUNG", study)
        # Over HTTP: stored, searched for, asked in vain, and no DICOM at all.
        stowed = a_canary_study()
        body, header = multipart([as_file_bytes(ds) for ds in stowed])
        assert ask(f"{url}/dicom-web/studies", "POST", data=body, headers=header).ok
        body, header = multipart([BIRD.encode() * 100])
        everything.append(ask(f"{url}/dicom-web/studies", "POST", data=body, headers=header).text)
        found = ask(f"{url}/dicom-web/studies", params={"PatientID": BIRD})
        for path in (f"/dicom-web/studies/{BIRD}", f"/{BIRD}", f"/dicom-web/{BIRD}/studies"):
            assert ask(url + path).status_code >= 400
        everything.append(ask(f"{url}/dicom-web/studies", params={BIRD: "1"}).text)
        jobs_end(6)
        # Triton goes away in the middle of it all.
        triton.kill()
        send("LUNG", a_canary_study())
        until(lambda: "triton_unavailable" in _whole_log(gateway), timeout_s=120)

        everything.append(_metrics_and_health(url))
        jobs = gateway.jobs()
        everything += [_tritome(gateway, "jobs", "show", one.job_id) for one in jobs]
        everything += [
            _tritome(gateway, *words)
            for words in (
                ("jobs", "list"),
                ("deliveries",),
                ("series", "show", str(study[0].SeriesInstanceUID)),
                ("store", "conflicts"),
                ("store", "check"),
            )
        ]
        everything.append("\n".join(path.name for path in DEV_SHM.iterdir()))
        assert gateway.process is not None
        everything.append(_titles(gateway.process.pid))
        files = [str(path) for path in gateway.folder.rglob("*")]
        everything.append("\n".join(files))
        columns = _columns_with_the_bird(gateway.folder / "data" / "index.sqlite")
    everything.append(_whole_log(gateway))
    trail = b"".join(path.read_bytes() for path in gateway.folder.rglob("audit-*.xmll"))

    # What was to happen did happen; otherwise there was nothing to search.
    codes = {one.failure_code for one in jobs if one.state is JobState.FAILED}
    assert {"destination_refused", "contract_mismatch", "broken_pixel_data", "missing_slices"} <= (
        codes
    )
    assert any(one.state is JobState.DELIVERED for one in jobs)
    assert BIRD in found.text  # who may ask is answered
    assert BIRD.encode() in b"".join(pacs.datasets)  # and the PACS knows whose result it is
    log = everything[-1]
    for event in ("association rejected", "delivery_failed", '"level": "debug"'):
        assert event in log
    assert trail.count(b"<AuditMessage>") > 10

    hits = [text for text in everything if BIRD.lower() in text.lower()]
    assert hits == []
    assert {one.partition(".")[0] for one in columns} == {INDEXED_FOR_QIDO}
    assert BIRD.encode() not in trail


def _whole_log(gateway: GatewayProcess) -> str:
    return (gateway.folder / "gateway.log").read_text(encoding="utf-8", errors="replace")


def _metrics_and_health(url: str) -> str:
    """What monitoring sees; also where a path is not (yet) answered."""
    said = ""
    for path in ("/health", "/metrics"):
        answer: requests.Response = ask(url + path)
        said += answer.text + str(answer.headers)
    return said
