"""A worker's last step: what was found in a resampled volume goes out on its source frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pydicom
import pytest
import sqlalchemy as sa

from dicom_gateway.assemble.arena import Arena
from dicom_gateway.assemble.decoders import DecoderPool
from dicom_gateway.assemble.plan import plan_volumes
from dicom_gateway.assemble.policy import Allowance
from dicom_gateway.assemble.resample import landed_volume
from dicom_gateway.assemble.volume import assemble
from dicom_gateway.config import AssemblySettings
from dicom_gateway.config_delivery import ResultSettings
from dicom_gateway.encode import SourceReading
from dicom_gateway.jobs import JobQueue, JobRun
from dicom_gateway.processing import Processing
from dicom_gateway.records import OBJECT_KIND_OF_SOP_CLASS, Inference, ObjectKind
from tests.support.dicom import a_ct_series
from tests.support.jobs import a_job
from tests.support.results import FINDINGS
from tests.support.series import a_contract, a_kept_series

SR, SC = ObjectKind.STRUCTURED_REPORT, ObjectKind.SECONDARY_CAPTURE


@pytest.fixture
def pool() -> Iterator[DecoderPool]:
    """One decoder."""
    with DecoderPool(1) as pool:
        yield pool


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Arena]:
    """An arena beside the test's files."""
    folder = tmp_path / "shm"
    folder.mkdir()
    with Arena(64 << 20, folder) as arena:
        yield arena


@pytest.mark.parametrize("how", [{"tilt_degrees": 15.0}, {"gap_at": 2}])
def test_scores_of_a_resampled_series_name_its_source_frames(
    queue: JobQueue,
    engine: sa.Engine,
    tmp_path: Path,
    arena: Arena,
    pool: DecoderPool,
    how: dict[str, Any],
) -> None:
    """There is no mask that could be brought back; the results come all the same."""
    datasets = a_ct_series(7, rows=24, columns=28, **how)
    series = a_kept_series(tmp_path / "source", datasets)
    (plan,) = plan_volumes(series, Allowance(resample=True))
    volume = assemble(plan, series, arena, pool)
    assert volume.resampling is not None
    contract = replace(a_contract(FINDINGS), outputs=(FINDINGS,))
    nobody = cast("Any", None)  # neither index nor Triton is asked any more
    processing = Processing(
        index=nobody,
        triton=nobody,
        arena=arena,
        decoders=pool,
        settings=AssemblySettings(),
        results=tmp_path / "results",
        read_header=nobody,
        admission=nobody,
        arena_admission=nobody,
        objects={contract.pipeline: ResultSettings(objects=(SR, SC))},
    )
    run = JobRun(a_job(queue, engine, tmp_path), queue)
    inference = Inference({}, 1.0, scores={"SCORES": np.array([0.25, 0.5], np.float32)})
    reading = SourceReading(landed_volume(volume))
    made = processing._encoded(run, contract, plan, volume, inference, 0, reading)
    assert {OBJECT_KIND_OF_SOP_CLASS[one.sop_class_uid] for one in made} == {SR, SC}
    (picture,) = (pydicom.dcmread(one.path) for one in made if one.sop_class_uid.endswith(".7"))
    named = [one.ReferencedSOPInstanceUID for one in picture.SourceImageSequence]
    assert named == [str(ds.SOPInstanceUID) for ds in datasets]
