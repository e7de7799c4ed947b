"""Nothing leaves that doesn't lie where its mask lay.

In: a finished SEG file, the mask and the volume it was made from. Out: nothing, or
`EncodingFailed`. The file is read again from the disk, and each frame is held against the
source instance it references: its position, orientation and the mask's bits there. So a
mistake of ours or of a library, in order, orientation or bits, can't go unnoticed.

Source: PS3.3 C.7.6.16 (functional groups), C.8.20.2 (BINARY: bits packed across frames).
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from dicom_gateway.errors import EncodingFailed
from dicom_gateway.records import Output, Volume

POSITION_TOLERANCE_MM = 1e-3
"""How far a frame may lie from its source instance; DS has 16 characters, so rounding stays
far below."""

ORIENTATION_TOLERANCE = 1e-5
"""How far its direction cosines may be from the volume's."""


def segment_numbers(
    mask: NDArray[np.uint8] | NDArray[np.uint16], output: Output
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Labels [K, J, I] -> segment numbers: 1, 2, ... in the order of the segment table."""
    if [segment.label for segment in output.segments] == list(range(1, len(output.segments) + 1)):
        return mask
    table = np.zeros(np.iinfo(mask.dtype).max + 1, dtype=mask.dtype)
    for number, segment in enumerate(output.segments, start=1):
        table[segment.label] = number
    return table[mask]  # type: ignore[return-value] # the dtype is the mask's


def verify_segmentation(
    path: Path,
    mask: NDArray[np.uint8] | NDArray[np.uint16],
    volume: Volume,
    output: Output,
) -> None:
    """Reads a SEG again and holds it against mask [K, J, I] and volume.

    Raises:
        EncodingFailed: (result_misplaced) a frame that isn't on its source instance,
            doesn't have its mask's bits, or is missing.
    """
    try:
        problem = _find_problem(pydicom.dcmread(path), mask, volume, output)
    except (
        InvalidDicomError,
        AttributeError,
        IndexError,
        KeyError,
        TypeError,
        ValueError,
        struct.error,
    ) as error:
        problem = f"it can't be read again ({type(error).__name__})"
    if problem is not None:
        msg = f"the finished segmentation is held back: {problem}; please report this"
        raise EncodingFailed(msg, code="result_misplaced")


def _find_problem(
    ds: Dataset,
    mask: NDArray[np.uint8] | NDArray[np.uint16],
    volume: Volume,
    output: Output,
) -> str | None:
    source = pydicom.dcmread(
        volume.headers[0], stop_before_pixels=True, specific_tags=["FrameOfReferenceUID"]
    )
    known = source.get("FrameOfReferenceUID")
    if known and ds.FrameOfReferenceUID != known:
        return "its frame of reference is not the source's"
    _, rows, columns = volume.shape_kji
    if (ds.Rows, ds.Columns) != (rows, columns):
        return "its frames have another size than the source's"
    numbers = [int(item.SegmentNumber) for item in ds.SegmentSequence]
    if numbers != list(range(1, len(output.segments) + 1)):
        return "its segments are not those of the contract"
    problem = _misoriented(ds, volume)
    return problem or _wrong_frames(ds, segment_numbers(mask, output), volume)


def _misoriented(ds: Dataset, volume: Volume) -> str | None:
    shared = ds.SharedFunctionalGroupsSequence[0]
    orientation = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    spacing = np.array(shared.PixelMeasuresSequence[0].PixelSpacing, float)
    row = orientation[:3] * spacing[1]
    column = orientation[3:] * spacing[0]
    worst = np.abs(np.stack([row, column], axis=1) - volume.affine_lps[:3, :2]).max()
    return "it is turned or scaled" if worst > ORIENTATION_TOLERANCE else None


def _wrong_frames(
    ds: Dataset, numbered: NDArray[np.uint8] | NDArray[np.uint16], volume: Volume
) -> str | None:
    _, rows, columns = volume.shape_kji
    place = {(one.sop_instance_uid, one.frame_number): k for k, one in enumerate(volume.slices)}
    bits = np.frombuffer(ds.PixelData, dtype=np.uint8)
    frame_bits = rows * columns
    seen: set[tuple[int, int]] = set()
    for index, groups in enumerate(ds.PerFrameFunctionalGroupsSequence):
        derived_from = groups.DerivationImageSequence[0].SourceImageSequence
        k = place.get(_source(derived_from[0]))
        if k is None or len(derived_from) != 1:
            return f"frame {index + 1} doesn't reference one source instance"
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        if np.abs(position - volume.slices[k].position_lps_mm).max() > POSITION_TOLERANCE_MM:
            return f"frame {index + 1} doesn't lie on its source instance"
        number = _segment_number(ds, groups)
        start, extra = divmod(index * frame_bits, 8)
        packed = bits[start : start + (extra + frame_bits + 7) // 8]
        frame = np.unpackbits(packed, bitorder="little")[extra : extra + frame_bits]
        if not np.array_equal(frame.reshape(rows, columns), numbered[k] == number):
            return f"frame {index + 1} doesn't have the bits of its mask"
        seen.add((k, number))
    for number in range(1, len(ds.SegmentSequence) + 1):
        for k in np.flatnonzero((numbered == number).any(axis=(1, 2))):
            if (int(k), number) not in seen:
                return f"segment {number} is missing on a slice"
    return None


def _source(reference: Dataset) -> tuple[str, int]:
    """Instance and frame; single-frame instances are referenced without a frame number."""
    return str(reference.ReferencedSOPInstanceUID), int(reference.get("ReferencedFrameNumber") or 1)


def _segment_number(ds: Dataset, groups: Dataset) -> int:
    # With a single segment, highdicom puts it into the shared groups.
    holder = groups
    if "SegmentIdentificationSequence" not in groups:
        holder = ds.SharedFunctionalGroupsSequence[0]
    return int(holder.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
