"""`tritome fetch` from real peers: Orthanc and dcmtk by C-MOVE, Orthanc by QIDO-RS and WADO-RS."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from pydicom import Dataset

from dicom_gateway.database import open_database
from dicom_gateway.store import SeriesIndex
from dicom_gateway.store.docket import Docket
from tests.support.certificates import an_authority
from tests.support.dcmqrscp import dcmqrscp
from tests.support.dicom import CANARY, a_ct_series, as_file_bytes, encoded, write_series
from tests.support.dicomweb import a_dicomweb_orthanc
from tests.support.orthanc import orthanc
from tests.support.peers import free_port
from tests.support.road import GatewayProcess, a_gateway

pytestmark = pytest.mark.system
FRAMES = 4


def fetch(gateway: GatewayProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, as a person gives it."""
    command = [sys.executable, "-m", "clients", "fetch", *arguments]
    return subprocess.run(
        [*command, "--config", str(gateway.folder / "gateway.yaml")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def a_study() -> list[Dataset]:
    """Two series of one study."""
    first = a_ct_series(frames=FRAMES)
    second = a_ct_series(frames=FRAMES - 1, study_instance_uid=str(first[0].StudyInstanceUID))
    return first + second


def kept(gateway: GatewayProcess, series_instance_uid: str) -> dict[str, bytes]:
    """SOP Instance UID -> the data set that the gateway has."""
    engine = open_database(f"sqlite:///{gateway.folder}/data/index.sqlite")
    try:
        series = SeriesIndex(engine, gateway.folder / "data").load_series(
            series_instance_uid, "LUNG"
        )
        files = {one.sop_instance_uid: one.path.read_bytes() for one in series.instances}
    finally:
        engine.dispose()
    return files


def stated(gateway: GatewayProcess, series_instance_uid: str) -> dict[str, int]:
    """Who says how many instances there are."""
    engine = open_database(f"sqlite:///{gateway.folder}/data/index.sqlite")
    try:
        found = Docket(engine).expected(series_instance_uid, "LUNG")
    finally:
        engine.dispose()
    return {one.source: one.count for one in found}


def assert_kept(gateway: GatewayProcess, study: Sequence[Dataset]) -> None:
    """Every instance is there, its data set byte for byte."""
    for uid in {str(ds.SeriesInstanceUID) for ds in study}:
        ours = [ds for ds in study if ds.SeriesInstanceUID == uid]
        files = kept(gateway, uid)
        assert set(files) == {str(ds.SOPInstanceUID) for ds in ours}
        for ds in ours:
            assert files[str(ds.SOPInstanceUID)].endswith(encoded(ds))


def scp(*sources: str) -> dict[str, object]:
    """The receiving side, as `a_gateway` has it, for these peers and on every address."""
    return {
        "host": "0.0.0.0",
        "port": free_port(),
        "ae-titles": [{"ae-title": "LUNG", "pipelines": ["lung_ct"]}],
        "sources": [{"ae-title": title} for title in sources],
    }


def test_a_study_comes_from_orthanc_by_c_move(tmp_path: Path) -> None:
    """By DICOM TLS, by its accession number; the stated counts are known to completeness."""
    study = a_study()
    receiving = scp("ORTHANC")
    authority = an_authority(tmp_path / "ca")
    theirs, ours = authority.sign("orthanc"), authority.sign("gateway")
    tls = {
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(theirs.certificate),
        "DicomTlsPrivateKey": str(theirs.key),
        "DicomTlsTrustedCertificates": str(authority.certificate),
    }
    with orthanc(tmp_path / "orthanc", settings=tls) as peer:
        peer.put(
            "/modalities/gateway",
            {"AET": "LUNG", "Host": peer.our_host, "Port": receiving["port"]},
        )
        peer.put("/modalities/asker", {"AET": "TRITOME", "Host": peer.our_host, "Port": 1})
        for ds in study:
            peer.post("/instances", as_file_bytes(ds))
        pacs = {
            "name": "archive",
            "called-ae-title": "LUNG",
            "dimse": {
                "host-ip": peer.host,
                "port": peer.dicom_port,
                "ae-title": peer.ae_title,
                "tls": {
                    "ca-file": str(authority.certificate),
                    "certificate-file": str(ours.certificate),
                    "key-file": str(ours.key),
                    "check-hostname": False,
                },
            },
        }
        with a_gateway(
            tmp_path / "gateway", triton="127.0.0.1:1", dicom={"scp": receiving}, peers=[pacs]
        ) as gateway:
            done = fetch(gateway, "--from", "archive", "--accession", f"{CANARY}-ACC")
            assert done.returncode == 0, (done.stderr, gateway.log(), peer.running.output())
            assert f"{len(study)} instance(s) of 2 series kept" in done.stdout
            assert_kept(gateway, study)
            uid = str(study[0].SeriesInstanceUID)
            assert stated(gateway, uid) == {
                "C-FIND of archive": FRAMES,
                "C-MOVE of archive": FRAMES,
            }
            nothing = fetch(gateway, "--from", "archive", "--query", "PatientID=NOBODY")
            assert nothing.returncode == 1
            assert "has nothing that matches" in nothing.stderr
            assert CANARY not in gateway.log()
            assert "NOBODY" not in gateway.log()


def test_one_series_comes_from_dcmqrscp_by_c_move(tmp_path: Path) -> None:
    """It states no counts by itself, so its instances are counted; an unknown title is named."""
    study = a_study()
    files = write_series(tmp_path / "study", study)
    receiving = scp("ARCHIVE")
    port = int(str(receiving["port"]))
    with dcmqrscp(tmp_path / "archive", files, {"LUNG": port}) as peer:
        pacs = {
            "name": "archive",
            "called-ae-title": "LUNG",
            "dimse": {"host-ip": peer.host, "port": peer.port, "ae-title": peer.ae_title},
        }
        receiving["ae-titles"] = [
            {"ae-title": title, "pipelines": ["lung_ct"]} for title in ("LUNG", "ELSEWHERE")
        ]
        with a_gateway(
            tmp_path / "gateway", triton="127.0.0.1:1", dicom={"scp": receiving}, peers=[pacs]
        ) as gateway:
            study_uid, series_uid = study[-1].StudyInstanceUID, str(study[-1].SeriesInstanceUID)
            wish = ("--from", "archive", "--study", study_uid, "--series", series_uid)
            done = fetch(gateway, *wish)
            assert done.returncode == 0, (done.stderr, gateway.log(), peer.running.output())
            assert f"{FRAMES - 1} instance(s) of 1 series kept" in done.stdout
            assert_kept(gateway, study[FRAMES:])
            assert stated(gateway, series_uid) == {
                "C-FIND of archive": FRAMES - 1,
                "C-MOVE of archive": FRAMES - 1,
            }
            unknown = fetch(gateway, *wish, "--to", "ELSEWHERE")
            assert unknown.returncode == 1
            assert "doesn't know where 'ELSEWHERE' is" in " ".join(unknown.stderr.split())


def test_a_study_comes_from_orthanc_by_dicomweb(tmp_path: Path) -> None:
    """QIDO-RS and WADO-RS: byte for byte, for the title that the settings name."""
    study = a_study()
    with a_dicomweb_orthanc(tmp_path / "orthanc") as (peer, url):
        for ds in study:
            peer.post("/instances", as_file_bytes(ds))
        pacs = {"name": "cloud", "called-ae-title": "LUNG", "dicomweb": {"url": url}}
        with a_gateway(tmp_path / "gateway", triton="127.0.0.1:1", peers=[pacs]) as gateway:
            done = fetch(gateway, "--from", "cloud", "--query", f"PatientName={CANARY}*")
            assert done.returncode == 0, (done.stderr, gateway.log(), peer.running.output())
            assert_kept(gateway, study)
            uid = str(study[0].SeriesInstanceUID)
            assert stated(gateway, uid) == {
                "QIDO-RS of cloud": FRAMES,
                "WADO-RS of cloud": FRAMES,
            }
            assert CANARY not in gateway.log()


def test_without_a_gateway_nothing_is_fetched_and_a_person_reads_why(tmp_path: Path) -> None:
    """Only the gateway writes the store."""
    pacs = {"name": "cloud", "called-ae-title": "LUNG", "dicomweb": {"url": "http://127.0.0.1:1"}}
    with a_gateway(tmp_path / "gateway", triton="127.0.0.1:1", peers=[pacs]) as gateway:
        away = fetch(gateway, "--from", "cloud", "--study", "1.2.3")
        gateway.stop()
        alone = fetch(gateway, "--from", "cloud", "--study", "1.2.3")
        settings = yaml.safe_load((gateway.folder / "gateway.yaml").read_text(encoding="utf-8"))

    assert settings["pacs"] == [pacs]
    assert (away.returncode, alone.returncode) == (1, 1)
    assert "'cloud' can't be reached" in " ".join(away.stderr.split())
    assert "no gateway runs on" in " ".join(alone.stderr.split())
