"""QIDO-RS: what matches, what is returned, and what is refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pytest
from pydicom import Dataset

from dicom_gateway.database import arrivals, instances, transaction
from dicom_gateway.web import Catalogue
from tests.support.databases import an_empty_index
from tests.support.dicom import (
    CANARY,
    a_ct_series,
    an_arrival,
    an_object_without_pixels,
)
from tests.support.dicomweb import OpenWeb, an_open_web, ask
from tests.support.patience import until


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def web(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OpenWeb]:
    """Three studies: two patients, one study with two series, one sent to HEAD only."""
    url = None
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql_url")
        with an_empty_index(url):
            pass
    with an_open_web(tmp_path_factory.mktemp("web"), database_url=url) as opened:
        for number, ds in enumerate(_studies()):
            title = "HEAD" if ds.PatientID == "P3" else "LUNG"
            arrival = an_arrival(ds, called_ae_title=title, association_id=f"a{number}")
            opened.keeping.store.keep(arrival)
        yield opened


def _studies() -> list[Dataset]:
    first = a_ct_series(frames=2, study_instance_uid="1.2.1", series_instance_uid="1.2.1.1")
    report = an_object_without_pixels()
    report.StudyInstanceUID, report.SeriesInstanceUID = "1.2.1", "1.2.1.2"
    second = a_ct_series(frames=1, study_instance_uid="1.2.2", series_instance_uid="1.2.2.1")
    third = a_ct_series(frames=1, study_instance_uid="1.2.3", series_instance_uid="1.2.3.1")
    for ds in [*first, report]:
        ds.PatientName, ds.PatientID, ds.AccessionNumber = "Müller^Anna", "P1", "A1"
        ds.SpecificCharacterSet = "ISO_IR 100"
        ds.StudyDate, ds.StudyTime, ds.StudyDescription = "20260110", "101112", "Chest [low]"
    for ds in second:
        ds.PatientName, ds.PatientID, ds.AccessionNumber = "Meier^Bob^^Dr", "p1", "A2"
        ds.StudyDate, ds.StudyTime = "20260120", "235959.5"
        ds.StudyDescription = "Thorax\\Abdomen"
    third[0].SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    third[0].PatientName, third[0].PatientID = "Yamada^Zed=山田^太郎=やまだ^たろう", "P3"
    third[0].StudyDate = ""
    return [*first, report, *second, *third]


def studies(web: OpenWeb, query: str, root: str = "") -> list[str]:
    """Study Instance UIDs of the answer."""
    answer = ask(f"{web.url}{root}/studies?{query}")
    assert answer.status_code in (200, 204), answer.text
    found = answer.json() if answer.status_code == 200 else []
    return [one["0020000D"]["Value"][0] for one in found]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ["1.2.1", "1.2.2", "1.2.3"]),
        ("PatientID=P1", ["1.2.1"]),
        ("00100020=p1", ["1.2.2"]),
        ("PatientID=%3F1", ["1.2.1", "1.2.2"]),
        ("PatientID=P*&StudyDate=20260101-", ["1.2.1"]),
        ("PatientName=m%C3%BCller%5Eanna", ["1.2.1"]),
        ("PatientName=MEIER*", ["1.2.2"]),
        ("PatientName=Meier%5EBob%5E%5EDr%5E", ["1.2.2"]),
        ("PatientName=Meier", ["1.2.2"]),
        ("PatientName=yamada^zed", ["1.2.3"]),
        ("PatientName=Yamada", ["1.2.3"]),
        ("PatientName=山田^太郎", ["1.2.3"]),
        ("PatientName=山田", ["1.2.3"]),
        ("PatientName=やまだ^たろう", ["1.2.3"]),
        ("PatientName=山?^*", ["1.2.3"]),
        ("PatientName=Zed", []),
        ("PatientName=太郎", []),
        ("PatientName=Yama", []),
        ("AccessionNumber=A1", ["1.2.1"]),
        ("StudyDescription=chest*", []),
        ("StudyDescription=Chest%20%5Blow%5D*", ["1.2.1"]),
        ("StudyDescription=Thorax%5CAbdomen", ["1.2.2"]),
        ("StudyDescription=Thorax*", ["1.2.2"]),
        ("StudyDate=20260110", ["1.2.1"]),
        ("StudyDate=20260110-20260120", ["1.2.1", "1.2.2"]),
        ("StudyDate=-20260119", ["1.2.1"]),
        ("StudyDate=20260111-", ["1.2.2"]),
        ("StudyTime=1011", ["1.2.1", "1.2.3"]),
        ("StudyTime=2359-2359", ["1.2.2"]),
        ("ModalitiesInStudy=SR", ["1.2.1"]),
        ("StudyInstanceUID=1.2.1,1.2.3,1.9", ["1.2.1", "1.2.3"]),
        ("PatientID=*", ["1.2.1", "1.2.2", "1.2.3"]),
        ("PatientID=%25", []),
        ("PatientName=_", []),
        ("limit=1", ["1.2.1"]),
        ("limit=1&offset=1", ["1.2.2"]),
        ("offset=3", []),
        ("PatientID=P1&charset=utf-8&accept=application/json", ["1.2.1"]),
    ],
)
def test_studies_are_found(web: OpenWeb, query: str, expected: list[str]) -> None:
    """Single values, wildcards, ranges, lists; names without regard to case, in each script."""
    assert studies(web, query) == expected


def test_a_title_of_ours_shows_only_what_was_sent_to_it(web: OpenWeb) -> None:
    """Below its own root."""
    assert studies(web, "", "/HEAD") == ["1.2.3"]
    assert studies(web, "", "/LUNG") == ["1.2.1", "1.2.2"]
    assert ask(f"{web.url}/OTHER/studies").status_code == 404


def test_a_study_is_described_as_a_whole(web: OpenWeb) -> None:
    """Counts, modalities and classes of all of it, in UTF-8."""
    (study,) = ask(f"{web.url}/studies?AccessionNumber=A1").json()
    assert study["00100010"]["Value"] == [{"Alphabetic": "Müller^Anna"}]
    assert study["00080005"]["Value"] == ["ISO_IR 192"]
    assert study["00080061"]["Value"] == ["CT", "SR"]
    assert study["00201206"]["Value"] == [2]
    assert study["00201208"]["Value"] == [3]
    assert study["00081190"]["Value"] == [f"{web.url}/studies/1.2.1"]
    assert "00080060" not in study


def test_series_and_instances_are_found_below_and_without_a_study(web: OpenWeb) -> None:
    """With the attributes of what the path leaves open."""
    below = ask(f"{web.url}/studies/1.2.1/series?Modality=CT").json()
    assert [one["0020000E"]["Value"][0] for one in below] == ["1.2.1.1"]
    assert below[0]["00201209"]["Value"] == [2]
    assert "00100020" not in below[0]
    free = ask(f"{web.url}/series?PatientID=P1&Modality=SR").json()
    assert [one["0020000E"]["Value"][0] for one in free] == ["1.2.1.2"]
    assert free[0]["00100020"]["Value"] == ["P1"]
    found = ask(f"{web.url}/studies/1.2.1/series/1.2.1.1/instances?InstanceNumber=2").json()
    assert [one["00200013"]["Value"][0] for one in found] == [2]
    assert found[0]["00280010"]["Value"] == [32]
    assert len(ask(f"{web.url}/studies/1.2.1/instances").json()) == 3
    assert len(ask(f"{web.url}/instances?SOPClassUID=1.2.840.10008.5.1.4.1.1.2").json()) == 4


def test_more_fields_are_read_from_the_files(web: OpenWeb) -> None:
    """By keyword or tag; `all` gives what is catalogued."""
    url = f"{web.url}/studies/1.2.1/instances?limit=1"
    (one,) = ask(f"{url}&includefield=SliceThickness,00180060").json()
    assert one["00180050"]["Value"] == [2.5]
    assert one["00180060"]["Value"] == [120]
    assert "00180050" not in ask(url).json()[0]
    (everything,) = ask(f"{web.url}/studies?AccessionNumber=A1&includefield=all").json()
    assert everything["00080060"]["Value"] == ["CT"]


@pytest.mark.parametrize(
    "query",
    [
        "PatientWeight=80",
        "Nonsense=1",
        "SOPInstanceUID=1.2",
        "StudyInstanceUID=1.2.x",
        "StudyDate=yesterday",
        "StudyDate=-",
        "limit=-1",
        "offset=x",
        "includefield=Nonsense",
        "PatientID=" + "9" * 300,
        "PatientID=123%00456",
    ],
)
def test_what_is_not_understood_is_400_without_repeating_the_value(
    web: OpenWeb, query: str
) -> None:
    """Never an answer to another question."""
    answer = ask(f"{web.url}/studies?{query}&PatientName={CANARY}")
    assert answer.status_code == 400
    assert CANARY not in answer.text
    value = query.partition("=")[2]
    assert len(value) < 5 or value not in answer.text


def test_fuzzy_matching_is_not_done_and_that_is_said(web: OpenWeb) -> None:
    """PS3.18 8.3.4.2: a warning."""
    answer = ask(f"{web.url}/studies?PatientID=P1&fuzzymatching=true")
    assert len(answer.json()) == 1
    assert "fuzzymatching parameter is not supported" in answer.headers["warning"]


def test_only_json_is_answered(web: OpenWeb) -> None:
    """406 for others."""
    xml = {"Accept": 'multipart/related; type="application/dicom+xml"'}
    assert ask(f"{web.url}/studies", headers=xml).status_code == 406
    for accept in ("text/html, application/json;q=0.5", "application/dicom*=utf-8''x, */*"):
        assert ask(f"{web.url}/studies", headers={"Accept": accept}).status_code == 200
    extended = {"Accept": "multipart/related; type*=utf-8''application%2Fdicom"}
    assert ask(f"{web.url}/studies", headers=extended).status_code == 406
    assert ask(f"{web.url}/studies?accept=application/dicom+json", headers=xml).status_code == 200


def test_a_deleted_object_is_found_no_more_and_an_unreadable_one_by_its_uids(
    tmp_path: Path,
) -> None:
    """A row of the catalogue goes with its row of the index; what is held is listed."""
    deleted, unreadable = a_ct_series(frames=1) + a_ct_series(frames=1)
    with an_open_web(tmp_path) as web:
        web.keeping.store.keep(an_arrival(deleted))
        assert studies(web, "") == [deleted.StudyInstanceUID]
        with transaction(web.keeping.engine) as connection:
            connection.execute(arrivals.delete())
            connection.execute(instances.delete())
        assert studies(web, "") == []

        kept = web.keeping.store.keep(an_arrival(unreadable))
        kept.path.write_bytes(kept.path.read_bytes().replace(b"UI", b"??"))
        assert studies(web, f"StudyInstanceUID={unreadable.StudyInstanceUID}") == [
            unreadable.StudyInstanceUID
        ]


def test_a_question_waits_for_no_object_that_comes_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However busily a modality sends: here one more has come whenever the last is catalogued."""
    series = iter(a_ct_series(frames=20))
    write = Catalogue._write
    with an_open_web(tmp_path) as web:

        def while_another_comes(catalogue: Catalogue, rows: list[dict[str, object]]) -> None:
            write(catalogue, rows)
            for ds in islice(series, 1):
                web.keeping.store.keep(an_arrival(ds))

        monkeypatch.setattr(Catalogue, "_write", while_another_comes)
        web.keeping.store.keep(an_arrival(next(series)))
        assert [web.catalogue.refresh() for _ in range(3)] == [1, 1, 1]
        monkeypatch.undo()
        assert web.catalogue.refresh() == 1
        assert web.catalogue.refresh() == 0


def test_a_store_whose_headers_are_still_being_read_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instead of an answer without half of it, or none for an hour; then it finds all."""
    monkeypatch.setattr("dicom_gateway.web.dicomweb.search.PATIENCE_S", 0.1)
    read_on = threading.Event()
    write = Catalogue._write

    def slowly(catalogue: Catalogue, rows: list[dict[str, object]]) -> None:
        read_on.wait(60)
        write(catalogue, rows)

    with an_open_web(tmp_path) as web, ThreadPoolExecutor(1) as beside:
        monkeypatch.setattr(Catalogue, "_write", slowly)
        web.keeping.store.keep(an_arrival(a_ct_series(frames=1)[0]))
        reading = beside.submit(web.catalogue.refresh)
        until(web.catalogue._lock.locked)
        behind = ask(f"{web.url}/studies")
        assert (behind.status_code, behind.json()["error"]) == (503, "catalogue_behind")
        assert int(behind.headers["Retry-After"]) > 0
        read_on.set()
        assert reading.result() == 1
        assert len(ask(f"{web.url}/studies").json()) == 1
