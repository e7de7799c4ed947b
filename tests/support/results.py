"""Volumes and results without a gateway: `a_volume(folder, ...)`, `results_of(mask, volume, ...)`.

Comes in: how a series is made. Goes out: a `Volume` as `assemble` describes it, whose voxels
are nowhere, and the objects that the gateway makes of a mask on it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset
from scipy.ndimage import gaussian_filter

from dicom_gateway.encode import encode_results
from dicom_gateway.encode.gate import Gate, read_sources_anew
from dicom_gateway.records import (
    OBJECT_KIND_OF_SOP_CLASS,
    ArenaSpan,
    CodedConcept,
    Inference,
    ObjectKind,
    Output,
    Result,
    ScoredClass,
    Slice,
    Volume,
)
from tests.support.dicom import a_ct_series
from tests.support.series import LUNGS, a_contract, a_job, a_kept_series

OBLIQUE = (0.9393727, 0.3355129, -0.0709976, -0.2983387, 0.9085405, 0.2925)
FINDINGS = Output(
    "SCORES",
    "scores",
    "FP32",
    (2,),
    classes=(
        ScoredClass("Pneumothorax", CodedConcept("36118008", "SCT", "Pneumothorax")),
        ScoredClass("Something of our own"),
    ),
)


def unit(orientation: Sequence[float]) -> tuple[float, ...]:
    """Two directions made orthogonal and of length one."""
    row = np.array(orientation[:3]) / np.linalg.norm(orientation[:3])
    column = np.array(orientation[3:]) - (row @ np.array(orientation[3:])) * row
    return (*row, *(column / np.linalg.norm(column)))


def a_volume(folder: Path, datasets: Sequence[Dataset] | None = None, **how: Any) -> Volume:
    """A volume of generated single frames (`a_ct_series`), kept as files under `folder`."""
    series = list(datasets or a_ct_series(**{"frames": 5, "rows": 23, "columns": 29, **how}))
    kept = a_kept_series(folder / "source", series)
    first, last = series[0], series[-1]
    cosines = np.array(first.ImageOrientationPatient, float)
    affine = np.eye(4)
    affine[:3, 0] = cosines[:3] * float(first.PixelSpacing[1])
    affine[:3, 1] = cosines[3:] * float(first.PixelSpacing[0])
    start, end = (np.array(one.ImagePositionPatient, float) for one in (first, last))
    normal = np.cross(cosines[:3], cosines[3:])
    affine[:3, 2] = (end - start) / (len(series) - 1) if len(series) > 1 else normal
    affine[:3, 3] = start
    return Volume(
        image=ArenaSpan("", 0, 0),
        dtype="INT16",
        shape_kji=(len(series), int(first.Rows), int(first.Columns)),
        rescale=np.ones((len(series), 2)),
        affine_lps=affine,
        slices=tuple(
            Slice(
                str(ds.SOPClassUID),
                str(ds.SOPInstanceUID),
                1,
                tuple(float(mm) for mm in ds.ImagePositionPatient),  # type: ignore[arg-type]
            )
            for ds in series
        ),
        headers=tuple(one.path for one in kept.instances),
        series=kept,
    )


def results_of(
    mask: NDArray[Any] | None,
    volume: Volume,
    folder: Path,
    kinds: Collection[ObjectKind] = tuple(ObjectKind),
    *,
    output: Output = LUNGS,
    scores: NDArray[np.float32] | None = None,
    job_id: str = a_job().job_id,
    **more: Any,
) -> dict[ObjectKind, Result]:
    """The objects of a mask, or of scores, by kind."""
    contract = replace(a_contract(output), outputs=(output,))
    inference = Inference(
        labelmaps={} if mask is None else {output.name: mask},
        duration_s=1.0,
        scores={} if scores is None else {output.name: scores},
    )
    made = encode_results(
        inference, volume, contract, a_job(job_id), folder / "results", kinds, **more
    )
    by_uid = {one.sop_instance_uid: one for one in made}
    assert len(by_uid) == len(made)
    return {kind_of(one): one for one in made}


def kind_of(result: Result) -> ObjectKind:
    """By its SOP class."""
    return OBJECT_KIND_OF_SOP_CLASS[result.sop_class_uid]


def pixels_of(volume: Volume) -> Callable[[Sequence[int]], NDArray[np.float32]]:
    """Gives source frames by their index, [n, J, I], as `encode_results` wants them."""

    def pixels(planes: Sequence[int]) -> NDArray[np.float32]:
        shown = [pydicom.dcmread(volume.headers[k]).pixel_array for k in planes]
        return np.stack(shown).astype(np.float32)

    return pixels


def random_lungs(volume: Volume, seed: int) -> NDArray[np.uint8]:
    """Blobs without any symmetry: label 1 in the patient's left half, 2 in the right."""
    rng = np.random.default_rng(seed)
    _, rows, columns = volume.shape_kji
    field = gaussian_filter(rng.normal(size=volume.shape_kji), (0.7, 2, 2))
    blobs = field > np.quantile(field, 0.7)
    mask = np.zeros(volume.shape_kji, np.uint8)
    half = columns // 2
    mask[:, :, :half] = 2 * blobs[:, :, :half]
    mask[:, :, half:] = blobs[:, :, half:]
    # Nothing at the edges, so that a mask moved by one loses nothing.
    mask[[0, -1]] = 0
    mask[:, [0, -1]] = 0
    mask[:, :, [0, -1]] = 0
    mask[1, 1 + seed % (rows - 2), columns - 2] = 1
    return mask


def pass_gate(
    result: Result,
    mask: NDArray[Any],
    volume: Volume,
    output: Output = LUNGS,
    segmentation: Result | None = None,
) -> None:
    """Puts an object through the geometry gate once more, as it lies on the disk now."""
    truth = read_sources_anew(volume)
    kind = kind_of(result)
    gate = Gate(result.path, truth, result.sop_instance_uid, result.sop_class_uid, kind.value)
    if kind is ObjectKind.STRUCTURED_REPORT:
        named = None
        if segmentation is not None:
            series = str(pydicom.dcmread(segmentation.path).SeriesInstanceUID)
            named = segmentation.sop_class_uid, segmentation.sop_instance_uid, series
        gate.volumes(mask, output, named)
    elif kind is ObjectKind.RT_STRUCTURE_SET:
        gate.structure_set(mask, output)
    elif kind is ObjectKind.SECONDARY_CAPTURE:
        gate.picture(mask, output, pixels_of(volume))
    else:
        gate.segmentation(mask, output, binary=kind is ObjectKind.SEGMENTATION)
