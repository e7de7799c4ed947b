"""Destinations in every kind of trouble, and real ones: none is in the way of another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import SegmentationStorage

from dicom_gateway.records import Delivery, DeliveryState, Job, JobState
from tests.support.certificates import an_authority
from tests.support.dicom import CANARY, a_ct_series, write_series
from tests.support.dicomweb import a_dicomweb_orthanc
from tests.support.patience import until
from tests.support.peers import storescp
from tests.support.processes import free_port
from tests.support.resetting_relay import a_resetting_relay
from tests.support.road import GatewayProcess, a_gateway
from tests.support.scripted_pacs import ScriptedPacs, a_pacs
from tests.support.small_triton import SmallTriton, a_repository

pytestmark = pytest.mark.system

SEGMENTATIONS = {"lung_ct": {"objects": ["segmentation"]}}


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallTriton]:
    """A small server whose pipeline answers to the name lung_ct."""
    repository = a_repository(tmp_path_factory.mktemp("models"), "lung_ct")
    with SmallTriton(tmp_path_factory.mktemp("triton"), repository) as server:
        yield server


def dicom(destinations: list[dict[str, Any]], host: str = "127.0.0.1") -> dict[str, Any]:
    """The section of a gateway that sends to all of them."""
    names = [one["name"] for one in destinations]
    return {
        "scp": {
            "host": host,
            "port": 0,
            "ae-titles": [{"ae-title": "LUNG", "pipelines": ["lung_ct"], "destinations": names}],
            "sources": [{"ae-title": "SCANNER"}],
        },
        "scu": {
            "ae-title": "TRITOME",
            "retry-first-s": 0.2,
            "retry-max-s": 1.0,
            "destinations": destinations,
        },
    }


def place(name: str, port: int, **more: Any) -> dict[str, Any]:
    """A destination on loopback."""
    return {"name": name, "host-ip": "127.0.0.1", "port": port, "ae-title": "PACS", **more}


def deliveries(gateway: GatewayProcess, job: Job) -> dict[str, Delivery]:
    """Destination -> the job's delivery to it."""
    with gateway._desk() as desk:
        return {one.destination: one for one in desk.deliveries(job.job_id)}


def is_delivered(gateway: GatewayProcess, job: Job, *names: str) -> bool:
    """Whether all of these have it."""
    found = deliveries(gateway, job)
    return all(found[name].state is DeliveryState.DELIVERED for name in names)


def test_each_trouble_has_its_answer_and_hinders_nobody_else(
    triton: SmallTriton, tmp_path: Path
) -> None:
    """Away, full, warning, not understanding, resetting, losing: the right thing each time."""
    takes = SegmentationStorage
    away_port = free_port()
    quick = {"confirm-first-s": 0.2, "confirm-within-s": 1.0}
    with (
        a_pacs(takes=takes) as good,
        a_pacs([0xA700, 0xA700, 0x0000], takes=takes) as full,
        a_pacs([0xB000], takes=takes) as warning,
        a_pacs([0xC000], takes=takes) as puzzled,
        a_pacs([0xC000, 0x0000], takes=takes) as puzzled_once,
        a_pacs(takes=takes) as behind_relay,
        a_resetting_relay(behind_relay.port, after_bytes=3000, times=2) as relay,
        a_pacs(takes=takes) as losing,
        a_pacs(takes=takes) as losing_all,
        a_pacs(takes=takes) as committing,
        a_gateway(
            tmp_path,
            triton=triton.url,
            results=SEGMENTATIONS,
            dicom=dicom(
                [
                    place("away", away_port),
                    place("full", full.port),
                    place("warning", warning.port),
                    place("puzzled", puzzled.port),
                    place("puzzled-once", puzzled_once.port),
                    place("resetting", relay.port),
                    place("losing", losing.port, confirm="query", **quick),
                    place(
                        "losing-all",
                        losing_all.port,
                        confirm="query",
                        **quick,
                        **{"confirm-tries": 2},
                    ),
                    place("committing", committing.port, confirm="storage-commitment", **quick),
                    place("good", good.port),
                    place("reports", free_port(), objects=["structured-report"]),
                ]
            ),
        ) as gateway,
    ):
        losing.loses, losing_all.loses = 1, 1000
        committing.reports_to = ("127.0.0.1", gateway.port, "TRITOME")
        files = write_series(tmp_path / "study", a_ct_series(frames=6))
        assert gateway.send(files).exit_code == 0
        until(lambda: gateway.jobs() and gateway.results(gateway.jobs()[0]), timeout_s=240)
        (job,) = gateway.jobs()

        # Those that are well have it while others are in trouble.
        until(
            lambda: is_delivered(
                gateway,
                job,
                "good",
                "full",
                "warning",
                "puzzled-once",
                "resetting",
                "losing",
                "committing",
            ),
            timeout_s=120,
        )
        assert deliveries(gateway, job)["away"].state is DeliveryState.WAITING
        until(
            lambda: (
                deliveries(gateway, job)["losing-all"].state is DeliveryState.FAILED
                and deliveries(gateway, job)["puzzled"].state is DeliveryState.FAILED
            ),
            timeout_s=120,
        )
        with a_pacs(takes=takes, port=away_port) as back:
            until(lambda: is_delivered(gateway, job, "away"), timeout_s=120)
        found = deliveries(gateway, job)
        (uid,) = gateway.results(job)
        story = gateway.story(job)
        log = (tmp_path / "gateway.log").read_text(encoding="utf-8")

    assert "reports" not in found  # it takes no segmentations
    peers: dict[str, tuple[ScriptedPacs, int]] = {
        "good": (good, 1),
        "warning": (warning, 1),
        "full": (full, 3),
        "puzzled": (puzzled, 3),
        "puzzled-once": (puzzled_once, 2),
        "losing": (losing, 2),
        "losing-all": (losing_all, 2),
        "committing": (committing, 1),
        "away": (back, 1),
    }
    for name, (pacs, times) in peers.items():
        assert (name, pacs.asked) == (name, [uid] * times)
    assert behind_relay.stored == [uid]
    assert relay.resets == 2
    assert job_state(gateway, job) is JobState.FAILED  # two of them need a person
    told = "\n".join(story)
    assert "warning: accepted with warning 0xB000" in told
    assert "0xC000" in (found["puzzled"].last_error or "")
    assert "accepted the object 2 times and doesn't have it" in (
        found["losing-all"].last_error or ""
    )
    assert "committing: proven by storage commitment" in told
    assert CANARY not in told + log


def test_real_peers_take_and_prove_what_is_sent(triton: SmallTriton, tmp_path: Path) -> None:
    """Orthanc by STOW-RS and QIDO-RS, Orthanc by storage commitment, storescp by mutual TLS."""
    authority = an_authority(tmp_path / "authority")
    ours, theirs = authority.sign("gateway"), authority.sign("archive")
    tls = ["--enable-tls", theirs.key, theirs.certificate, "--add-cert-file", authority.certificate]
    with (
        a_dicomweb_orthanc(tmp_path / "orthanc") as (archive, url),
        storescp(
            tmp_path / "received", "PACS", options=[*map(str, tls), "--require-peer-cert"]
        ) as secure,
        a_gateway(
            tmp_path / "gateway",
            triton=triton.url,
            results=SEGMENTATIONS,
            dicom=dicom(
                [
                    {
                        "name": "web",
                        "dicomweb": {"url": url, "plain-http": True},
                        "confirm": "query",
                        "confirm-first-s": 0.2,
                    },
                    {
                        "name": "archive",
                        "host-ip": archive.host,
                        "port": archive.dicom_port,
                        "ae-title": archive.ae_title,
                        "confirm": "storage-commitment",
                        "confirm-first-s": 0.2,
                    },
                    place(
                        "secure",
                        secure.port,
                        tls={
                            "ca-file": str(authority.certificate),
                            "certificate-file": str(ours.certificate),
                            "key-file": str(ours.key),
                            "certificates": ["archive"],
                        },
                    ),
                ],
                host="0.0.0.0",
            ),
        ) as gateway,
    ):
        archive.put(
            "/modalities/tritome",
            {
                "AET": "TRITOME",
                "Host": archive.our_host,
                "Port": gateway.port,
                "AllowStorageCommitment": True,
            },
        )
        files = write_series(tmp_path / "study", a_ct_series(frames=6))
        assert gateway.send(files).exit_code == 0
        (job,) = gateway.wait_for_jobs(1)
        story = "\n".join(gateway.story(job))
        (uid,) = gateway.results(job)
        stored = archive.sop_instance_uids()

    assert job.state is JobState.DELIVERED, story
    assert stored == [uid]
    assert len(secure.received()) == 1
    assert "web: proven by QIDO-RS" in story
    assert "archive: proven by storage commitment" in story


def job_state(gateway: GatewayProcess, job: Job) -> JobState:
    """As it is now."""
    return next(one.state for one in gateway.jobs() if one.job_id == job.job_id)
