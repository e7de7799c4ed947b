"""Series, jobs and results in a real index, without a DICOM file in sight.

Comes in: an engine from `open_database`. Goes out: rows as the store and the workers write
them, and the records that belong to them. Survives a crash: the index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import sqlalchemy as sa
from pydicom import dcmread
from pydicom.uid import CTImageStorage, SegmentationStorage, generate_uid

from dicom_gateway.database import instances, jobs, now_s, transaction
from dicom_gateway.jobs import JobQueue
from dicom_gateway.jobs.owner import this_process
from dicom_gateway.records import Instance, Job, Priority, Result, Series
from tests.support.dicom import a_ct_series, write_series


def a_kept_series(engine: sa.Engine, folder: Path, frames: int = 3) -> Series:
    """A series whose instances are rows of the index, as after `store`."""
    study, series = generate_uid(), generate_uid()
    kept = tuple(a_kept_instance(engine, folder, study, series) for _ in range(frames))
    return Series(
        series_instance_uid=series,
        study_instance_uid=study,
        modality="CT",
        called_ae_title="LUNG",
        calling_ae_title="CT_1",
        instances=kept,
    )


def a_kept_instance(engine: sa.Engine, folder: Path, study: str, series: str) -> Instance:
    """One row of `instances`."""
    uid = generate_uid()
    one = Instance(
        sop_instance_uid=uid,
        sop_class_uid=CTImageStorage,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        series_instance_uid=series,
        study_instance_uid=study,
        modality="CT",
        path=folder / f"{uid}.dcm",
        sha256=hashlib.sha256(uid.encode()).hexdigest(),
        size_bytes=1000,
    )
    with transaction(engine) as connection:
        connection.execute(
            instances.insert().values(
                sop_instance_uid=one.sop_instance_uid,
                sha256=one.sha256,
                sop_class_uid=one.sop_class_uid,
                transfer_syntax_uid=one.transfer_syntax_uid,
                series_instance_uid=series,
                study_instance_uid=study,
                modality=one.modality,
                path=one.path.name,
                size_bytes=one.size_bytes,
                received_at_s=now_s(),
            )
        )
    return one


def enqueue(
    queue: JobQueue,
    engine: sa.Engine,
    series: Series,
    *,
    priority: Priority = Priority.NORMAL,
    destinations: Iterable[str] = ("pacs",),
    version: str = "1.0.0",
) -> Job | None:
    """The job for a series, or None where it exists."""
    with transaction(engine) as connection:
        return queue.enqueue(
            connection,
            series,
            pipeline="lung_ct",
            pipeline_version=version,
            priority=priority,
            destinations=tuple(destinations),
        )


def a_job(
    queue: JobQueue,
    engine: sa.Engine,
    folder: Path,
    *,
    priority: Priority = Priority.NORMAL,
    destinations: Iterable[str] = ("pacs",),
) -> Job:
    """A waiting job for a series of its own."""
    series = a_kept_series(engine, folder, frames=1)
    job = enqueue(queue, engine, series, priority=priority, destinations=destinations)
    assert job is not None
    return job


def expire_leases(engine: sa.Engine) -> None:
    """Whoever works on a job has not been heard of for too long."""
    with transaction(engine) as connection:
        connection.execute(jobs.update().values(lease_until_s=now_s() - 1))


def a_result(folder: Path, job: Job, content: bytes = b"a segmentation") -> Result:
    """One made object; its UID is the same however often the job makes it."""
    uid = f"2.25.{int(job.job_id, 16)}"
    path = folder / "results" / f"{uid}.dcm"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return Result(
        sop_instance_uid=uid,
        sop_class_uid=SegmentationStorage,
        job_id=job.job_id,
        output="MASK",
        path=path,
        size_bytes=len(content),
    )


def a_finished_job(
    queue: JobQueue, engine: sa.Engine, folder: Path, *destinations: str
) -> tuple[Job, str]:
    """A job whose one result waits for its destinations; and the result's UID."""
    a_job(queue, engine, folder, destinations=destinations)
    job = queue.claim(this_process())
    assert job is not None
    (path,) = write_series(folder / "results" / job.job_id, a_ct_series(frames=1))
    made = dcmread(path)
    result = Result(
        sop_instance_uid=made.SOPInstanceUID,
        sop_class_uid=made.SOPClassUID,
        job_id=job.job_id,
        output="MASK",
        path=path,
        size_bytes=path.stat().st_size,
    )
    queue.finish(job, [result])
    return job, str(made.SOPInstanceUID)
