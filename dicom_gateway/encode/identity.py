"""The UIDs of results: the same job always makes the same object.

In: a job's id, the output, the kind of object and a number. Out: a UID. Pure, so a retry after
a crash at any point re-sends an object that the PACS may already have under the very same UID.

Source: PS3.5 B.2 (UUID derived UIDs under 2.25).
"""

from __future__ import annotations

import uuid

from dicom_gateway.records import Contract, ObjectKind

_RESULTS = uuid.UUID("0c6b8c0c-6b0a-5a55-9a3e-4f1d1c0a7e2b")
"""Namespace of our results (RFC 9562 5.5). Changing it would re-send every old result as a
new object."""

_MOST_VOLUMES = 1000
"""Of one series; far more than any has."""


def result_uid(
    job_id: str, output: str, index: int = 0, kind: ObjectKind = ObjectKind.SEGMENTATION
) -> str:
    """SOP Instance UID of the result number `index` that one output of a job has as `kind`."""
    return _uid(f"instance/{job_id}/{output}/{index}{_of(kind)}")


def result_series_uid(
    job_id: str, output: str, index: int = 0, kind: ObjectKind = ObjectKind.SEGMENTATION
) -> str:
    """Series Instance UID of the result number `index` that one output has as `kind`.

    One series for each: the volumes of a series may have different frames of reference, and
    a series has one modality.
    """
    which = f"series/{job_id}/{output}/{index}" if index else f"series/{job_id}/{output}"
    return _uid(f"{which}{_of(kind)}")


def series_uid_of_result(
    sop_instance_uid: str, job_id: str, output: str, kind: ObjectKind
) -> str | None:
    """The Series Instance UID of a result that this job made; None where its UID isn't ours.

    Both UIDs are made from the same words; only the number of the volume has to be found.
    """
    for index in range(_MOST_VOLUMES):
        if result_uid(job_id, output, index, kind) == sop_instance_uid:
            return result_series_uid(job_id, output, index, kind)
    return None


def tracking_uid(job_id: str, output: str, index: int, number: int) -> str:
    """What ties the measurements of one segment together (PS3.16 TID 1410: Tracking UID)."""
    return _uid(f"tracking/{job_id}/{output}/{index}/{number}")


def dimension_organization_uid(sop_instance_uid: str) -> str:
    """Of the frames of one object, which nothing else is organised with."""
    return _uid(f"dimensions/{sop_instance_uid}")


def device_uid(contract: Contract) -> str:
    """Of the observer: this version of a pipeline with these weights, wherever it runs."""
    weights = contract.weights.get("sha256", "")
    return _uid(f"device/{contract.pipeline}/{contract.version}/{weights}")


def stand_in_frame_of_reference_uid(series_instance_uid: str) -> str:
    """For a source series without a Frame of Reference UID: one of ours, always the same."""
    return _uid(f"frame-of-reference/{series_instance_uid}")


def stand_in_frame_uid(sop_instance_uid: str, frame_number: int) -> str:
    """For one frame of a multi-frame source, while a result is made; no result has it."""
    return _uid(f"frame/{sop_instance_uid}/{frame_number}")


def _of(kind: ObjectKind) -> str:
    # The first kind there was: its UIDs stay what they were.
    return "" if kind is ObjectKind.SEGMENTATION else f"/{kind.value}"


def _uid(name: str) -> str:
    return f"2.25.{uuid.uuid5(_RESULTS, name).int}"
