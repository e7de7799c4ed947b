"""Key images with what was found drawn on them, so that any viewer shows something.

In: the mask of one output or its scores, the source's pixels, what they were made from. Out:
one Secondary Capture, RGB: a montage of up to nine slices, a legend with names, colours and
volumes. No patient attribute is drawn.

Colours are laid over greys, so that red, green and blue differ only where a segment lies:
the geometry gate reads the mask back from the picture.

Source: PS3.3 A.8.1 (Secondary Capture Image IOD), C.8.6 (SC modules), C.7.6.1 (General
Image).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from dicom_gateway.encode.montage import (
    LEAST_WIDTH,
    LINE,
    MARGIN,
    MOST_LINES,
    MOST_TILES,
    Montage,
    legend_height,
    montage_of,
)
from dicom_gateway.encode.origin import Origin, a_header, code, long_string, reference
from dicom_gateway.encode.rtstruct import PALETTE, segment_colour
from dicom_gateway.encode.segmentation import Mask
from dicom_gateway.encode.structured_report import volumes_ml
from dicom_gateway.records import CodedConcept, ObjectKind, Output

Pixels = Callable[[Sequence[int]], NDArray[np.float32]]
"""Gives source frames by their index, float32 [n, J, I], rescaled, small is to be dark."""

OPACITY = 0.4
"""Of a colour over the grey."""

LEAST_CHROMA = 60
"""A colour whose channels differ by less would look like a grey; it is replaced."""

_SOURCE_IMAGE = CodedConcept("121322", "DCM", "Source image for image processing operation")
_INK, _FAINT, _PAPER = (235, 235, 235), (160, 160, 160), (16, 16, 16)
_TEXT, _SMALL = 17, 14


def make_overlay(mask: Mask, output: Output, origin: Origin, pixels: Pixels) -> Dataset:
    """Makes the montage of one label map, [K, J, I] on the volume's slices."""
    planes = key_slices(mask)
    shown = pixels(planes)
    labels = np.stack([mask[k] for k in planes])
    low, high = _window(shown, labels)
    volumes = volumes_ml(mask, output, origin)
    lines = []
    for n, segment in enumerate(output.segments):
        found = f"{volumes[n]:,.1f} mL" if volumes is not None else ""
        lines.append((display_colours(output)[n], long_string(segment.name), found))
    return _captured(output, origin, planes, _greys(shown, low, high), labels, lines)


def make_score_picture(
    scores: NDArray[np.float32], output: Output, origin: Origin, pixels: Pixels
) -> Dataset:
    """Makes a picture of what was classified, with its scores [n] below."""
    count = len(origin.volume.slices)
    planes = sorted({round(k) for k in np.linspace(0, count - 1, min(count, MOST_TILES))})
    shown = pixels(planes)
    low, high = (float(one) for one in np.percentile(shown, (1, 99)))
    names = [one.name for one in output.classes] or [f"score {n + 1}" for n in range(len(scores))]
    lines = [
        (None, long_string(name), f"{float(score):.3f}")
        for name, score in zip(names, scores, strict=True)
    ]
    return _captured(output, origin, planes, _greys(shown, low, high), None, lines)


def display_colours(output: Output) -> list[tuple[int, int, int]]:
    """Red, green, blue of each segment; greys are replaced, for they would hide in a CT."""
    colours = []
    for number, segment in enumerate(output.segments, start=1):
        colour = segment_colour(segment, number)
        if max(colour) - min(colour) < LEAST_CHROMA:
            colour = PALETTE[(number - 1) % len(PALETTE)]
        colours.append(colour)
    return colours


def key_slices(mask: Mask) -> list[int]:
    """Up to nine slices that show the most: the fullest of each ninth of what was found."""
    counts = np.array([np.count_nonzero(plane) for plane in mask])
    if not counts.any():
        return [len(mask) // 2]
    parts = np.minimum((np.cumsum(counts) - counts) * MOST_TILES // counts.sum(), MOST_TILES - 1)
    with_content = np.flatnonzero(counts)
    chosen = []
    for part in np.unique(parts[with_content]):
        own = with_content[parts[with_content] == part]
        chosen.append(int(own[counts[own].argmax()]))
    return sorted(chosen)


def _window(shown: NDArray[np.float32], labels: Mask) -> tuple[float, float]:
    """Black and white: what is seen around the segments, without the outermost values."""
    around = labels.any(axis=0)
    if around.any():
        rows, columns = np.flatnonzero(around.any(axis=1)), np.flatnonzero(around.any(axis=0))
        edge_j, edge_i = around.shape[0] // 10, around.shape[1] // 10
        shown = shown[
            :,
            max(0, rows[0] - edge_j) : rows[-1] + edge_j + 1,
            max(0, columns[0] - edge_i) : columns[-1] + edge_i + 1,
        ]
    low, high = np.percentile(shown, (1, 99))
    return float(low), float(high)


def _greys(shown: NDArray[np.float32], low: float, high: float) -> NDArray[np.uint8]:
    span = high - low if high > low else 1.0
    greys: NDArray[np.uint8] = np.rint(np.clip((shown - low) / span, 0, 1) * 255).astype(np.uint8)
    return greys


def _captured(  # noqa: PLR0917 - what is drawn, called twice
    output: Output,
    origin: Origin,
    planes: Sequence[int],
    greys: NDArray[np.uint8],
    labels: Mask | None,
    lines: Sequence[tuple[tuple[int, int, int] | None, str, str]],
) -> Dataset:
    place = montage_of(len(planes), *greys.shape[1:])
    picture = _drawn(place, output, origin, planes, greys, labels, lines)
    now = datetime.now()
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = SecondaryCaptureImageStorage
    kind = ObjectKind.SECONDARY_CAPTURE
    a_header(ds, origin, output, kind, "OT")
    side = str(origin.sources.first.get("Laterality", ""))
    if side in {"L", "R"} or "BodyPartExamined" not in ds:
        # Type 2C (PS3.3 C.7.3.1): empty where nothing says that the part isn't a paired one.
        ds.Laterality = side if side in {"L", "R"} else ""
    ds.ConversionType = "SYN"
    ds.ImageType = ["DERIVED", "SECONDARY"]
    ds.ContentDate, ds.ContentTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    ds.PatientOrientation = [
        _towards(origin.volume.affine_lps[:3, axis]) if origin.sources.placed else ""
        for axis in (0, 1)
    ]
    ds.BurnedInAnnotation = "NO"  # names of segments, nothing that tells who it is
    ds.DerivationDescription = long_string(f"{origin.contract.pipeline}: key images", 1024)
    ds.SourceImageSequence = []
    for k in planes:
        one = origin.sources.references[k]
        item = reference(one.sop_class_uid, one.sop_instance_uid, one.frame_number)
        item.PurposeOfReferenceCodeSequence = [code(_SOURCE_IMAGE)]
        ds.SourceImageSequence.append(item)
    replaced = origin.replaced_images(output, kind)
    if replaced:
        ds.ReferencedImageSequence = replaced
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 3, "RGB"
    ds.PlanarConfiguration = 0
    ds.Rows, ds.Columns = picture.shape[:2]
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    affine = origin.volume.affine_lps
    high_mm, wide_mm = float(np.linalg.norm(affine[:3, 1])), float(np.linalg.norm(affine[:3, 0]))
    if abs(high_mm / wide_mm - 1) > 0.01:
        ds.PixelAspectRatio = [round(1000 * high_mm / wide_mm), 1000]
    first = origin.sources.first
    for keyword in ("LossyImageCompression", "LossyImageCompressionRatio"):
        if keyword in first:
            ds[keyword] = first[keyword]
    pixels = picture.tobytes()
    ds.PixelData = pixels + b"\0" * (len(pixels) % 2)
    ds["PixelData"].VR = "OB"
    return ds


def _drawn(  # noqa: PLR0917 - as _captured
    place: Montage,
    output: Output,
    origin: Origin,
    planes: Sequence[int],
    greys: NDArray[np.uint8],
    labels: Mask | None,
    lines: Sequence[tuple[tuple[int, int, int] | None, str, str]],
) -> NDArray[np.uint8]:
    cut = [*lines[:MOST_LINES]]
    if len(lines) > MOST_LINES:
        cut.append((None, f"and {len(lines) - MOST_LINES} more", ""))
    contract = origin.contract
    title = f"{contract.pipeline} {contract.version}  -  found by software, not a diagnosis"
    width = max(place.size[1], LEAST_WIDTH)
    image = Image.new("RGB", (width, place.size[0] + legend_height(len(lines))), _PAPER)
    draw = ImageDraw.Draw(image)
    text, small = ImageFont.load_default(_TEXT), ImageFont.load_default(_SMALL)
    draw.text((MARGIN, 12), title[: width // 9], fill=_INK, font=text)
    canvas = np.array(image)
    colours = [(0, 0, 0), *display_colours(output)]
    numbers = {segment.label: n for n, segment in enumerate(output.segments, start=1)}
    for n, (top, left) in enumerate(place.corners):
        tile = np.repeat(_fit(greys[n], place)[..., None], 3, axis=2).astype(np.float64)
        if labels is not None:
            found = _fit(labels[n], place)
            for label, number in numbers.items():
                over = found == label
                tile[over] = (1 - OPACITY) * tile[over] + OPACITY * np.array(colours[number])
        canvas[top : top + place.tile[0], left : left + place.tile[1]] = np.rint(tile)
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    for n, corner in enumerate(place.corners):
        _letter(draw, corner, place, origin, small)
        which = f"{planes[n] + 1} of {len(origin.volume.slices)}"
        draw.text((corner[1], corner[0] - 18), which, fill=_FAINT, font=small)
    for n, (colour, name, value) in enumerate(cut):
        top = place.size[0] + MARGIN // 2 + n * LINE
        if colour is not None:
            draw.rectangle((MARGIN, top, MARGIN + 18, top + 18), fill=colour)
        draw.text((MARGIN + 30, top), name, fill=_INK, font=text)
        draw.text((width - MARGIN - 10, top), value, fill=_INK, font=text, anchor="ra")
    return np.array(image)


def _letter(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    place: Montage,
    origin: Origin,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """Where the patient's sides are, outside the tile: its greys stay greys."""
    if not origin.sources.placed:
        return
    (top, left), (height, width) = corner, place.tile
    across, down = (origin.volume.affine_lps[:3, axis] for axis in (0, 1))
    middle_y, middle_x = top + height // 2, left + width // 2
    for where, direction in (
        ((left - MARGIN // 2, middle_y), -across),
        ((left + width + MARGIN // 2, middle_y), across),
        ((middle_x, top - MARGIN // 2), -down),
        ((middle_x, top + height + MARGIN // 2), down),
    ):
        draw.text(where, _towards(direction)[:1], fill=_INK, font=font, anchor="mm")


def _fit(values: NDArray[np.integer], place: Montage) -> NDArray[np.integer]:  # type: ignore[type-arg]
    thinned = values[:: place.thinned, :: place.thinned]
    return np.repeat(np.repeat(thinned, place.repeated, axis=0), place.repeated, axis=1)


def _towards(direction: NDArray[np.float64]) -> str:
    """Patient directions, the strongest first, such as L or AR (PS3.3 C.7.6.1.1.1)."""
    names = [("R", "L"), ("A", "P"), ("F", "H")]
    unit = direction / np.linalg.norm(direction)
    letters = []
    for axis in np.argsort(-np.abs(unit), kind="stable"):
        if abs(unit[axis]) > 0.1:
            negative, positive = names[axis]
            letters.append(positive if unit[axis] > 0 else negative)
    return "".join(letters)
