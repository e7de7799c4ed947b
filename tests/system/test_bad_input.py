"""What a department really sends: wrong titles, broken series, things nobody asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pynetdicom import AE
from pynetdicom.sop_class import Verification

from clients.demo.phantom_study import PhantomStudy
from dicom_gateway.records import JobState
from ensemble_builder.server import TritonServer
from tests.support.dicom import CANARY, a_ct_series, an_object_without_pixels, write_series
from tests.support.patience import until
from tests.support.peers import Storescp, echoscu
from tests.support.road import GatewayProcess, Pacs, a_gateway

pytestmark = pytest.mark.system


@pytest.fixture
def gateway(
    tmp_path: Path, triton_server: TritonServer, receiving_pacs: Storescp
) -> Iterator[GatewayProcess]:
    """A gateway with one destination."""
    pacs = Pacs("pacs", receiving_pacs.host, receiving_pacs.port, receiving_pacs.ae_title)
    with a_gateway(tmp_path / "gateway", triton=triton_server.grpc_url, pacs=[pacs]) as found:
        yield found


@pytest.mark.parametrize(
    ("calling", "called", "reason"),
    [
        ("STRANGER", "LUNG", 3),  # PS3.8 9.3.4: calling AE title not recognised
        ("SCANNER", "SPLEEN", 7),  # called AE title not recognised
    ],
)
def test_unknown_titles_are_rejected_with_the_right_reason(
    gateway: GatewayProcess, calling: str, called: str, reason: int
) -> None:
    """A rejection is permanent, from the service user, and says which title it was."""
    ae = AE(ae_title=calling)
    ae.add_requested_context(Verification)
    association = ae.associate("127.0.0.1", gateway.port, ae_title=called)
    answer: Any = association.acceptor.primitive
    assert association.is_rejected
    assert (answer.result, answer.result_source, answer.diagnostic) == (1, 1, reason)
    assert echoscu("127.0.0.1", gateway.port, "SCANNER", "LUNG").exit_code == 0


BAD_SERIES = {
    "missing_slices": {"gap_at": 9},
    "several_orientations": {"two_orientations": True},
    "broken_pixel_data": {"broken_at": 5},
    "duplicate_positions": {"duplicate_at": 4},
    "gantry_tilt": {"tilt_degrees": 12.0},
}


def test_a_bad_series_is_a_named_failure_and_the_next_study_goes_through(
    gateway: GatewayProcess, chest_study: PhantomStudy, receiving_pacs: Storescp, tmp_path: Path
) -> None:
    """Each fails by its own name with a sentence a person can act on; none blocks the next."""
    expected: dict[str, str] = {}
    for code, fault in BAD_SERIES.items():
        series = a_ct_series(20, **fault)  # type: ignore[arg-type]
        expected[str(series[0].SeriesInstanceUID)] = code
        assert gateway.send(write_series(tmp_path / code, series)).exit_code == 0
    assert gateway.send(chest_study.files).exit_code == 0
    jobs = gateway.wait_for_jobs(len(BAD_SERIES) + 1)
    failed = {job.series_instance_uid: job for job in jobs if job.state is JobState.FAILED}
    assert {uid: job.failure_code for uid, job in failed.items()} == expected
    for job in failed.values():
        assert len((job.failure_reason or "").split()) >= 8, job.failure_reason
    assert [job.state for job in jobs if job.series_instance_uid not in failed] == [
        JobState.DELIVERED
    ]
    assert len(receiving_pacs.received()) == 2  # a SEG and an SR
    assert CANARY not in gateway.log()
    assert not any(CANARY in (job.failure_reason or "") for job in jobs)


def test_what_no_pipeline_wants_is_kept_and_said_so(
    gateway: GatewayProcess, tmp_path: Path
) -> None:
    """An MR series and an SR are acknowledged, kept, and listed with the reason."""
    mr = a_ct_series(4, modality="MR", sop_class_uid="1.2.840.10008.5.1.4.1.1.4")
    report: Dataset = an_object_without_pixels()
    for name, series in (("mr", mr), ("sr", [report])):
        assert gateway.send(write_series(tmp_path / name, series)).exit_code == 0
    uids = {str(mr[0].SeriesInstanceUID), str(report.SeriesInstanceUID)}
    until(lambda: uids <= gateway.ignored().keys(), timeout_s=60)
    assert all("lung_ct" in reason or "LUNG" in reason for reason in gateway.ignored().values())
    assert gateway.jobs() == []
    kept = [p for p in (gateway.folder / "data" / "instances").rglob("*.dcm") if p.is_file()]
    assert len(kept) == len(mr) + 1


def test_jobs_wait_for_triton_and_finish_when_it_is_back(
    tmp_path: Path,
    triton_server: TritonServer,
    receiving_pacs: Storescp,
    chest_study: PhantomStudy,
) -> None:
    """Triton away: the study is acknowledged and waits; nobody has to send it again."""
    pacs = Pacs("pacs", receiving_pacs.host, receiving_pacs.port, receiving_pacs.ae_title)
    nowhere = "127.0.0.1:9"  # the discard port: nobody listens
    with a_gateway(tmp_path / "gateway", triton=nowhere, pacs=[pacs]) as gateway:
        assert gateway.send(chest_study.files).exit_code == 0
        until(lambda: "riton" in gateway.log(), timeout_s=60)
        assert receiving_pacs.received() == []
        gateway.stop()
        gateway.settings["triton"]["url"] = triton_server.grpc_url
        gateway.start()
        (job,) = gateway.wait_for_jobs(1)
        assert job.state is JobState.DELIVERED
    assert len(receiving_pacs.received()) == 2  # a SEG and an SR
