"""STOW-RS over HTTP: statuses, the response module, and limits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest
import requests

from dicom_gateway.errors import OutOfResources
from dicom_gateway.records import Arrival, Instance
from tests.support.dicom import CANARY, a_ct_series, as_file_bytes, encoded
from tests.support.dicomweb import OpenWeb, an_open_web, ask, multipart
from tests.support.patience import until


@pytest.fixture
def web(tmp_path: Path) -> Iterator[OpenWeb]:
    """An open web side with small limits."""
    stow = {"max-request-bytes": 1 << 20, "max-part-bytes": 1 << 18, "max-requests": 1}
    with an_open_web(tmp_path, stow=stow) as opened:
        yield opened


def store(url: str, parts: list[bytes], **headers: str) -> requests.Response:
    """One STOW-RS request."""
    body, content_type = multipart(parts)
    return ask(url, "POST", data=body, headers=content_type | headers)


def test_all_kept_is_200_with_a_link_to_each(web: OpenWeb) -> None:
    """The response module names study and instances."""
    series = a_ct_series(frames=2)
    answer = store(f"{web.url}/studies", [as_file_bytes(ds) for ds in series])
    assert answer.status_code == HTTPStatus.OK
    assert answer.headers["content-type"] == "application/dicom+json"
    module = answer.json()
    assert module["00081190"]["Value"] == [f"{web.url}/studies/{series[0].StudyInstanceUID}"]
    assert [one["00081155"]["Value"][0] for one in module["00081199"]["Value"]] == [
        str(ds.SOPInstanceUID) for ds in series
    ]
    link = module["00081199"]["Value"][0]["00081190"]["Value"][0]
    assert ask(link).status_code == HTTPStatus.OK
    assert [in_order for _, in_order in web.ended] == [True]


def test_objects_go_to_the_title_of_the_path_and_to_no_unknown_one(web: OpenWeb) -> None:
    """Without one to the default; the caller's name is the settings'."""
    first, second = a_ct_series(frames=1), a_ct_series(frames=1)
    assert store(f"{web.url}/studies", [as_file_bytes(first[0])]).ok
    assert store(f"{web.url}/HEAD/studies", [as_file_bytes(second[0])]).ok
    index = web.keeping.index
    assert index.load_series(str(first[0].SeriesInstanceUID), "LUNG").instances
    kept = index.load_series(str(second[0].SeriesInstanceUID), "HEAD")
    assert kept.calling_ae_title == "DICOMWEB"
    answer = store(f"{web.url}/NOBODY/studies", [as_file_bytes(first[0])])
    assert answer.status_code == HTTPStatus.NOT_FOUND


def test_links_below_any_title_lead_to_the_object(tmp_path: Path) -> None:
    """An AE title may have characters that mean something in a URL."""
    (ds,) = a_ct_series(frames=1)
    with an_open_web(tmp_path, titles=["CT#1 [a]?"]) as web:
        answer = store(f"{web.url}/CT%231%20%5Ba%5D%3F/studies", [as_file_bytes(ds)])
        link = answer.json()["00081199"]["Value"][0]["00081190"]["Value"][0]
        assert ask(link).status_code == HTTPStatus.OK


def test_a_boundary_in_any_notation_is_understood(web: OpenWeb) -> None:
    """Quoted, or extended as RFC 2231 has it."""
    body, _ = multipart([as_file_bytes(a_ct_series(frames=1)[0])], boundary="a=b")
    for boundary in ('boundary="a=b"', "boundary*=utf-8''a%3Db"):
        headers = {"Content-Type": f"multipart/related; type=application/dicom; {boundary}"}
        assert ask(f"{web.url}/studies", "POST", data=body, headers=headers).ok


def test_some_refused_is_202_and_all_refused_is_409(web: OpenWeb) -> None:
    """With the failure reasons, and the names of the reasons as warnings."""
    first, second = a_ct_series(frames=2)
    url = f"{web.url}/studies/{first.StudyInstanceUID}"
    second.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    mismatch = as_file_bytes(second).replace(
        str(second.SOPInstanceUID).encode(), b"1.2.3".ljust(len(str(second.SOPInstanceUID)), b"4")
    )
    mismatch = mismatch.replace(str(second.StudyInstanceUID).encode(), _other(second))
    some = store(url, [as_file_bytes(first), mismatch, encoded(first)])
    assert some.status_code == HTTPStatus.ACCEPTED
    module = some.json()
    assert len(module["00081199"]["Value"]) == 1
    assert module["00081198"]["Value"][0]["00081197"]["Value"] == [0xA900]
    assert module["0008119A"]["Value"] == [{"00081197": {"vr": "US", "Value": [0xC000]}}]
    assert "no_part10_header" in some.headers["warning"]
    none = store(url, [mismatch])
    assert none.status_code == HTTPStatus.CONFLICT
    assert "00081199" not in none.json()
    assert CANARY not in some.text + none.text + str(some.headers)


def _other(ds: object) -> bytes:
    uid = str(ds.StudyInstanceUID)  # type: ignore[attr-defined]
    return (uid[:-4] + "1111").encode()


def test_a_full_store_is_503_and_too_large_a_part_413(tmp_path: Path) -> None:
    """So that a client knows whether to come again."""

    def keep(_: Arrival) -> Instance:
        msg = "no space"
        raise OutOfResources(msg)

    part = as_file_bytes(a_ct_series(frames=1)[0])
    with an_open_web(tmp_path, keep=keep, stow={"max-part-bytes": 4096}) as web:
        full = store(f"{web.url}/studies", [part])
        large = store(f"{web.url}/studies", [part + bytes(4096)])
    assert full.status_code == HTTPStatus.SERVICE_UNAVAILABLE
    assert int(full.headers["retry-after"]) > 0
    assert full.json()["00081198"]["Value"][0]["00081197"]["Value"] == [0xA700]
    assert large.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE


def test_requests_that_are_none_are_said_so(web: OpenWeb) -> None:
    """400, 406, 413 and 415, each with a sentence; nothing is kept."""
    part = as_file_bytes(a_ct_series(frames=1)[0])
    body, headers = multipart([part])
    url = f"{web.url}/studies"
    answers = [
        ask(url, "POST", data=b"rubbish" * 20_000, headers=headers),
        ask(url, "POST", data=body[:-300], headers=headers),
        ask(url, "POST", data=body, headers={"Content-Type": "application/dicom"}),
        ask(url, "POST", data=body, headers=headers | {"Content-Encoding": "gzip"}),
        ask(url, "POST", data=body, headers=headers | {"Accept": "application/dicom+xml"}),
        ask(f"{url}/..%2F..%2Fetc", "POST", data=body, headers=headers),
        ask(f"{url}/1.2/3x", "POST", data=body, headers=headers),
    ]
    assert [one.status_code for one in answers] == [400, 400, 415, 415, 406, 404, 404]
    large = ask(url, "POST", data=multipart([bytes(1 << 21)])[0], headers=headers)
    assert large.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    assert all(one.json()["detail"] for one in [*answers[:5], large])
    assert web.keeping.files() == []


def test_a_body_without_a_length_is_limited_too(web: OpenWeb) -> None:
    """What came whole before the limit is kept, and the client is told of it."""
    part = as_file_bytes(a_ct_series(frames=1, rows=128, columns=128)[0])
    data, headers = multipart([part, *[bytes(1 << 17)] * 20])
    pieces = (data[start : start + 65536] for start in range(0, len(data), 65536))
    answer = ask(f"{web.url}/studies", "POST", data=pieces, headers=headers)
    assert answer.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    assert len(answer.json()["00081199"]["Value"]) == 1
    assert [in_order for _, in_order in web.ended] == [False]


def test_more_requests_at_once_than_are_taken_get_503(web: OpenWeb) -> None:
    """One is under way here; the next is turned away before its body."""
    part = as_file_bytes(a_ct_series(frames=1)[0])
    data, headers = multipart([part, part])
    goes_on = threading.Event()

    def slowly() -> Iterator[bytes]:
        yield data[:-10]
        goes_on.wait(60)
        yield data[-10:]

    answers: list[requests.Response] = []
    first = threading.Thread(
        target=lambda: answers.append(
            ask(f"{web.url}/studies", "POST", data=slowly(), headers=headers)
        )
    )
    first.start()
    try:
        until(web.keeping.files)  # its first part has come
        second = store(f"{web.url}/studies", [part])
    finally:
        goes_on.set()
        first.join(60)
    assert second.status_code == HTTPStatus.SERVICE_UNAVAILABLE
    assert answers[0].status_code == HTTPStatus.OK
