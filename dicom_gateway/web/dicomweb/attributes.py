"""DICOMweb, which attributes QIDO-RS knows: at which level, matched by which column.

Source: PS3.18 10.6.1.2.1 (matching), 10.6.3.3 (what is returned).
"""

from __future__ import annotations

from typing import Literal

import sqlalchemy as sa
from pydicom.datadict import keyword_for_tag, tag_for_keyword

from dicom_gateway.database import catalogue

Level = Literal["study", "series", "instance"]
Kind = Literal["text", "name", "date", "time", "uid", "number"]

_STUDY = [
    "SpecificCharacterSet",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "TimezoneOffsetFromUTC",
    "StudyDescription",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyID",
]
_SERIES = [
    "Modality",
    "SeriesDescription",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDate",
    "SeriesTime",
    "BodyPartExamined",
    "ProtocolName",
    "Laterality",
    "PerformedProcedureStepStartDate",
    "PerformedProcedureStepStartTime",
    "Manufacturer",
]
_INSTANCE = [
    "SOPClassUID",
    "SOPInstanceUID",
    "InstanceNumber",
    "Rows",
    "Columns",
    "BitsAllocated",
    "NumberOfFrames",
    "ImageType",
    "ContentDate",
    "ContentTime",
]


def tag_of(keyword: str) -> int:
    """The number of a keyword of the standard."""
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return tag


RETURNED: dict[Level, tuple[int, ...]] = {
    "study": tuple(map(tag_of, _STUDY)),
    "series": tuple(map(tag_of, _SERIES)),
    "instance": tuple(map(tag_of, _INSTANCE)),
}
CATALOGUED = tuple(tag for tags in RETURNED.values() for tag in tags)
LAST_CATALOGUED = max(CATALOGUED)

# keyword -> (level, column, how it is matched)
_columns = catalogue.c
MATCHED: dict[str, tuple[Level, sa.ColumnElement[str] | sa.ColumnElement[int], Kind]] = {
    "StudyInstanceUID": ("study", _columns.study_instance_uid, "uid"),
    "StudyDate": ("study", _columns.study_date, "date"),
    "StudyTime": ("study", _columns.study_time, "time"),
    "AccessionNumber": ("study", _columns.accession_number, "text"),
    "ReferringPhysicianName": ("study", _columns.referring_physician_name, "name"),
    "PatientName": ("study", _columns.patient_name, "name"),
    "PatientID": ("study", _columns.patient_id, "text"),
    "PatientBirthDate": ("study", _columns.patient_birth_date, "date"),
    "StudyID": ("study", _columns.study_id, "text"),
    "StudyDescription": ("study", _columns.study_description, "text"),
    "ModalitiesInStudy": ("study", _columns.modality, "text"),
    "Modality": ("series", _columns.modality, "text"),
    "SeriesInstanceUID": ("series", _columns.series_instance_uid, "uid"),
    "SeriesNumber": ("series", _columns.series_number, "number"),
    "SeriesDescription": ("series", _columns.series_description, "text"),
    "SOPClassUID": ("instance", _columns.sop_class_uid, "uid"),
    "SOPInstanceUID": ("instance", _columns.sop_instance_uid, "uid"),
    "InstanceNumber": ("instance", _columns.instance_number, "number"),
}


def keyword_of(name: str) -> str | None:
    """The keyword for a keyword or for eight hexadecimal digits; None where there is none."""
    if len(name) == 8:
        try:
            return keyword_for_tag(int(name, 16)) or None
        except ValueError:
            pass
    return name if tag_for_keyword(name) is not None else None


def hexadecimal(tag: int) -> str:
    """A tag as DICOM JSON writes it."""
    return f"{tag:08X}"
