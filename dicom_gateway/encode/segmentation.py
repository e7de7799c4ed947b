"""A label map becomes a DICOM Segmentation that lies on its source instances.

Stage: fifth of a job's, after `infer`. In: the mask on the volume's grid, the volume, the
contract. Out: a `Result`, durable (synced, renamed, folder synced) before it is returned.
What survives a crash: the finished file; a retry finds it by its name and returns it, so the
same bytes are sent again.

BINARY, not LABELMAP: peers of today refuse the label map SOP class over DIMSE.

Source: PS3.3 A.51 (Segmentation IOD), C.8.20.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import highdicom as hd
import numpy as np
from highdicom.color import CIELabColor
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import SegmentationStorage

from dicom_gateway.encode.identity import result_series_uid, result_uid
from dicom_gateway.encode.sources import Sources, read_sources
from dicom_gateway.encode.verify import segment_numbers, verify_segmentation
from dicom_gateway.errors import EncodingFailed, Retryable
from dicom_gateway.records import (
    CodedConcept,
    Contract,
    Job,
    Output,
    ReplacedResult,
    Result,
    Segment,
    Volume,
)

# highdicom's warnings quote values of the data set.
logging.getLogger("highdicom").setLevel(logging.ERROR)

REPLACES = CodedConcept("REPLACES", "99TRITOME", "Replaces an earlier result")
"""Purpose of a reference to the result of a superseded job; DICOM has no code for that."""

SERIES_NUMBER_OFFSET = 1000
"""Added to the source's Series Number, so that results sort behind what was acquired."""

EVEN_FRACTION = 0.1
"""Distances between slices that differ by more, as a fraction, are not one distance."""


def encode_segmentation(  # noqa: PLR0917 - mask, what it was made from, what for
    mask: NDArray[np.uint8] | NDArray[np.uint16],
    volume: Volume,
    contract: Contract,
    output: Output,
    job: Job,
    folder: Path,
    index: int = 0,
    *,
    replaced: Sequence[ReplacedResult] = (),
) -> Result:
    """Makes the SEG of one output of a job, checks it, and makes it durable in `folder`.

    All segments of the contract are described, also those without a voxel. Frames without
    a voxel are left out; a mask without any voxel gives one empty frame for each segment
    on the first slice, so that "looked and found nothing" can be told from "never looked".

    Args:
        mask: [K, J, I] labels on the volume's slices; 0 is background.
        volume: What the mask was made from; its headers are read again. One that was
            resampled is brought back to its source frames first (`assemble.land`).
        contract: Names the pipeline and its version.
        output: Which output; its segment table says what the labels mean.
        job: Seed of the UIDs.
        folder: Where results are kept.
        index: Number of the volume, where its series has several.
        replaced: Results of earlier jobs whose place this job has taken; it refers to those
            of the same output.

    Raises:
        EncodingFailed: the mask doesn't fit the volume or the segment table, a source can't
            be read any more, or the finished object doesn't say what the mask says.
        Retryable: (result_not_written) the disk doesn't take it.
    """
    uid = result_uid(job.job_id, output.name, index)
    path = folder / f"{uid}.dcm"
    if not path.exists():
        _check_mask(mask, volume, output)
        sources = read_sources(volume)
        try:
            segmentation = _segmentation(
                mask=mask,
                volume=volume,
                contract=contract,
                output=output,
                job=job,
                uid=uid,
                index=index,
                sources=sources,
            )
            _refer_to_replaced(segmentation, replaced, output)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            # The library's text may quote the data set, so only its kind is passed on.
            msg = (
                f"the segmentation can't be encoded ({type(error).__name__}); the attributes of "
                "the source series or the segment table of the pipeline don't allow it"
            )
            raise EncodingFailed(msg) from error
        _keep(segmentation, path, mask, volume, output)
    return Result(
        sop_instance_uid=uid,
        sop_class_uid=SegmentationStorage,
        job_id=job.job_id,
        output=output.name,
        path=path,
        size_bytes=path.stat().st_size,
    )


def _check_mask(
    mask: NDArray[np.uint8] | NDArray[np.uint16], volume: Volume, output: Output
) -> None:
    if output.kind != "labelmap" or not output.segments:
        msg = f"output {output.name} has no segment table; correct the pipeline's contract"
        raise EncodingFailed(msg)
    if mask.shape != volume.shape_kji:
        msg = (
            f"output {output.name} has the shape {mask.shape} and the volume "
            f"{volume.shape_kji}; the pipeline must give labels on its input's grid"
        )
        raise EncodingFailed(msg)
    known = np.zeros(np.iinfo(mask.dtype).max + 1, dtype=bool)
    known[0] = True
    known[[segment.label for segment in output.segments]] = True
    for plane in mask:  # slice by slice: an index array of the whole would take gigabytes
        strange = ~known[plane]
        if strange.any():
            msg = (
                f"output {output.name} has voxels of label {int(plane[strange][0])}, which the "
                "contract doesn't describe; correct the pipeline's segment table"
            )
            raise EncodingFailed(msg)


def _segmentation(
    *,
    mask: NDArray[np.uint8] | NDArray[np.uint16],
    volume: Volume,
    contract: Contract,
    output: Output,
    job: Job,
    uid: str,
    index: int,
    sources: Sources,
) -> hd.seg.Segmentation:
    numbered = segment_numbers(mask, output)
    measures = _pixel_measures(volume, sources.images[0])
    for image in sources.images:
        if "SliceThickness" not in image:  # type 2, and highdicom can't do without
            image.SliceThickness = measures[0].SliceThickness
    images: Sequence[Dataset] = sources.images
    further: Sequence[Dataset] = ()
    empty = not numbered.any()
    which = f": {volume.name}" if volume.name else ""
    name_and_version = f"{contract.pipeline} {contract.version}"
    if empty:
        numbered, images, further = numbered[:1], images[:1], images[1:]
    segmentation = hd.seg.Segmentation(
        source_images=images,
        further_source_images=further,
        pixel_array=numbered,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _description(number, segment, contract)
            for number, segment in enumerate(output.segments, start=1)
        ],
        series_instance_uid=result_series_uid(job.job_id, output.name, index),
        series_number=sources.series_number + SERIES_NUMBER_OFFSET + index,
        sop_instance_uid=uid,
        instance_number=1,
        manufacturer="tritome",
        manufacturer_model_name=_long_string(contract.pipeline),
        software_versions=(  # type: ignore[arg-type] # highdicom takes several
            f"tritome {_our_version()}",
            _long_string(name_and_version),
        ),
        device_serial_number=contract.weights.get("sha256", "")[:16] or "0",
        pixel_measures=measures,
        omit_empty_frames=not empty,
        content_label="SEGMENTATION",
        content_description=_long_string(volume.name or contract.description) or None,
        series_description=_long_string(f"{contract.pipeline}: segmentation{which}"),
        specific_character_set=None,
    )
    if sources.stand_ins:
        _reference_frames(segmentation, sources)
    for element in sources.carried:
        segmentation.add(element)
    _set_character_set(segmentation, sources, contract, output)
    return segmentation


def _refer_to_replaced(
    segmentation: Dataset, replaced: Sequence[ReplacedResult], output: Output
) -> None:
    """Names the segmentations that this one replaces; no element of a SEG says more.

    Source: PS3.3 C.12.4 (General Reference module: Referenced Image Sequence).
    """
    items = []
    for one in replaced:
        if one.sop_class_uid == SegmentationStorage and one.output == output.name:
            item = Dataset()
            item.ReferencedSOPClassUID = one.sop_class_uid
            item.ReferencedSOPInstanceUID = one.sop_instance_uid
            item.PurposeOfReferenceCodeSequence = [_code(REPLACES)]
            items.append(item)
    if items:
        segmentation.ReferencedImageSequence = items


def _reference_frames(segmentation: Dataset, sources: Sources) -> None:
    """Puts multi-frame sources and their frame numbers where their stand-ins are named.

    Source: PS3.3 10.3 (Image SOP Instance Reference macro).
    """
    for groups in segmentation.PerFrameFunctionalGroupsSequence:
        for derivation in groups.get("DerivationImageSequence", ()):
            for source in derivation.SourceImageSequence:
                true = sources.stand_ins.get(source.ReferencedSOPInstanceUID)
                if true is not None:
                    source.ReferencedSOPClassUID = true.sop_class_uid
                    source.ReferencedSOPInstanceUID = true.sop_instance_uid
                    source.ReferencedFrameNumber = true.frame_number
    for series in segmentation.ReferencedSeriesSequence:
        named = {}
        for instance in series.ReferencedInstanceSequence:
            true = sources.stand_ins.get(instance.ReferencedSOPInstanceUID)
            if true is not None:
                instance.ReferencedSOPClassUID = true.sop_class_uid
                instance.ReferencedSOPInstanceUID = true.sop_instance_uid
            named[str(instance.ReferencedSOPInstanceUID)] = instance
        series.ReferencedInstanceSequence = list(named.values())


def _description(number: int, segment: Segment, contract: Contract) -> hd.seg.SegmentDescription:
    description = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=_long_string(segment.name),
        segmented_property_category=_code(segment.category),
        segmented_property_type=_code(segment.type),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=_long_string(contract.pipeline),
            family=codes.DCM.ArtificialIntelligence,
            version=_long_string(contract.version),
            source=_long_string(contract.weights.get("source", "")) or None,
        ),
        anatomic_regions=[_code(segment.anatomic_region)] if segment.anatomic_region else None,
        display_color=CIELabColor.from_rgb(*segment.colour_rgb) if segment.colour_rgb else None,
    )
    if segment.type_modifier:
        # The side belongs to the type ("Lung", modified by "Left"): PS3.3 C.8.20.4.
        property_type = description.SegmentedPropertyTypeCodeSequence[0]
        property_type.SegmentedPropertyTypeModifierCodeSequence = [_code(segment.type_modifier)]
    return description


def _code(concept: CodedConcept) -> hd.sr.CodedConcept:
    return hd.sr.CodedConcept(concept.value, concept.scheme_designator, concept.meaning)


def _pixel_measures(volume: Volume, first: Dataset) -> hd.PixelMeasuresSequence:
    normal = np.cross(volume.affine_lps[:3, 0], volume.affine_lps[:3, 1])
    along = np.array([one.position_lps_mm for one in volume.slices]) @ normal
    gaps = np.abs(np.diff(along)) / float(np.linalg.norm(normal))
    spacing_mm = float(gaps.mean()) if len(gaps) else 0.0
    even = bool(len(gaps)) and float(np.ptp(gaps)) <= EVEN_FRACTION * spacing_mm
    thickness_mm = float(first.get("SliceThickness") or 0.0) or spacing_mm or 1.0
    return hd.PixelMeasuresSequence(
        pixel_spacing=[float(value) for value in first.PixelSpacing],
        slice_thickness=thickness_mm,
        # Source frames that were resampled may have any distance: then none is claimed.
        spacing_between_slices=spacing_mm if even else None,
    )


def _set_character_set(
    segmentation: hd.seg.Segmentation, sources: Sources, contract: Contract, output: Output
) -> None:
    """The source's character set, unless the contract's own texts need more than ASCII."""
    ours = [contract.pipeline, contract.version, contract.description]
    ours += [contract.weights.get("source", "")]
    for segment in output.segments:
        concepts = (segment.category, segment.type, segment.type_modifier, segment.anatomic_region)
        ours += [segment.name, *(concept.meaning for concept in concepts if concept)]
    if not all(text.isascii() for text in ours):
        segmentation.SpecificCharacterSet = "ISO_IR 192"
        for element in segmentation:
            if element.VR == "PN" and element.value:
                element.value = str(element.value)  # forget the bytes of the old set
    elif sources.specific_character_set is not None:
        segmentation.SpecificCharacterSet = sources.specific_character_set


def _keep(
    segmentation: hd.seg.Segmentation,
    path: Path,
    mask: NDArray[np.uint8] | NDArray[np.uint16],
    volume: Volume,
    output: Output,
) -> None:
    """Temporary file, sync, check, rename, sync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with unfinished.open("wb") as file:
            segmentation.save_as(file)
            file.flush()
            os.fsync(file.fileno())
        verify_segmentation(unfinished, mask, volume, output)
        unfinished.rename(path)
    except OSError as error:
        msg = f"the result can't be written ({error.strerror}); is the store's disk full?"
        raise Retryable(msg, code="result_not_written") from error
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _long_string(text: str) -> str:
    """At most 64 characters, without what LO can't have (PS3.5 6.2)."""
    return " ".join(text.replace("\\", "/").split())[:64].strip()


def _our_version() -> str:
    try:
        return importlib.metadata.version("tritome")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
