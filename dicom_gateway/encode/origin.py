"""What every object of a result is made of besides its mask or scores, and how it says so.

In: the volume, the contract, the job. Out: texts, codes and attributes that all kinds of
objects share. Pure.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import highdicom as hd
from pydicom.dataset import Dataset

from dicom_gateway.encode.identity import result_series_uid, result_uid, series_uid_of_result
from dicom_gateway.encode.sources import Sources
from dicom_gateway.encode.texts import UTF_8, in_unicode
from dicom_gateway.records import (
    OBJECT_KIND_OF_SOP_CLASS,
    CodedConcept,
    Contract,
    Job,
    ObjectKind,
    Output,
    ReplacedResult,
    Volume,
)

# highdicom's warnings quote values of the data set.
logging.getLogger("highdicom").setLevel(logging.ERROR)

MANUFACTURER = "tritome"

REPLACES = CodedConcept("REPLACES", "99TRITOME", "Replaces an earlier result")
"""Purpose of a reference to the result of a superseded job; DICOM has no code for that."""

_SERIES_NUMBERS = {
    ObjectKind.SEGMENTATION: 1000,
    ObjectKind.STRUCTURED_REPORT: 2000,
    ObjectKind.RT_STRUCTURE_SET: 3000,
    ObjectKind.SECONDARY_CAPTURE: 4000,
    ObjectKind.LABELMAP_SEGMENTATION: 5000,
}
"""Added to the source's Series Number, so that results sort behind what was acquired."""

_WORDS = {
    ObjectKind.SEGMENTATION: "segmentation",
    ObjectKind.LABELMAP_SEGMENTATION: "segmentation (label map)",
    ObjectKind.STRUCTURED_REPORT: "measurements",
    ObjectKind.RT_STRUCTURE_SET: "contours",
    ObjectKind.SECONDARY_CAPTURE: "key images",
}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a result comes from.

    Attributes:
        volume: Whose slices the masks lie on.
        index: Number of the volume, where its series has several.
        replaced: Results of earlier jobs whose place those of this one take.
    """

    volume: Volume
    contract: Contract
    job: Job
    index: int
    sources: Sources
    replaced: tuple[ReplacedResult, ...] = ()

    def uid(self, output: Output, kind: ObjectKind) -> str:
        """SOP Instance UID."""
        return result_uid(self.job.job_id, output.name, self.index, kind)

    def series_uid(self, output: Output, kind: ObjectKind) -> str:
        """Series Instance UID."""
        return result_series_uid(self.job.job_id, output.name, self.index, kind)

    def series_number(self, kind: ObjectKind) -> int:
        """Behind the source's."""
        return self.sources.series_number + _SERIES_NUMBERS[kind] + self.index

    def series_description(self, kind: ObjectKind) -> str:
        """Names the pipeline and what the series holds."""
        which = f": {self.volume.name}" if self.volume.name else ""
        return long_string(f"{self.contract.pipeline}: {_WORDS[kind]}{which}")

    @property
    def software_versions(self) -> tuple[str, str]:
        """Ours and the pipeline's."""
        ours = f"{MANUFACTURER} {_our_version()}"
        return ours, long_string(f"{self.contract.pipeline} {self.contract.version}")

    @property
    def device_serial_number(self) -> str:
        """A device of software has none: what tells its weights from others."""
        return self.contract.weights.get("sha256", "")[:16] or "0"

    def replaced_references(self, output: Output, kind: ObjectKind) -> list[Dataset]:
        """Items that name the results of the same output and kind that this one replaces.

        Source: PS3.3 Table 10-11 (SOP Instance Reference macro).
        """
        return [
            reference(one.sop_class_uid, one.sop_instance_uid)
            for one in self._replaced(output, kind)
        ]

    def replaced_documents(self, output: Output, kind: ObjectKind) -> list[Dataset]:
        """The same for an SR, which names the series too.

        Source: PS3.3 C.17.2 (Predecessor Documents Sequence), Table C.17-3.
        """
        items = []
        for one in self._replaced(output, kind):
            uid = series_uid_of_result(one.sop_instance_uid, one.job_id, one.output, kind)
            if uid is not None:
                series = Dataset()
                series.SeriesInstanceUID = uid
                series.ReferencedSOPSequence = [reference(one.sop_class_uid, one.sop_instance_uid)]
                study = Dataset()
                study.StudyInstanceUID = self.sources.first.StudyInstanceUID
                study.ReferencedSeriesSequence = [series]
                items.append(study)
        return items

    def _replaced(self, output: Output, kind: ObjectKind) -> list[ReplacedResult]:
        return [
            one
            for one in self.replaced
            if one.output == output.name and OBJECT_KIND_OF_SOP_CLASS.get(one.sop_class_uid) is kind
        ]

    def replaced_images(self, output: Output, kind: ObjectKind) -> list[Dataset]:
        """The same for the General Reference module, with the purpose (PS3.3 C.12.4)."""
        items = self.replaced_references(output, kind)
        for item in items:
            item.PurposeOfReferenceCodeSequence = [code(REPLACES)]
        return items


def carry(ds: Dataset, origin: Origin, outputs: Sequence[Output]) -> None:
    """Puts patient and study attributes into `ds`, and the character set that it needs.

    That is the sources', unless the contract's own texts need more than ASCII.
    """
    carried, character_set = origin.sources.carried, origin.sources.specific_character_set
    if not all(text.isascii() for text in _own_texts(origin, outputs)):
        carried, character_set = in_unicode(carried), UTF_8
    for element in carried:
        ds.add(element)
    if character_set is not None:
        ds.SpecificCharacterSet = character_set
    elif "SpecificCharacterSet" in ds:
        del ds.SpecificCharacterSet


def a_header(ds: Dataset, origin: Origin, output: Output, kind: ObjectKind, modality: str) -> None:
    """The modules that every composite object has, for objects that no library makes.

    Source: PS3.3 C.7.1.1, C.7.2.1, C.7.3.1, C.7.5.1, C.12.1.
    """
    now = datetime.now()
    first = origin.sources.first
    ds.SOPInstanceUID = origin.uid(output, kind)
    ds.StudyInstanceUID = first.StudyInstanceUID
    ds.SeriesInstanceUID = origin.series_uid(output, kind)
    ds.SeriesNumber = origin.series_number(kind)
    ds.SeriesDescription = origin.series_description(kind)
    ds.Modality = modality
    ds.InstanceNumber = 1
    ds.InstanceCreationDate = now.strftime("%Y%m%d")
    ds.InstanceCreationTime = now.strftime("%H%M%S")
    ds.Manufacturer = MANUFACTURER
    ds.ManufacturerModelName = long_string(origin.contract.pipeline)
    ds.DeviceSerialNumber = origin.device_serial_number
    ds.SoftwareVersions = list(origin.software_versions)
    carry(ds, origin, [output])


def reference(sop_class_uid: str, sop_instance_uid: str, frame_number: int = 0) -> Dataset:
    """An item that names an instance, or a frame of it where a number is given."""
    item = Dataset()
    item.ReferencedSOPClassUID = sop_class_uid
    item.ReferencedSOPInstanceUID = sop_instance_uid
    if frame_number:
        item.ReferencedFrameNumber = frame_number
    return item


def code(concept: CodedConcept) -> hd.sr.CodedConcept:
    """As highdicom and pydicom take it."""
    return hd.sr.CodedConcept(
        concept.value, concept.scheme_designator, long_string(concept.meaning)
    )


def long_string(text: str, limit: int = 64) -> str:
    """At most 64 characters, without what LO can't have (PS3.5 6.2)."""
    return " ".join(text.replace("\\", "/").split())[:limit].strip()


def _own_texts(origin: Origin, outputs: Iterable[Output]) -> list[str]:
    """What the contract brings into a result."""
    contract = origin.contract
    ours = [contract.pipeline, contract.version, contract.description, origin.volume.name]
    ours += [contract.weights.get("source", "")]
    for output in outputs:
        for segment in output.segments:
            codes = (segment.category, segment.type, segment.type_modifier, segment.anatomic_region)
            ours += [segment.name, *(concept.meaning for concept in codes if concept)]
        for one in output.classes:
            ours += [one.name, *([one.code.meaning] if one.code else [])]
    return ours


def _our_version() -> str:
    try:
        return importlib.metadata.version("tritome")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
