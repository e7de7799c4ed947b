"""The judge among real rooms: odd series, changed minds, and jobs that are overtaken.

Triton is away in all of these; the contract is the one that was seen before, as after a
restart of the gateway without it.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog.testing
from pydicom import Dataset

from dicom_gateway.assemble.headers import Header, read_header
from dicom_gateway.config import GatewaySettings
from dicom_gateway.errors import InferenceRejected, UnusableSeries
from dicom_gateway.infer import TritonClient
from dicom_gateway.jobs import JobQueue
from dicom_gateway.judge import Judge
from dicom_gateway.records import Contract, Instance, Job, JobState
from tests.support.dicom import CANARY, a_ct_series, an_arrival
from tests.support.gateway import Keeping, a_store
from tests.support.patience import until
from tests.support.processes import free_port

CONTRACT = """{"schema_version": 1, "builder_version": "0.1.0", "pipeline": "lung_ct",
"version": "1.0.0", "input": {"kind": "volume", "modality": "CT"},
"outputs": [{"name": "MASK", "kind": "labelmap", "datatype": "UINT8", "dims": [-1, -1, -1]}]}"""


@dataclass(frozen=True)
class Court:
    """A running judge and what it judges."""

    keeping: Keeping
    queue: JobQueue

    def keep(self, datasets: list[Dataset], association_id: str = "a1") -> list[Instance]:
        """Keeps them as if they came by one association that is released then."""
        kept = [
            self.keeping.store.keep(an_arrival(ds, association_id=association_id))
            for ds in datasets
        ]
        self.keeping.index.association_ended(association_id, in_order=True)
        return kept

    def jobs_of(self, datasets: list[Dataset]) -> list[Job]:
        """The jobs of a series, oldest first."""
        uid = datasets[0].SeriesInstanceUID
        jobs = [job for job in self.queue.list_jobs() if job.series_instance_uid == uid]
        return sorted(jobs, key=lambda job: job.created_at_s)

    def story(self, job: Job) -> str:
        """All lines of a job's story."""
        return "\n".join(f"{one.stage}: {one.note}" for one in self.queue.events(job.job_id))


@contextmanager
def a_court(
    folder: Path,
    *,
    triton: type[TritonClient] = TritonClient,
    read: Callable[[Path], Header] = read_header,
) -> Iterator[Court]:
    """Runs a judge while the block lasts; it must be alive at the end."""
    settings = GatewaySettings.model_validate(
        {
            "dicom": {
                "scp": {
                    "ae-titles": [{"ae-title": "LUNG", "pipelines": ["lung_ct"]}],
                    "reject-unknown-sources": False,
                }
            },
            "triton": {"url": f"127.0.0.1:{free_port()}"},
            "completeness": {"after-release-s": 0.05, "quiet-s": 0.2, "give-up-s": 0.3},
        }
    )
    seen = folder / "contracts"
    seen.mkdir(parents=True)
    (seen / "lung_ct.json").write_text(CONTRACT, encoding="utf-8")
    with a_store(folder) as keeping:
        client = triton(settings.triton, seen)
        queue = JobQueue(keeping.engine, folder)
        judge = Judge(
            settings, keeping.engine, keeping.index, queue=queue, triton=client, read_header=read
        )
        thread = threading.Thread(target=judge.run)
        thread.start()
        try:
            yield Court(keeping, queue)
            assert thread.is_alive()
        finally:
            judge.stop()
            thread.join()
            client.close()


def with_three_bytes_of_bits_allocated(path: Path) -> None:
    """Bits Allocated is a US of two bytes; here it has three."""
    raw = path.read_bytes()
    element = struct.pack("<HH2sHH", 0x0028, 0x0100, b"US", 2, 16)
    assert raw.count(element) == 1
    path.write_bytes(raw.replace(element, struct.pack("<HH2sH", 0x28, 0x100, b"US", 3) + b"\0\1\2"))


def with_sequences_in_sequences(path: Path) -> None:
    """Three thousand levels of them, at the front of the data set."""
    raw = path.read_bytes()
    start = raw.index(b"\x08\x00\x05\x00CS")
    opening = struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    path.write_bytes(raw[:start] + 3000 * (opening + item) + raw[start:])


def with_a_value_representation_of_nobody(path: Path) -> None:
    """The VR of Transfer Syntax UID has a flipped byte."""
    raw = path.read_bytes()
    element = b"\x02\x00\x10\x00UI"
    assert raw.count(element) == 1
    path.write_bytes(raw.replace(element, b"\x02\x00\x10\x00U\xb6"))


def with_a_position_beyond_numbers(path: Path) -> None:
    """Image Position (Patient) with an exponent that nothing can be added to."""
    raw = path.read_bytes()
    start = raw.index(b"\x20\x00\x32\x00DS")
    (length,) = struct.unpack_from("<H", raw, start + 6)
    value = b"-120\\-110\\1.7e308".ljust(length)
    assert len(value) == length
    path.write_bytes(raw[: start + 8] + value + raw[start + 8 + length :])


@pytest.mark.parametrize(
    "damage",
    [
        with_three_bytes_of_bits_allocated,
        with_sequences_in_sequences,
        with_a_value_representation_of_nobody,
        with_a_position_beyond_numbers,
    ],
)
def test_a_damaged_instance_stops_nobody(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """Its series goes on to the worker, who names what is wrong; so does every other one."""
    odd = a_ct_series(6, spacing_mm=0.5, origin_lps_mm=(-120.0, -110.0, -300.0012345))
    sound = a_ct_series(4)
    with a_court(tmp_path) as court:
        for ds in odd:
            instance = court.keeping.store.keep(an_arrival(ds))
            if ds is odd[0] or damage is not with_a_position_beyond_numbers:
                damage(instance.path)
        court.keeping.index.association_ended("a1", in_order=True)
        court.keep(sound, "a2")

        until(lambda: court.jobs_of(odd) and court.jobs_of(sound))
        until(lambda: not court.keeping.index.open_series())


def test_a_series_that_nobody_foresaw_becomes_a_job_in_front_of_a_person(tmp_path: Path) -> None:
    """An error without a name: the log has places and no values, and the others go on."""
    odd, sound = a_ct_series(3), a_ct_series(3)
    odd_paths: set[Path] = set()

    def read(path: Path) -> Header:
        if path in odd_paths:
            msg = f"{CANARY} in a foreign error"
            raise ZeroDivisionError(msg)
        return read_header(path)

    with structlog.testing.capture_logs() as logs, a_court(tmp_path, read=read) as court:
        odd_paths |= {court.keeping.store.keep(an_arrival(ds)).path for ds in odd}
        court.keeping.index.association_ended("a1", in_order=True)
        court.keep(sound, "a2")
        until(lambda: court.jobs_of(odd) and court.jobs_of(sound))

        (job,) = court.jobs_of(odd)
        assert "could not be judged (ZeroDivisionError)" in court.story(job)
        assert not court.keeping.index.open_series()
    told = [log for log in logs if log["event"] == "series_not_judged"]
    assert [log["series_instance_uid"] for log in told] == [odd[0].SeriesInstanceUID]
    assert CANARY not in str(logs)


class ARefusingTriton(TritonClient):
    """Triton answers, and does not let this gateway in."""

    def contract(self, pipeline: str) -> Contract:
        """Refuses."""
        msg = f"Triton does not let this gateway in: {pipeline}"
        raise InferenceRejected(msg)


def test_a_pipeline_that_refuses_to_say_what_it_wants_makes_a_job(tmp_path: Path) -> None:
    """The worker asks again and fails the job with Triton's reason."""
    series = a_ct_series(3)
    with a_court(tmp_path, triton=ARefusingTriton) as court:
        court.keep(series)
        until(lambda: court.jobs_of(series))


def test_a_late_instance_ends_the_job_that_still_waits(tmp_path: Path) -> None:
    """The new job has all instances; the old one says which took its place."""
    frames = a_ct_series(5)
    with a_court(tmp_path) as court:
        court.keep(frames[:4])
        until(lambda: court.jobs_of(frames))
        court.keep(frames[4:], "a2")
        until(lambda: len(court.jobs_of(frames)) == 2)
        until(lambda: court.jobs_of(frames)[0].state is JobState.SUPERSEDED)

        old, new = court.jobs_of(frames)
        until(lambda: new.job_id in court.story(old))
        assert new.state is JobState.WAITING
        assert len(court.keeping.index.instances_of_job(new.job_id).instances) == 5


def test_a_job_of_another_series_is_left_alone(tmp_path: Path) -> None:
    """Also while a late instance ends one beside it."""
    frames, other = a_ct_series(5), a_ct_series(3)
    with a_court(tmp_path) as court:
        court.keep(other)
        until(lambda: court.jobs_of(other))
        court.keep(frames[:4])
        until(lambda: court.jobs_of(frames))
        court.keep(frames[4:], "a2")
        until(lambda: court.jobs_of(frames)[0].state is JobState.SUPERSEDED)

        assert [job.state for job in court.jobs_of(other)] == [JobState.WAITING]


def test_sending_a_failed_series_again_corrected_makes_a_new_job(tmp_path: Path) -> None:
    """What the failure's sentence asks a person to do works."""
    frames = a_ct_series(4)
    with a_court(tmp_path) as court:
        court.keep(frames)
        until(lambda: court.jobs_of(frames))
        failing = court.queue.claim("worker")
        assert failing is not None
        court.queue.fail(failing, UnusableSeries("broken; send it again", code="no_geometry"))
        for ds in frames:
            ds.AcquisitionNumber = 7
        corrected = court.keep(frames, "a2")

        until(lambda: len(court.jobs_of(frames)) == 2)
        old, new = court.jobs_of(frames)
        assert (old.state, new.state) == (JobState.SUPERSEDED, JobState.WAITING)
        used = court.keeping.index.instances_of_job(new.job_id).instances
        assert {one.sha256 for one in used} == {one.sha256 for one in corrected}
