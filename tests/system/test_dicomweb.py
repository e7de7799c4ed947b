"""DICOMweb with real peers, both ways: dicomweb-client and Orthanc's plugin against a gateway."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
from pydicom import Dataset
from pydicom.uid import generate_uid

from tests.support.dicom import CANARY, a_ct_series, as_file_bytes, encoded
from tests.support.dicomweb import (
    TOKEN,
    a_client,
    a_dicomweb_orthanc,
    a_web_gateway,
    as_read,
    ask,
    web_port,
)
from tests.support.patience import until
from tests.support.road import GatewayProcess

pytestmark = pytest.mark.system
MEBIBYTE = 1 << 20
STREAM_BYTES = 300 * MEBIBYTE
MAY_GROW_BYTES = 64 * MEBIBYTE


def test_dicomweb_client_stores_searches_and_retrieves(tmp_path: Path) -> None:
    """All of its services that we serve; what comes back is what was sent."""
    series = as_read(a_ct_series(frames=4))
    first = series[0]
    uids = (str(first.StudyInstanceUID), str(first.SeriesInstanceUID), str(first.SOPInstanceUID))
    with a_web_gateway(tmp_path / "gateway") as (gateway, url):
        client = a_client(url)
        stored = client.store_instances(series)
        assert len(stored.ReferencedSOPSequence) == len(series)
        assert "FailedSOPSequence" not in stored

        (study,) = client.search_for_studies(search_filters={"PatientID": f"{CANARY}-4711"})
        assert study["0020000D"]["Value"] == [uids[0]]
        assert study["00201208"]["Value"] == [len(series)]
        (found,) = client.search_for_series(uids[0], search_filters={"Modality": "CT"})
        assert found["0020000E"]["Value"] == [uids[1]]
        assert len(client.search_for_instances(*uids[:2], limit=3)) == 3

        retrieved = client.retrieve_study(uids[0])
        assert {one.SOPInstanceUID: one.PixelData for one in retrieved} == {
            one.SOPInstanceUID: one.PixelData for one in series
        }
        assert client.retrieve_instance(*uids).PixelData == first.PixelData
        metadata = client.retrieve_series_metadata(*uids[:2])
        assert [one["00080018"]["Value"][0] for one in metadata] == [
            str(one.SOPInstanceUID) for one in series
        ]
        assert client.retrieve_instance_frames(*uids, [1]) == [first.PixelData]
        assert CANARY not in gateway.log()


def test_orthanc_stores_with_us_and_retrieves_from_us(tmp_path: Path) -> None:
    """Its plugin pushes by STOW-RS with a token, and takes the study back by WADO-RS."""
    study = a_ct_series(frames=3)
    study_uid = str(study[0].StudyInstanceUID)
    (tmp_path / "token").write_text(TOKEN, encoding="ascii")
    web = {
        "host": "0.0.0.0",
        "plain-http": True,
        "callers": [{"calling-ae-title": "ORTHANC", "token-file": str(tmp_path / "token")}],
    }
    with (
        a_web_gateway(tmp_path / "gateway", web=web) as (gateway, url),
        a_dicomweb_orthanc(tmp_path / "orthanc") as (peer, _),
    ):
        port = web_port(gateway)
        server = {
            "Url": f"http://{peer.our_host}:{port}/dicom-web/",
            "HttpHeaders": {"Authorization": f"Bearer {TOKEN}"},
        }
        peer.put("/dicom-web/servers/gateway", server)
        for ds in study:
            peer.post("/instances", as_file_bytes(ds))
        peer.post("/dicom-web/servers/gateway/stow", {"Resources": peer.get("/studies")})
        client = a_client(url, TOKEN)
        (found,) = client.search_for_studies()
        assert found["0020000D"]["Value"] == [study_uid]

        for orthanc_id in peer.get("/studies"):
            peer._ask("DELETE", f"/studies/{orthanc_id}")
        assert peer.instances() == []
        peer.post("/dicom-web/servers/gateway/retrieve", {"Resources": [{"Study": study_uid}]})
        assert peer.sop_instance_uids() == sorted(str(ds.SOPInstanceUID) for ds in study)
        assert {peer.file(one)[-2048:] for one in peer.instances()} == {
            encoded(ds)[-2048:] for ds in study
        }
        stranger = ask(f"{url}/studies")
        assert stranger.status_code == 401
        assert TOKEN not in gateway.log()


@pytest.mark.parametrize("part_bytes", [MEBIBYTE, STREAM_BYTES], ids=["many parts", "one part"])
def test_three_hundred_megabytes_pass_without_growing_the_process(
    tmp_path: Path, part_bytes: int
) -> None:
    """By STOW-RS and back by WADO-RS: the gateway grows by less than 64 MB."""
    template = a_ct_series(frames=1)[0]
    pixels = part_bytes - len(as_file_bytes(template))
    template.PixelData = bytes(pixels - pixels % 2)
    count = STREAM_BYTES // part_bytes
    with a_web_gateway(tmp_path / "gateway") as (gateway, url):
        assert gateway.process is not None
        process = psutil.Process(gateway.process.pid)
        a_client(url).store_instances(as_read(a_ct_series(frames=1)))  # what is lazy is there
        a_client(url).search_for_studies()
        before_bytes = peak_bytes(process)
        answer = ask(f"{url}/studies", "POST", data=a_stream(template, count), headers=STREAM_TYPE)
        assert answer.status_code == 200, (answer.text, gateway.log())
        assert len(answer.json()["00081199"]["Value"]) == count
        stored_bytes = peak_bytes(process)
        with requests.Session() as session:
            session.trust_env = False
            study_url = f"{url}/studies/{template.StudyInstanceUID}"
            back = session.get(study_url, stream=True, timeout=60)
            came_bytes = sum(len(piece) for piece in back.iter_content(MEBIBYTE))
        grown_bytes = peak_bytes(process) - before_bytes

    assert came_bytes > count * len(template.PixelData)
    print(
        f"{count} part(s): grown by {(stored_bytes - before_bytes) / 1e6:.1f} MB while storing, "
        f"by {grown_bytes / 1e6:.1f} MB in all"
    )
    assert grown_bytes < MAY_GROW_BYTES


STREAM_TYPE = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=B'}


def a_stream(template: Dataset, count: int) -> Iterator[bytes]:
    """A body that is never in memory as a whole; the instances differ in their UIDs."""
    whole = as_file_bytes(template)
    own = str(template.SOPInstanceUID).encode()
    for _ in range(count):
        uid = generate_uid(entropy_srcs=[uuid.uuid4().hex])[: len(own)].ljust(len(own), "1")
        part = whole.replace(own, uid.encode())
        yield b"--B\r\nContent-Type: application/dicom\r\n\r\n"
        for start in range(0, len(part), MEBIBYTE):
            yield part[start : start + MEBIBYTE]
        yield b"\r\n"
    yield b"--B--\r\n"


def peak_bytes(process: psutil.Process) -> int:
    """The most that the process ever had (VmHWM: resident, files that it maps included)."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    (line,) = [one for one in status.splitlines() if one.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def test_a_stored_study_is_decided_when_its_request_has_ended(tmp_path: Path) -> None:
    """A request counts as an association: its end is known, so nobody waits for the timer."""
    series = as_read(a_ct_series(frames=3))
    completeness = {"after-release-s": 0.2, "quiet-s": 600.0, "give-up-s": 600.0}
    with a_web_gateway(tmp_path / "gateway", completeness=completeness) as (gateway, url):
        a_client(f"{url}/LUNG").store_instances(series)
        wait_until_decided(gateway, str(series[0].SeriesInstanceUID))


def wait_until_decided(gateway: GatewayProcess, series_instance_uid: str) -> None:
    """Until the judge calls it complete; without Triton it then waits for the contract."""
    said = f"series {series_instance_uid} is complete and waits for Triton"
    until(lambda: said in gateway.log())
