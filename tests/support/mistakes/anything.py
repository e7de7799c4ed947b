"""Mistakes that any object could have: about the patient and the study."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydicom import Dataset

Mistake = Callable[[Dataset], Any]
"""Changes an object that was right."""


def other_study(ds: Dataset) -> None:
    """The result would be filed elsewhere."""
    ds.StudyInstanceUID = "1.2.3"


def other_patient(ds: Dataset) -> None:
    """The worst of all."""
    ds.PatientID = "SOMEBODY"


def says(keyword: str, value: str) -> Mistake:
    """Something else about the patient, or the study, than the sources say."""

    def mutate(ds: Dataset) -> None:
        assert ds.get(keyword) != value
        setattr(ds, keyword, value)

    mutate.__name__ = f"another_{keyword}"
    return mutate


def birth_date_lost(ds: Dataset) -> None:
    """Though the source has a right one."""
    assert ds.PatientBirthDate
    ds.PatientBirthDate = ""


MISTAKES: tuple[Mistake, ...] = (
    other_study,
    other_patient,
    says("IssuerOfPatientID", "SOMEWHERE"),
    says("PatientName", "Some^Body"),
    says("PatientBirthDate", "19010203"),
    says("PatientSex", "F"),
    says("AccessionNumber", "OTHER"),
    says("StudyID", "OTHER"),
    says("StudyDate", "19010203"),
    says("StudyTime", "010203"),
    birth_date_lost,
)
