"""A real gateway is scraped while it works: what it did is counted, and nobody is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import SegmentationStorage

from tests.support.databases import Postgresql
from tests.support.dicom import CANARY, a_ct_series, as_file_bytes, write_series
from tests.support.dicomweb import a_web_gateway, ask, multipart, web_port
from tests.support.metrics import Scrape, label_values, scraped, value
from tests.support.patience import until
from tests.support.peers import storescp
from tests.support.road import GatewayProcess, Pacs, a_gateway
from tests.support.scripted_pacs import a_pacs
from tests.support.small_triton import SmallTriton, a_repository

pytestmark = pytest.mark.system

WEB = {"enabled": True, "port": 0}


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallTriton]:
    """A small server whose pipeline answers to the name lung_ct."""
    repository = a_repository(tmp_path_factory.mktemp("models"), "lung_ct")
    with SmallTriton(tmp_path_factory.mktemp("triton"), repository) as server:
        yield server


def _text(gateway: GatewayProcess) -> str:
    answer = ask(f"http://127.0.0.1:{web_port(gateway)}/metrics")
    assert answer.status_code == 200
    return answer.text


def _scrape(gateway: GatewayProcess) -> Scrape:
    return scraped(_text(gateway))


def _uids(datasets: list[Dataset]) -> set[str]:
    return {
        str(uid)
        for ds in datasets
        for uid in (ds.SOPInstanceUID, ds.SeriesInstanceUID, ds.StudyInstanceUID)
    }


def test_a_study_is_seen_on_its_whole_way_and_nobody_is_named(
    triton: SmallTriton, tmp_path: Path
) -> None:
    """By C-STORE and by STOW-RS; a stranger is turned away; what is refused is counted."""
    study, other = a_ct_series(frames=8), a_ct_series(frames=2)
    body, kind = multipart([*(as_file_bytes(ds) for ds in other), b"no DICOM"])
    with (
        storescp(tmp_path / "pacs", "PACS") as pacs,
        a_gateway(
            tmp_path / "gateway",
            triton=triton.url,
            pacs=[Pacs("pacs", pacs.host, pacs.port, pacs.ae_title)],
            web=WEB,
        ) as gateway,
    ):
        before = _scrape(gateway)
        assert gateway.send(write_series(tmp_path / "study", study)).exit_code == 0
        assert gateway.send(write_series(tmp_path / "no", study), calling="EVIL_X").exit_code != 0
        stow = f"http://127.0.0.1:{web_port(gateway)}/dicom-web/studies"
        assert ask(stow, "POST", data=body, headers=kind).status_code == 202
        gateway.wait_for_jobs(2)
        until(
            lambda: (
                value(
                    _scrape(gateway),
                    "tritome_arrival_to_delivered_seconds_count",
                    pipeline="lung_ct",
                )
                == 2
            )
        )
        text = _text(gateway)
        found = scraped(text)
        results = [uid for job in gateway.jobs() for uid in gateway.results(job)]

    by = {"called_ae_title": "LUNG", "transport": "cstore"}
    assert value(before, "tritome_instances_acknowledged_total", **by) == 0
    assert value(found, "tritome_instances_acknowledged_total", **by) == 8
    by["transport"] = "stow"
    assert value(found, "tritome_instances_acknowledged_total", **by) == 2
    (refused,) = [labels for name, labels in found if name == "tritome_instances_refused_total"]
    assert dict(refused)["transport"] == "stow"
    reason = "calling_AE_title_not_recognised"
    assert value(found, "tritome_associations_rejected_total", reason=reason) == 1
    assert value(found, "tritome_associations_ended_total", how="released") == 1
    assert value(found, "tritome_associations_open") == 0
    assert value(found, "tritome_series_ended_total", state="decided") == 2
    assert value(found, "tritome_jobs_processed_total", pipeline="lung_ct") == 2
    for stage, times in (("assembled", 2), ("inferred", 2), ("encoded", 2), ("sent", 4)):
        there = {"pipeline": "lung_ct", "stage": stage}
        assert value(found, "tritome_stage_seconds_count", **there) == times
    assert value(found, "tritome_deliveries_delivered_total", destination="pacs") == 4
    assert value(found, "tritome_triton_up") == 1
    assert value(found, "tritome_index_up") == 1
    assert value(found, "tritome_arena_bytes") == 256 << 20
    assert value(found, "tritome_arena_used_bytes") == 0
    assert value(found, "tritome_admission_predicted_bytes", resource="memory") == 0
    assert value(found, "tritome_decoders_alive") == value(found, "tritome_decoders")

    for uid in (*_uids(study), *_uids(other), *results):
        assert uid not in text
    assert CANARY not in text
    assert not {"SCANNER", "EVIL_X", "127.0.0.1", "PACS"} & set(label_values(found))


def test_what_several_receiving_processes_do_is_counted_by_one(
    triton: SmallTriton, tmp_path: Path
) -> None:
    """What they keep and refuse, and what is reported to them on our results."""
    destination = {
        "name": "pacs",
        "host-ip": "127.0.0.1",
        "ae-title": "PACS",
        "confirm": "storage-commitment",
        "confirm-first-s": 0.2,
    }
    with a_pacs(takes=SegmentationStorage) as pacs:
        scp: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": 0,
            "processes": 2,
            "max-instance-bytes": 1 << 20,
            "ae-titles": [{"ae-title": "LUNG", "pipelines": ["lung_ct"], "destinations": ["pacs"]}],
            "sources": [{"ae-title": "SCANNER"}],
        }
        scu = {"ae-title": "TRITOME", "destinations": [destination | {"port": pacs.port}]}
        with a_gateway(
            tmp_path / "gateway",
            triton=triton.url,
            web=WEB,
            dicom={"scp": scp, "scu": scu},
            results={"lung_ct": {"objects": ["segmentation"]}},
        ) as gateway:
            pacs.reports_to = ("127.0.0.1", gateway.port, "TRITOME")
            large = write_series(tmp_path / "large", a_ct_series(1, rows=1024, columns=1024))
            assert gateway.send(large).exit_code != 0
            study = write_series(tmp_path / "study", a_ct_series(frames=8))
            assert gateway.send(study).exit_code == 0
            gateway.wait_for_jobs(1)
            until(
                lambda: (
                    value(
                        _scrape(gateway), "tritome_deliveries_delivered_total", destination="pacs"
                    )
                    == 1
                )
            )
            found = _scrape(gateway)

    by = {"called_ae_title": "LUNG", "transport": "cstore"}
    assert value(found, "tritome_instances_acknowledged_total", **by) == 8
    too_large = {"transport": "cstore", "code": "too_large"}
    assert value(found, "tritome_instances_refused_total", **too_large) == 1
    assert value(found, "tritome_receiving_processes_alive") == 2
    assert value(found, "tritome_arrival_to_delivered_seconds_count", pipeline="lung_ct") == 1


def test_while_the_index_is_away_the_rest_is_answered(tmp_path: Path) -> None:
    """One number says so; nothing that isn't known is said to be zero; then it is back."""
    study = write_series(tmp_path / "study", a_ct_series(frames=3))
    with (
        Postgresql() as index,
        a_web_gateway(
            tmp_path / "gateway",
            store={"folder": "data", "min-free-bytes": 0, "database-url": index.url},
        ) as (gateway, _url),
    ):
        assert gateway.send(study).exit_code == 0
        until(lambda: value(_scrape(gateway), "tritome_series_receiving") == 1)
        index.kill()
        until(lambda: value(_scrape(gateway), "tritome_index_up") == 0)
        gateway.send(write_series(tmp_path / "another", a_ct_series(frames=1)))
        away = _scrape(gateway)
        index.start()
        until(lambda: value(_scrape(gateway), "tritome_series_receiving") == 1)
        back = _scrape(gateway)

    by = {"called_ae_title": "LUNG", "transport": "cstore"}
    assert value(away, "tritome_instances_acknowledged_total", **by) == 3
    refused = {"transport": "cstore", "code": "database_unavailable"}
    assert value(away, "tritome_instances_refused_total", **refused) == 1
    assert value(away, "tritome_store_free_bytes")
    assert value(away, "tritome_triton_up") == 0
    assert value(away, "tritome_series_receiving") is None
    assert not [name for name, _ in away if name in ("tritome_jobs", "tritome_deliveries")]
    assert value(back, "tritome_index_up") == 1
