"""Masks on resampled volumes lie on the source instances, shown by re-reading the SEG.

The pipeline marks what is above a threshold in the volume that it was given, and a ball drawn
in patient coordinates. Both are held against the source instances alone: the threshold on
their own pixels, the ball at their own positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom import Dataset

from dicom_gateway.records import JobState, ObjectKind
from tests.support.dicom import a_ct_series, write_series
from tests.support.recording_triton import BALL_MM, a_recording_pipeline, recordings
from tests.support.road import GatewayProcess, a_gateway
from tests.support.series import REAL_SERIES
from tests.support.small_triton import SmallTriton
from tests.support.volumes import patient_coordinates, sampled

pytestmark = pytest.mark.system

BONE_HU = 300.0


@dataclass(frozen=True)
class Bench:
    """A gateway and what its pipelines wrote down."""

    gateway: GatewayProcess
    records: Path
    results: Path


@dataclass(frozen=True)
class Landed:
    """A SEG re-read from its file, frame by frame, beside the source instances.

    Attributes:
        bone: Dice of label 1 with the threshold on the sources' own pixels.
        moved: The best of the same Dice with the mask moved by one voxel in any direction.
        ball_outside_mm: How far the outermost voxel of the ball lies beyond it.
        ball_missing_mm: How far inside the ball a voxel lies that isn't marked.
        off_mm: Largest distance between a frame of the SEG and the source it references.
        referenced: Source instances that frames of the SEG reference.
    """

    bone: float
    moved: float
    ball_outside_mm: float
    ball_missing_mm: float
    off_mm: float
    referenced: int


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """AE title BONE marks bone, NOISE what is above the middle of scrambled pixels."""
    folder = tmp_path_factory.mktemp("land")
    repository, records = folder / "repository", folder / "records"
    a_recording_pipeline(repository, records, "bone", threshold=BONE_HU)
    a_recording_pipeline(repository, records, "noise", threshold=-900.0)
    titles = [
        {"ae-title": "BONE", "pipelines": ["bone"]},
        {"ae-title": "NOISE", "pipelines": ["noise"]},
    ]
    scp = {
        "host": "127.0.0.1",
        "port": 0,
        "ae-titles": titles,
        "sources": [{"ae-title": "SCANNER"}],
    }
    (folder / "triton").mkdir()
    with (
        SmallTriton(folder / "triton", repository) as triton,
        a_gateway(folder / "gateway", triton=triton.url, dicom={"scp": scp}) as gateway,
    ):
        yield Bench(gateway, records, folder / "gateway" / "data" / "results")


@pytest.mark.parametrize(
    ("name", "called", "threshold", "dice"),
    [
        # A real head: skull and skull base, thin structures between thick slices.
        ("v03", "BONE", BONE_HU, 0.97),
        # Scrambled pixels have no anatomy: exact where planes are frames ...
        ("v04", "NOISE", -900.0, 1.0),
        # ... and where straightening mixes neighbouring pixels of noise, less than tissue.
        ("v06", "NOISE", -900.0, 0.90),
    ],
)
def test_real_masks_land_on_their_source_instances(
    bench: Bench, name: str, called: str, threshold: float, dice: float
) -> None:
    """Tilted and gapped: each frame of the SEG is its source's, and marks the same anatomy."""
    folders = sorted(REAL_SERIES.glob(f"{name}_*"))
    if not folders:
        pytest.skip("the real series are not on this machine; generated ones are tested always")
    files = sorted(path for path in (folders[0] / "dicom").rglob("*") if path.is_file())
    landed = _sent(bench, files, called, threshold)
    print(f"\n{name}: {landed}")
    _is_right(landed, dice)


TWINS = {
    "tilted and gapped head": {"tilt_degrees": 18.5, "gap_at": (4, 9), "spacing_mm": 4.0},
    "missing slice": {"gap_at": 6, "spacing_mm": 5.0},
    "tilted the other way": {"tilt_degrees": -14.0, "spacing_mm": 4.8},
}


@pytest.mark.parametrize("name", TWINS)
def test_generated_masks_land_on_their_source_instances(
    bench: Bench, tmp_path: Path, name: str
) -> None:
    """The same with a skull drawn in patient coordinates, on every machine."""
    how = TWINS[name]
    series = a_ct_series(
        16, rows=128, columns=128, pixel_spacing_mm=(1.5, 1.5), origin_lps_mm=(-95, -95, -35), **how
    )
    sampled(series, _skull)
    landed = _sent(bench, write_series(tmp_path, series), "BONE", BONE_HU)
    print(f"\n{name}: {landed}")
    _is_right(landed, 0.93)


def _skull(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """A shell of bone around a brain, an ellipsoid that is longer to the front."""
    away = np.linalg.norm(points / np.array([62.0, 78.0, 70.0]), axis=-1)
    return np.interp(away, [0, 0.82, 0.9, 1.0, 1.08, 2], [35, 40, 1000, 1000, -1000, -1000])


def _is_right(landed: Landed, dice: float) -> None:
    assert landed.bone >= dice
    # A mask that is a voxel off would fit better where it was moved to.
    assert landed.moved < landed.bone
    assert landed.off_mm < 1e-3
    assert landed.ball_outside_mm < 0
    assert landed.ball_missing_mm < 0


def _sent(bench: Bench, files: Sequence[Path], called: str, threshold: float) -> Landed:
    before = {job.job_id for job in bench.gateway.jobs()}
    sent = bench.gateway.send(files, called=called)
    assert sent.exit_code == 0, sent.output
    jobs = bench.gateway.wait_for_jobs(len(before) + 1)
    (job,) = [one for one in jobs if one.job_id not in before]
    assert job.state is JobState.DELIVERED, job.failure_reason
    assert any("resampled" in line for line in bench.gateway.story(job))
    (uid,) = bench.gateway.results(job, ObjectKind.SEGMENTATION)
    (volume,) = recordings(bench.records, job.job_id)
    sources = {str(ds.SOPInstanceUID): ds for ds in map(pydicom.dcmread, files)}
    steps = np.abs(volume.affine_lps[:3, :3]).sum(axis=1)
    half_voxel_mm = float(np.linalg.norm(steps) / 2)
    return _compared(
        bench.results / f"{uid}.dcm", sources, threshold, volume.middle_lps_mm, half_voxel_mm
    )


def _compared(
    path: Path,
    sources: dict[str, Dataset],
    threshold: float,
    middle_lps_mm: NDArray[np.float64],
    half_voxel_mm: float,
) -> Landed:
    """Reads the SEG with highdicom, source instance by source instance."""
    seg = hd.seg.segread(path)
    uids = list(sources)
    masks = seg.get_pixels_by_source_instance(
        uids, assert_missing_frames_are_empty=True, ignore_spatial_locations=False
    ).astype(bool)
    off_mm, referenced = 0.0, set()
    for groups in seg.PerFrameFunctionalGroupsSequence:
        (source,) = groups.DerivationImageSequence[0].SourceImageSequence
        referenced.add(str(source.ReferencedSOPInstanceUID))
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        true = np.array(sources[str(source.ReferencedSOPInstanceUID)].ImagePositionPatient, float)
        off_mm = max(off_mm, float(np.linalg.norm(position - true)))
    both = np.zeros(2)
    shifts = [(-1, 0), (1, 0), (0, -1), (0, 1)]
    moved = np.zeros((len(shifts), 2))
    outside = missing = -np.inf
    for mask, uid in zip(masks, uids, strict=True):
        ds = sources[uid]
        above, ball = mask[..., 0], mask[..., 1]
        away = np.linalg.norm(_places(ds) - middle_lps_mm, axis=-1)
        if ball.any():
            outside = max(outside, float(away[ball].max()) - BALL_MM / 2 - half_voxel_mm)
        if (~ball).any():
            missing = max(missing, BALL_MM / 2 - float(away[~ball].min()) - half_voxel_mm)
        elsewhere = away > BALL_MM / 2 + half_voxel_mm  # there label 1 isn't covered
        values = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        true_mask = (values > threshold) & elsewhere
        both += _overlap(true_mask, above & elsewhere)
        for n, shift in enumerate(shifts):
            moved[n] += _overlap(true_mask, np.roll(above, shift, axis=(0, 1)) & elsewhere)
    return Landed(
        bone=float(both[0] / both[1]),
        moved=float((moved[:, 0] / moved[:, 1]).max()),
        ball_outside_mm=outside,
        ball_missing_mm=missing,
        off_mm=off_mm,
        referenced=len(referenced & set(uids)),
    )


def _places(ds: Dataset) -> NDArray[np.float64]:
    """LPS millimetres of the pixels of a source instance, [J, I, 3]."""
    orientation = np.array(ds.ImageOrientationPatient, float)
    affine = np.eye(4)
    affine[:3, 0] = orientation[:3] * float(ds.PixelSpacing[1])
    affine[:3, 1] = orientation[3:] * float(ds.PixelSpacing[0])
    affine[:3, 3] = np.array(ds.ImagePositionPatient, float)
    return patient_coordinates((1, ds.Rows, ds.Columns), affine)[0]


def _overlap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The two numbers of Dice's coefficient, to be summed."""
    return np.array([2.0 * (one & other).sum(), float(one.sum() + other.sum())])
