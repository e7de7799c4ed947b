"""Label map segmentations, whatever the mask was given in."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest

from dicom_gateway.records import ObjectKind
from tests.support.results import a_volume, results_of
from tests.support.series import LEFT_LUNG, LUNGS

LABELMAP = ObjectKind.LABELMAP_SEGMENTATION


@pytest.mark.parametrize(
    ("labels", "dtype", "bits"),
    [
        ((1, 2, 3), np.uint8, 8),
        ((1, 2, 3), np.uint16, 8),
        ((300, 1, 65535), np.uint16, 8),
        (range(1, 256), np.uint16, 8),
        (range(1, 257), np.uint16, 16),
    ],
    ids=["few", "few in 16 bits", "large labels", "as many as fit", "one more"],
)
def test_pixels_have_the_bits_that_the_header_says(
    tmp_path: Path, labels: Sequence[int], dtype: type, bits: int
) -> None:
    """As few as the segment numbers need, and they come back as the labels that they were."""
    volume = a_volume(tmp_path, frames=4, rows=16, columns=20)
    segments = tuple(
        dataclasses.replace(LEFT_LUNG, label=label, name=f"Part {label}", type_modifier=None)
        for label in labels
    )
    output = dataclasses.replace(LUNGS, datatype=np.dtype(dtype).name.upper(), segments=segments)
    rng = np.random.default_rng(3)
    mask = rng.choice([0, *labels], size=volume.shape_kji).astype(dtype)
    made = results_of(mask, volume, tmp_path, (LABELMAP,), output=output)[LABELMAP]
    ds = pydicom.dcmread(made.path)
    assert (ds.BitsAllocated, ds.BitsStored, ds.HighBit) == (bits, bits, bits - 1)
    assert len(ds.PixelData) == mask.size * bits // 8
    seg = hd.seg.segread(made.path)
    uids = [one.sop_instance_uid for one in volume.slices]
    numbers = seg.get_pixels_by_source_instance(uids, combine_segments=True)
    np.testing.assert_array_equal(np.array([0, *labels])[numbers], mask)
