"""The outputs of one inference become DICOM objects, each checked and durable.

Stage: fifth of a job's, after `infer`. In: masks on the source frames and scores, the volume,
the contract, the kinds of objects that the site wants. Out: a `Result` for each object that
could be made, durable (synced, renamed, folder synced) before it is returned. What survives a
crash: the finished files; a retry finds them by their names and returns them, so the same
bytes are sent again. One that doesn't fit what the retry found (the pipeline has changed since)
is made anew, unless it was announced: what a peer may have keeps its UID and its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    ComprehensiveSRStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from dicom_gateway.encode import gate
from dicom_gateway.encode.identity import result_series_uid, result_uid
from dicom_gateway.encode.keeping import keep
from dicom_gateway.encode.origin import Origin
from dicom_gateway.encode.reading import SourceReading
from dicom_gateway.encode.rtstruct import make_structure_set
from dicom_gateway.encode.secondary_capture import (
    Pixels,
    make_overlay,
    make_score_picture,
)
from dicom_gateway.encode.segmentation import Mask, make_segmentation
from dicom_gateway.encode.sources import read_sources
from dicom_gateway.encode.structured_report import (
    SegmentationReference,
    make_score_report,
    make_volume_report,
)
from dicom_gateway.errors import EncodingFailed
from dicom_gateway.records import (
    Contract,
    Inference,
    Job,
    ObjectKind,
    Output,
    ReplacedResult,
    Result,
    Volume,
)

LABEL_MAP_SEGMENTATION_STORAGE = UID("1.2.840.10008.5.1.4.1.1.66.7")
"""PS3.4 B.5; younger than pydicom's dictionary."""

SOP_CLASSES = {
    ObjectKind.SEGMENTATION: SegmentationStorage,
    ObjectKind.LABELMAP_SEGMENTATION: LABEL_MAP_SEGMENTATION_STORAGE,
    ObjectKind.STRUCTURED_REPORT: ComprehensiveSRStorage,
    ObjectKind.RT_STRUCTURE_SET: RTStructureSetStorage,
    ObjectKind.SECONDARY_CAPTURE: SecondaryCaptureImageStorage,
}

_SEGMENTATIONS = (ObjectKind.SEGMENTATION, ObjectKind.LABELMAP_SEGMENTATION)

_WORDS = {
    ObjectKind.SEGMENTATION: "segmentation",
    ObjectKind.LABELMAP_SEGMENTATION: "label map segmentation",
    ObjectKind.STRUCTURED_REPORT: "structured report",
    ObjectKind.RT_STRUCTURE_SET: "structure set",
    ObjectKind.SECONDARY_CAPTURE: "secondary capture",
}

DEFAULT_KINDS = (ObjectKind.SEGMENTATION, ObjectKind.STRUCTURED_REPORT)

Write = Callable[[BinaryIO], None]


def encode_results(  # noqa: PLR0917 - what was found, where, by whom, for what
    inference: Inference,
    volume: Volume,
    contract: Contract,
    job: Job,
    folder: Path,
    kinds: Collection[ObjectKind] = DEFAULT_KINDS,
    index: int = 0,
    *,
    replaced: Sequence[ReplacedResult] = (),
    held: Path | None = None,
    pixels: Pixels | None = None,
    is_announced: Callable[[str], bool] = lambda _: False,
    reading: SourceReading | None = None,
) -> list[Result]:
    """Makes the objects of one inference, checks each, and makes it durable in `folder`.

    Args:
        inference: Its label maps lie on the volume's slices: those of one that was resampled
            are brought back to its source frames first (`assemble.land`).
        volume: What they were made from; its headers are read again.
        contract: Names the pipeline, its version and what its outputs mean.
        job: Seed of the UIDs.
        folder: Where results are kept.
        kinds: Wanted kinds of objects; those that an output can't give are left out.
        index: Number of the volume, where its series has several.
        replaced: Results of earlier jobs whose place this job has taken; each object refers
            to those of its own output and kind.
        held: Folder for objects that the geometry gate holds; None throws them away.
        pixels: Gives source frames by their index, float32 [n, J, I]; without it there are
            no pictures.
        is_announced: Whether the index knows an object by its SOP Instance UID, so that a peer
            may have it.
        reading: Of the sources of this volume, where it has begun already.

    Raises:
        EncodingFailed: an output doesn't fit the volume or the contract, or a source can't be
            read any more; (result_misplaced) the geometry gate has held an object;
            (result_changed) an announced object doesn't say what was found now.
        Retryable: (result_not_written) the disk doesn't take it.
    """
    maker = _Maker(
        volume, contract, job, folder, tuple(kinds), index, tuple(replaced), held, pixels
    )
    maker.is_announced = is_announced
    maker.reading = reading
    made: list[Result] = []
    found = [
        (inference.labelmaps[output.name], output)
        for output in contract.labelmaps
        if output.name in inference.labelmaps
    ]
    for mask, output in found:  # all, before one is held against its counterpart in another
        check_mask(mask, volume, output)
    maker.found = tuple(found)
    for mask, output in found:
        made += maker.of_mask(mask, output)
    for output in contract.outputs:
        if output.name in inference.scores:
            made += maker.of_scores(inference.scores[output.name], output)
    return made


def encode_segmentation(  # noqa: PLR0917 - as encode_results
    mask: Mask,
    volume: Volume,
    contract: Contract,
    output: Output,
    job: Job,
    folder: Path,
    index: int = 0,
    *,
    replaced: Sequence[ReplacedResult] = (),
) -> Result:
    """Makes only the SEG of one output of a job; otherwise as `encode_results`."""
    kinds = (ObjectKind.SEGMENTATION,)
    maker = _Maker(volume, contract, job, folder, kinds, index, tuple(replaced), None, None)
    check_mask(mask, volume, output)
    maker.found = ((mask, output),)
    (result,) = maker.of_mask(mask, output)
    return result


@dataclass
class _Maker:
    volume: Volume
    contract: Contract
    job: Job
    folder: Path
    kinds: tuple[ObjectKind, ...]
    index: int
    replaced: tuple[ReplacedResult, ...]
    held: Path | None
    pixels: Pixels | None
    found: tuple[tuple[Mask, Output], ...] = ()
    """All label maps of the inference."""
    is_announced: Callable[[str], bool] = lambda _: False
    reading: SourceReading | None = None
    _origin: Origin | None = None
    _truth: gate.Truth | None = None
    _sides: gate.Sides | None = None

    def of_mask(self, mask: Mask, output: Output) -> list[Result]:
        """The objects of one label map [K, J, I]."""
        made = []
        segmentation = self._segmentation(output)
        for kind in (one for one in ObjectKind if one in self.kinds):
            make = self._maker_for_mask(mask, output, kind, segmentation)
            check = partial(self._check_mask, mask, output, kind, segmentation)
            result = self._kept(output, kind, make, check) if make is not None else None
            made += [result] if result is not None else []
        return made

    def of_scores(self, scores: NDArray[np.float32], output: Output) -> list[Result]:
        """The objects of one classification [n]."""
        _check_scores(scores, output)
        report, picture = ObjectKind.STRUCTURED_REPORT, ObjectKind.SECONDARY_CAPTURE
        made: list[Result | None] = []
        if report in self.kinds:
            made += [
                self._kept(
                    output,
                    report,
                    lambda: _writer(make_score_report(scores, output, self.origin)),
                    lambda path: self._gate(output, report, path).scores(scores, output),
                )
            ]
        pixels = self.pixels
        if picture in self.kinds and pixels is not None:
            made += [
                self._kept(
                    output,
                    picture,
                    lambda: _writer(make_score_picture(scores, output, self.origin, pixels)),
                    lambda path: self._gate(output, picture, path).picture(
                        None, output, pixels, scores
                    ),
                )
            ]
        return [one for one in made if one is not None]

    def _maker_for_mask(
        self,
        mask: Mask,
        output: Output,
        kind: ObjectKind,
        segmentation: SegmentationReference | None,
    ) -> Callable[[], Write | None] | None:
        if kind in _SEGMENTATIONS:
            return lambda: make_segmentation(mask, output, self.origin, kind).write
        if kind is ObjectKind.STRUCTURED_REPORT:
            return lambda: _writer(make_volume_report(mask, output, self.origin, segmentation))
        if kind is ObjectKind.RT_STRUCTURE_SET:
            return lambda: _writer(make_structure_set(mask, output, self.origin))
        pixels = self.pixels
        if kind is ObjectKind.SECONDARY_CAPTURE and pixels is not None:
            return lambda: _writer(make_overlay(mask, output, self.origin, pixels))
        return None

    def _check_mask(
        self,
        mask: Mask,
        output: Output,
        kind: ObjectKind,
        segmentation: SegmentationReference | None,
        path: Path,
    ) -> None:
        check = self._gate(output, kind, path)
        if kind in _SEGMENTATIONS:
            check.segmentation(mask, output, binary=kind is ObjectKind.SEGMENTATION)
        elif kind is ObjectKind.STRUCTURED_REPORT:
            named = None
            if segmentation is not None:
                named = (
                    segmentation.sop_class_uid,
                    segmentation.sop_instance_uid,
                    segmentation.series_instance_uid,
                )
            check.volumes(mask, output, named)
        elif kind is ObjectKind.RT_STRUCTURE_SET:
            check.structure_set(mask, output)
        elif self.pixels is not None:
            check.picture(mask, output, self.pixels)

    @property
    def origin(self) -> Origin:
        if self._origin is None:
            reading = self.reading
            sources = read_sources(self.volume) if reading is None else reading.sources()
            self._origin = Origin(
                self.volume, self.contract, self.job, self.index, sources, self.replaced
            )
        return self._origin

    def _gate(self, output: Output, kind: ObjectKind, path: Path) -> gate.Gate:
        if self._truth is None:
            reading = self.reading
            self._truth = (
                gate.read_sources_anew(self.volume) if reading is None else reading.truth()
            )
            self._sides = gate.Sides(self.found, self._truth)
        uid = result_uid(self.job.job_id, output.name, self.index, kind)
        return gate.Gate(path, self._truth, uid, SOP_CLASSES[kind], _WORDS[kind], self._sides)

    def _kept(
        self,
        output: Output,
        kind: ObjectKind,
        make: Callable[[], Write | None],
        check: Callable[[Path], None],
    ) -> Result | None:
        path = self._path(output, kind)
        if not (path.exists() and self._still_fits(path, kind, check)):
            try:
                write = make()
            except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
                # The library's text may quote the data set, so only its kind is passed on.
                msg = (
                    f"the {_WORDS[kind]} can't be encoded ({type(error).__name__}); the "
                    "attributes of the source series or the pipeline's contract don't allow it"
                )
                raise EncodingFailed(msg) from error
            if write is None:
                path.unlink(missing_ok=True)
                return None
            keep(path, write, check, self.held)
        return Result(
            sop_instance_uid=path.stem,
            sop_class_uid=SOP_CLASSES[kind],
            job_id=self.job.job_id,
            output=output.name,
            path=path,
            size_bytes=path.stat().st_size,
        )

    def _still_fits(self, path: Path, kind: ObjectKind, check: Callable[[Path], None]) -> bool:
        """Whether an object of an earlier attempt says what this one found.

        Raises:
            EncodingFailed: (result_changed) it doesn't, and mustn't change any more.
        """
        announced = self.is_announced(path.stem)
        try:
            check(path)
        except EncodingFailed as error:
            # Asked again: meanwhile another worker may have finished the job.
            if announced or self.is_announced(path.stem):
                msg = (
                    f"the {_WORDS[kind]} that this job has sent before doesn't say what the "
                    "pipeline finds now, and an object never changes under its UID; send the "
                    "series again, which makes a new job, or bring back the pipeline's version"
                )
                raise EncodingFailed(msg, code="result_changed") from error
            return False
        return announced or _made_with(path, self.origin)

    def _path(self, output: Output, kind: ObjectKind) -> Path:
        return self.folder / f"{result_uid(self.job.job_id, output.name, self.index, kind)}.dcm"

    def _segmentation(self, output: Output) -> SegmentationReference | None:
        """The SEG that a report refers to, where it is made.

        Never a label map: PS3.3's rule for references to segments (10.3) is still read by
        many, and by dciodvfy, as one about the older class alone.
        """
        kind = ObjectKind.SEGMENTATION
        if kind not in self.kinds:
            return None
        return SegmentationReference(
            SOP_CLASSES[kind],
            result_uid(self.job.job_id, output.name, self.index, kind),
            result_series_uid(self.job.job_id, output.name, self.index, kind),
        )


def _writer(ds: Dataset | None) -> Write | None:
    return None if ds is None else partial(_save, ds)


def _save(ds: Dataset, file: BinaryIO) -> None:
    ds.save_as(file, enforce_file_format=True)


def _made_with(path: Path, origin: Origin) -> bool:
    """Whether it names the same versions and weights as a new one would."""
    ds = pydicom.dcmread(path, specific_tags=["SoftwareVersions", "DeviceSerialNumber"])
    stated = tuple(str(one) for one in ds.SoftwareVersions), str(ds.DeviceSerialNumber)
    return stated == (origin.software_versions, origin.device_serial_number)


def check_mask(mask: Mask, volume: Volume, output: Output) -> None:
    """A mask must fit its volume and its segment table.

    Raises:
        EncodingFailed: it doesn't.
    """
    if output.kind != "labelmap" or not output.segments:
        msg = f"output {output.name} has no segment table; correct the pipeline's contract"
        raise EncodingFailed(msg)
    if mask.shape != volume.shape_kji:
        msg = (
            f"output {output.name} has the shape {mask.shape} and the volume "
            f"{volume.shape_kji}; the pipeline must give labels on its input's grid"
        )
        raise EncodingFailed(msg)
    labels = {0, *(segment.label for segment in output.segments)}
    if labels == set(range(len(labels))) and int(mask.max(initial=0)) < len(labels):
        return  # a look at the largest is twenty times faster than one at each
    known = np.zeros(np.iinfo(mask.dtype).max + 1, dtype=bool)
    known[sorted(labels)] = True
    for plane in mask:  # slice by slice: an index array of the whole would take gigabytes
        strange = ~known[plane]
        if strange.any():
            msg = (
                f"output {output.name} has voxels of label {int(plane[strange][0])}, which the "
                "contract doesn't describe; correct the pipeline's segment table"
            )
            raise EncodingFailed(msg)


def _check_scores(scores: NDArray[np.float32], output: Output) -> None:
    if output.kind != "scores" or scores.ndim != 1 or not np.isfinite(scores).all():
        msg = (
            f"output {output.name} isn't a list of finite scores; look into what the pipeline "
            "gives with 'tritome infer'"
        )
        raise EncodingFailed(msg)
    if output.classes and len(output.classes) != len(scores):
        msg = (
            f"output {output.name} has {len(scores)} scores and the contract describes "
            f"{len(output.classes)} classes; correct the pipeline's contract"
        )
        raise EncodingFailed(msg)
