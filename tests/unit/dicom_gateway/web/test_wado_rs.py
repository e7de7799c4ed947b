"""WADO-RS: bytes as they are kept, metadata, frames, and what can't be given."""

from __future__ import annotations

import gc
import json
import struct
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil
import pydicom
import pytest
import requests
from pydicom import Dataset
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from dicom_gateway.database import jobs, results, transaction
from dicom_gateway.receive.multipart import MultipartReader, PartBegins, PartBytes
from tests.support.dicom import PATIENT_ID, a_ct_series, an_arrival, as_file_bytes, encoded
from tests.support.dicomweb import OpenWeb, an_open_web, ask
from tests.support.patience import until

STUDY = "1.2.1"
DICOM = 'multipart/related; type="application/dicom"'
KINDS = {
    "1.2.1.1": ExplicitVRLittleEndian,
    "1.2.1.2": RLELossless,
    "1.2.1.3": JPEGLSLossless,
    "1.2.1.4": ImplicitVRLittleEndian,
}


@pytest.fixture(scope="module")
def study() -> list[Dataset]:
    """A series of two instances in each of four transfer syntaxes."""
    return [
        ds
        for uid, syntax in KINDS.items()
        for ds in a_ct_series(
            frames=2,
            transfer_syntax_uid=syntax,
            study_instance_uid=STUDY,
            series_instance_uid=uid,
            bits_stored=12,
            signed=False,
            pixels=np.arange(2 * 16 * 16, dtype=np.uint16).reshape(2, 16, 16),
        )
    ]


@pytest.fixture(scope="module")
def web(study: list[Dataset], tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenWeb]:
    """The study, held."""
    with an_open_web(tmp_path_factory.mktemp("web")) as opened:
        for ds in study:
            opened.keeping.store.keep(an_arrival(ds))
        yield opened


def parts_of(answer: requests.Response) -> list[tuple[str, bytes]]:
    """Content-Type and content of each part."""
    assert answer.status_code == 200, answer.text
    boundary = answer.headers["content-type"].partition("boundary=")[2]
    reader = MultipartReader(boundary)
    parts: list[tuple[str, bytes]] = []
    for event in reader.feed(answer.content):
        if isinstance(event, PartBegins):
            parts.append((event.headers["content-type"], b""))
        elif isinstance(event, PartBytes):
            parts[-1] = (parts[-1][0], parts[-1][1] + event.data)
    assert reader.ended
    return parts


def of_series(study: list[Dataset], uid: str) -> list[Dataset]:
    """The data sets of one series."""
    return [ds for ds in study if ds.SeriesInstanceUID == uid]


def instance_url(web: OpenWeb, ds: Dataset) -> str:
    """Of one object."""
    return f"{web.url}/studies/{STUDY}/series/{ds.SeriesInstanceUID}/instances/{ds.SOPInstanceUID}"


@pytest.mark.parametrize("accept", [DICOM, DICOM + "; transfer-syntax=*", "*/*", None])
def test_objects_come_as_they_are_kept(
    web: OpenWeb, study: list[Dataset], accept: str | None
) -> None:
    """Study, series, instance: the data set byte for byte, each in its own transfer syntax."""
    headers = {"Accept": accept} if accept else {}
    for url, expected in (
        (f"{web.url}/studies/{STUDY}", study),
        (f"{web.url}/studies/{STUDY}/series/1.2.1.2", of_series(study, "1.2.1.2")),
        (instance_url(web, study[0]), study[:1]),
    ):
        parts = parts_of(ask(url, headers=headers))
        assert len(parts) == len(expected)
        for (kind, content), ds in zip(parts, expected, strict=True):
            assert kind.endswith(f"transfer-syntax={ds.file_meta.TransferSyntaxUID}")
            assert content.endswith(encoded(ds))


def test_one_object_comes_as_a_file_where_that_is_asked_for(
    web: OpenWeb, study: list[Dataset]
) -> None:
    """application/dicom without parts; of several there is none."""
    headers = {"Accept": "application/dicom"}
    answer = ask(instance_url(web, study[0]), headers=headers)
    assert pydicom.dcmread(BytesIO(answer.content)).SOPInstanceUID == study[0].SOPInstanceUID
    assert ask(f"{web.url}/studies/{STUDY}", headers=headers).status_code == 406


def test_explicit_little_endian_is_made_where_it_is_asked_for(
    web: OpenWeb, study: list[Dataset]
) -> None:
    """Without loss, in a child process; another transfer syntax isn't made."""
    accept = {"Accept": f"{DICOM}; transfer-syntax={ExplicitVRLittleEndian}"}
    parts = parts_of(ask(f"{web.url}/studies/{STUDY}", headers=accept))
    assert len(parts) == len(study)
    for (_, content), ds in zip(parts, study, strict=True):
        made = pydicom.dcmread(BytesIO(content))
        assert made.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert made.SOPInstanceUID == ds.SOPInstanceUID
        assert np.array_equal(made.pixel_array, ds.pixel_array)
    other = {"Accept": f"{DICOM}; transfer-syntax=1.2.840.10008.1.2.4.90"}
    refused = ask(f"{web.url}/studies/{STUDY}", headers=other)
    assert refused.status_code == 406
    assert str(JPEGLSLossless) in refused.json()["detail"]


def test_one_object_is_made_as_a_file_too(web: OpenWeb, study: list[Dataset]) -> None:
    """Explicit VR little endian without parts, from each of the others."""
    accept = {"Accept": f"application/dicom; transfer-syntax={ExplicitVRLittleEndian}"}
    for uid in KINDS:
        ds = of_series(study, uid)[0]
        made = pydicom.dcmread(BytesIO(ask(instance_url(web, ds), headers=accept).content))
        assert made.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert np.array_equal(made.pixel_array, ds.pixel_array)


@pytest.mark.parametrize("kind", [DICOM, "application/dicom"])
def test_a_peer_that_goes_ends_what_is_made_for_it(tmp_path: Path, kind: str) -> None:
    """At once, not when Python next looks for rubbish."""
    (ds,) = a_ct_series(
        frames=1, rows=2048, columns=4096, transfer_syntax_uid=ImplicitVRLittleEndian
    )
    own = psutil.Process()
    before = own.children()
    gc.disable()
    try:
        with an_open_web(tmp_path) as web:
            web.keeping.store.keep(an_arrival(ds))
            url = f"/dicom-web/studies/{ds.StudyInstanceUID}/series/{ds.SeriesInstanceUID}"
            with closing(HTTPConnection("127.0.0.1", web.port, timeout=60)) as peer:
                accept = {"Accept": f"{kind}; transfer-syntax={ExplicitVRLittleEndian}"}
                peer.request("GET", f"{url}/instances/{ds.SOPInstanceUID}", headers=accept)
                assert peer.getresponse().read(10)
                assert own.children() != before
            until(lambda: own.children() == before)
    finally:
        gc.enable()


def test_metadata_has_all_but_the_bulk(web: OpenWeb, study: list[Dataset]) -> None:
    """DICOM JSON for each instance; its pixels are a link that works."""
    for path, count in (("", 8), ("/series/1.2.1.1", 2)):
        found = ask(f"{web.url}/studies/{STUDY}{path}/metadata").json()
        assert len(found) == count
    first = found[0]
    assert first["00080018"]["Value"] == [str(study[0].SOPInstanceUID)]
    assert first["00100020"]["Value"] == [PATIENT_ID]
    assert first["00200032"]["Value"] == [-120.0, -110.0, -300.0]
    assert first["00083002"]["Value"] == [ExplicitVRLittleEndian]
    ((_, pixels),) = parts_of(ask(first["7FE00010"]["BulkDataURI"]))
    assert pixels == study[0].PixelData
    with_link = json.loads(ask(instance_url(web, study[2]) + "/metadata").content)
    assert with_link[0]["7FE00010"]["BulkDataURI"].endswith("/frames/1")


@pytest.mark.parametrize(
    ("series", "kind"),
    [
        ("1.2.1.1", "application/octet-stream"),
        ("1.2.1.4", "application/octet-stream"),
        ("1.2.1.2", "image/dicom-rle"),
        ("1.2.1.3", "image/jls"),
    ],
)
def test_frames_are_cut_out(web: OpenWeb, study: list[Dataset], series: str, kind: str) -> None:
    """Native ones and compressed ones, each under its own media type only."""
    ds = of_series(study, series)[1]
    url = instance_url(web, ds) + "/frames/1"
    accept = {"Accept": f'multipart/related; type="{kind}"'}
    ((content_type, content),) = parts_of(ask(url, headers=accept))
    assert content_type.startswith(kind)
    if kind == "application/octet-stream":
        assert content == ds.PixelData
    else:
        assert content.rstrip(b"\0") in ds.PixelData
    jpeg = {"Accept": 'multipart/related; type="image/jpeg"'}
    assert ask(url, headers=jpeg).status_code == 406
    assert ask(instance_url(web, ds) + "/frames/2").status_code == 404
    assert ask(instance_url(web, ds) + "/frames/0").status_code == 400


@pytest.mark.parametrize("uid", KINDS)
def test_octets_in_any_transfer_syntax_are_what_is_there(
    web: OpenWeb, study: list[Dataset], uid: str
) -> None:
    """As browsers' viewers ask, who read from the part what it is."""
    ds = of_series(study, uid)[0]
    accept = "multipart/related; type=application/octet-stream; transfer-syntax=*"
    answer = ask(instance_url(web, ds) + "/frames/1", headers={"Accept": accept})
    ((kind, content),) = parts_of(answer)
    native = KINDS[uid] in (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
    syntax = ExplicitVRLittleEndian if native else KINDS[uid]
    assert kind == f"application/octet-stream; transfer-syntax={syntax}"
    assert content.rstrip(b"\0") in ds.PixelData


@pytest.mark.parametrize("place", ["/frames/1", "/bulkdata"])
def test_who_takes_no_parts_gets_the_bytes_alone(
    web: OpenWeb, study: list[Dataset], place: str
) -> None:
    """As the media type that was asked for; of several frames it can't be given."""
    url = instance_url(web, study[0])
    answer = ask(url + place, headers={"Accept": "application/octet-stream"})
    assert answer.headers["content-type"].startswith("application/octet-stream")
    assert answer.content == study[0].PixelData
    assert ask(url + place, headers={"Accept": "image/png"}).status_code == 406
    both = ask(url + "/frames/1,1", headers={"Accept": "application/octet-stream"})
    assert both.status_code == 406


def test_big_endian_objects_are_given_as_they_are_only(tmp_path: Path) -> None:
    """Nobody gets their pixels under the name of another byte order, or half an answer."""
    (ds,) = a_ct_series(frames=1)
    ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    little = f"transfer-syntax={ExplicitVRLittleEndian}"
    with an_open_web(tmp_path) as web:
        web.keeping.store.keep(an_arrival(ds))
        study = f"{web.url}/studies/{ds.StudyInstanceUID}"
        one = f"{study}/series/{ds.SeriesInstanceUID}/instances/{ds.SOPInstanceUID}"
        ((_, content),) = parts_of(ask(study))
        refused = [
            ask(url, headers={"Accept": accept}).status_code
            for url, accept in (
                (study, f"{DICOM}; {little}"),
                (one, f"application/dicom; {little}"),
                (f"{one}/frames/1", "*/*"),
                (f"{one}/bulkdata", "*/*"),
            )
        ]
    assert content.endswith(encoded(ds))
    assert refused == [406] * 4


def test_bits_come_as_bulk_data_where_frames_do_not_begin_at_a_byte(tmp_path: Path) -> None:
    """As in a segmentation of an odd size: the link in its metadata works."""
    (ds,) = a_ct_series(frames=1)
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 1, 1, 0, 0
    ds.Rows, ds.Columns, ds.NumberOfFrames = 3, 3, 3  # 27 bits, in four bytes
    ds.PixelData = b"\1\2\3\4"
    with an_open_web(tmp_path) as web:
        web.keeping.store.keep(an_arrival(ds))
        (found,) = ask(f"{web.url}/studies/{ds.StudyInstanceUID}/metadata").json()
        ((_, content),) = parts_of(ask(found["7FE00010"]["BulkDataURI"]))
    assert content == ds.PixelData


def test_several_frames_of_one_object(tmp_path: Path) -> None:
    """In the order that was asked for; one that claims more than it has gives none."""
    (ds,) = a_ct_series(frames=1, rows=8, columns=8)
    ds.NumberOfFrames = 3
    ds.PixelData = bytes(128) + b"\1" * 128 + b"\2" * 128
    (liar,) = a_ct_series(frames=1, study_instance_uid=str(ds.StudyInstanceUID))
    liar.NumberOfFrames = 4000
    with an_open_web(tmp_path) as web:
        for one in (ds, liar):
            web.keeping.store.keep(an_arrival(one))
        root = f"{web.url}/studies/{ds.StudyInstanceUID}/series/"
        url = f"{root}{ds.SeriesInstanceUID}/instances/{ds.SOPInstanceUID}"
        parts = parts_of(ask(f"{url}/frames/3,1"))
        refused = ask(f"{root}{liar.SeriesInstanceUID}/instances/{liar.SOPInstanceUID}/frames/1")
    assert [content for _, content in parts] == [b"\2" * 128, bytes(128)]
    assert refused.status_code == 406
    assert "shorter than its header claims" in refused.json()["detail"]


def test_what_is_not_held_is_404_and_what_is_no_uid_400(web: OpenWeb) -> None:
    """Nothing of a path leads anywhere but into the index."""
    for path in ("/studies/1.2.9", f"/studies/{STUDY}/series/1.9/metadata", "/nothing"):
        assert ask(web.url + path).status_code == 404
    for uid in ("..%2f..%2fetc%2fpasswd", "1.2.1%00", "1." * 40 + "1", "1.2.1x"):
        assert ask(f"{web.url}/studies/{uid}/metadata").status_code in (400, 404)
    assert ask(f"{web.url}/HEAD/studies/{STUDY}").status_code == 404


def test_a_file_that_is_gone_is_no_answer_with_a_hole(tmp_path: Path) -> None:
    """The other instances are given; where there is none any more, 404."""
    series = a_ct_series(frames=2)
    with an_open_web(tmp_path) as web:
        kept = [web.keeping.store.keep(an_arrival(ds)) for ds in series]
        url = f"{web.url}/studies/{series[0].StudyInstanceUID}"
        kept[0].path.unlink()
        ((_, content),) = parts_of(ask(url))
        kept[1].path.unlink()
        gone = ask(url)
    assert content.endswith(encoded(series[1]))
    assert gone.status_code == 404
    assert as_file_bytes(series[0])


def test_results_are_found_and_retrieved_beside_what_they_were_made_from(tmp_path: Path) -> None:
    """What a pipeline made is held too; it belongs to the title whose job made it."""
    (source,) = a_ct_series(frames=1)
    (made,) = a_ct_series(frames=1, study_instance_uid=str(source.StudyInstanceUID), modality="MR")
    with an_open_web(tmp_path) as web:
        web.keeping.store.keep(an_arrival(source))
        (web.keeping.folder / "results").mkdir(exist_ok=True)
        (web.keeping.folder / "results" / "one.dcm").write_bytes(as_file_bytes(made))
        with transaction(web.keeping.engine) as connection:
            connection.execute(
                jobs.insert().values(
                    job_id="j1",
                    unique_key="k1",
                    pipeline="lung_ct",
                    called_ae_title="LUNG",
                    calling_ae_title="SENDER",
                    study_instance_uid=str(source.StudyInstanceUID),
                    series_instance_uid=str(source.SeriesInstanceUID),
                    subject=str(source.SeriesInstanceUID),
                    destinations=[],
                    priority="normal",
                    state="delivered",
                    created_at_s=0.0,
                    not_before_s=0.0,
                )
            )
            connection.execute(
                results.insert().values(
                    sop_instance_uid=str(made.SOPInstanceUID),
                    sop_class_uid=str(made.SOPClassUID),
                    job_id="j1",
                    output="MASK",
                    path="results/one.dcm",
                    size_bytes=1,
                )
            )
        (study,) = ask(f"{web.url}/LUNG/studies").json()
        parts = parts_of(ask(f"{web.url}/LUNG/studies/{source.StudyInstanceUID}"))
        elsewhere = ask(f"{web.url}/HEAD/studies")
    assert study["00080061"]["Value"] == ["CT", "MR"]
    assert [
        content.endswith(encoded(ds))
        for (_, content), ds in zip(parts, (source, made), strict=True)
    ] == [True, True]
    assert elsewhere.status_code == 204


def test_values_that_are_none_spoil_no_metadata(tmp_path: Path) -> None:
    """JSON has no NaN, and an element of a wrong length is left out: of a study all is read."""
    series = a_ct_series(frames=3)
    series[0].add_new(0x00189073, "FD", float("nan"))
    series[0].add_new(0x00189087, "FD", [1.5, float("-inf")])
    series[1].add_new(0x00189073, "FD", 1.5)
    with an_open_web(tmp_path) as web:
        for ds in series:
            kept = web.keeping.store.keep(an_arrival(ds))
            if ds is series[1]:  # seven bytes of unsigned shorts
                content, double = kept.path.read_bytes(), b"FD\x08\0" + struct.pack("<d", 1.5)
                kept.path.write_bytes(content.replace(double, b"US\x07\0" + bytes(7)))
        url = f"{web.url}/studies/{series[0].StudyInstanceUID}"
        found = json.loads(ask(f"{url}/metadata").content, parse_constant=pytest.fail)
        included = ask(f"{url}/instances?includefield=00189073,SliceThickness").json()
    assert [one["00080018"]["Value"][0] for one in found] == [ds.SOPInstanceUID for ds in series]
    assert found[0]["00189073"]["Value"] == ["NaN"]
    assert found[0]["00189087"]["Value"] == [1.5, "-Infinity"]
    assert [one["00180050"]["Value"] for one in included] == [[2.5]] * 3
    assert ["00189073" in one for one in included] == [True, False, False]


def test_long_binary_values_are_left_out_of_the_metadata(tmp_path: Path) -> None:
    """Also within a sequence; no link leads nowhere."""
    (ds,) = a_ct_series(frames=1)
    ds.ICCProfile = bytes(4000)
    item = Dataset()
    item.ICCProfile, item.ColorSpace = bytes(4000), "SRGB"
    ds.OpticalPathSequence = [item]
    with an_open_web(tmp_path) as web:
        web.keeping.store.keep(an_arrival(ds))
        (found,) = ask(f"{web.url}/studies/{ds.StudyInstanceUID}/metadata").json()
    assert "00282000" not in found
    assert found["00480105"]["Value"] == [{"00282002": {"vr": "CS", "Value": ["SRGB"]}}]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("has_length", [True, False])
def test_a_header_of_endless_items_is_not_read(
    tmp_path: Path, order: str, has_length: bool
) -> None:
    """A kilobyte of memory for eight bytes: of such an object the index's word must do."""
    (ds, sound) = a_ct_series(frames=2)
    items = struct.pack(f"{order}HHI", 0xFFFE, 0xE000, 0) * 250_000
    length, end = len(items), b""
    if not has_length:
        length, end = 0xFFFFFFFF, struct.pack(f"{order}HHI", 0xFFFE, 0xE0DD, 0)
    sequence = struct.pack(f"{order}HH2sHI", 0x0008, 0x1140, b"SQ", 0, length) + items + end
    if order == ">":
        ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    with an_open_web(tmp_path) as web:
        kept = [web.keeping.store.keep(an_arrival(one)) for one in (ds, sound)]
        content, patient = kept[0].path.read_bytes(), struct.pack(f"{order}HH", 0x0010, 0x0010)
        kept[0].path.write_bytes(content.replace(patient + b"PN", sequence + patient + b"PN"))
        found = ask(f"{web.url}/studies/{ds.StudyInstanceUID}/metadata").json()
    assert ["00100020" in one for one in found] == [False, True]
    assert found[0]["00080018"]["Value"] == [ds.SOPInstanceUID]


def test_pixels_that_look_like_items_are_pixels(tmp_path: Path) -> None:
    """They aren't even read for the metadata."""
    pixels = np.full((1, 1024, 1024), 0xFFFE, np.uint16)
    pixels[:, :, 1::2] = 0xE000
    (ds,) = a_ct_series(pixels=pixels, signed=False)
    with an_open_web(tmp_path) as web:
        web.keeping.store.keep(an_arrival(ds))
        (found,) = ask(f"{web.url}/studies/{ds.StudyInstanceUID}/metadata").json()
    assert found["00100020"]["Value"] == [PATIENT_ID]
