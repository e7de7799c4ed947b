"""A study that can be sent again and again, each time as a new one.

Comes in: a folder with one study. Goes out: its data sets under new UIDs. Nothing is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import generate_uid


class StudyTemplate:
    """The data sets of one study, in memory."""

    def __init__(self, folder: Path) -> None:
        """Reads the DICOM files under `folder`.

        Raises:
            ValueError: when there are none.
        """
        self._datasets: list[Dataset] = []
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            try:
                self._datasets.append(pydicom.dcmread(path))
            except InvalidDicomError:
                continue
        if not self._datasets:
            msg = f"{folder} holds no DICOM file; give a folder with one study"
            raise ValueError(msg)

    def __len__(self) -> int:
        return len(self._datasets)

    @property
    def contexts(self) -> list[tuple[str, str]]:
        """What must be proposed to send it: pairs of SOP class and transfer syntax."""
        pairs = {(str(one.SOPClassUID), str(one.file_meta.TransferSyntaxUID)) for one in self}
        return sorted(pairs)

    def __iter__(self) -> Iterator[Dataset]:
        return iter(self._datasets)

    def renew(self) -> str:
        """Makes it a new study: new study, series and instance UIDs; returns the study's.

        The frame of reference stays, since nothing in it moves.
        """
        study_instance_uid = generate_uid(prefix=None)
        series: dict[str, str] = {}
        for dataset in self:
            old = str(dataset.SeriesInstanceUID)
            dataset.StudyInstanceUID = study_instance_uid
            dataset.SeriesInstanceUID = series.setdefault(old, generate_uid(prefix=None))
            dataset.SOPInstanceUID = generate_uid(prefix=None)
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        return str(study_instance_uid)
