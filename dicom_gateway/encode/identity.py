"""The UIDs of results: the same job always makes the same object.

In: a job's id, the output and a number. Out: a UID. Pure, so a retry after a crash at any
point re-sends an object that the PACS may already have under the very same UID.

Source: PS3.5 B.2 (UUID derived UIDs under 2.25).
"""

from __future__ import annotations

import uuid

_RESULTS = uuid.UUID("0c6b8c0c-6b0a-5a55-9a3e-4f1d1c0a7e2b")
"""Namespace of our results (RFC 9562 5.5). Changing it would re-send every old result as a
new object."""


def result_uid(job_id: str, output: str, index: int = 0) -> str:
    """SOP Instance UID of the result number `index` of one output of a job."""
    return _uid(f"instance/{job_id}/{output}/{index}")


def result_series_uid(job_id: str, output: str, index: int = 0) -> str:
    """Series Instance UID of the result number `index` of one output of a job.

    One series for each: the volumes of a series may have different frames of reference.
    """
    return _uid(f"series/{job_id}/{output}/{index}" if index else f"series/{job_id}/{output}")


def stand_in_frame_of_reference_uid(series_instance_uid: str) -> str:
    """For a source series without a Frame of Reference UID: one of ours, always the same."""
    return _uid(f"frame-of-reference/{series_instance_uid}")


def stand_in_frame_uid(sop_instance_uid: str, frame_number: int) -> str:
    """For one frame of a multi-frame source, while a result is made; no result has it."""
    return _uid(f"frame/{sop_instance_uid}/{frame_number}")


def _uid(name: str) -> str:
    return f"2.25.{uuid.uuid5(_RESULTS, name).int}"
