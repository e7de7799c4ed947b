"""Room 2: instances on the disk and in the index, before anybody is told so."""

from dicom_gateway.store.check import require_its_folder
from dicom_gateway.store.docket import Docket
from dicom_gateway.store.instances import InstanceStore
from dicom_gateway.store.retention import Retention
from dicom_gateway.store.series_index import IgnoredSeries, OpenSeries, SeriesIndex

__all__ = [
    "Docket",
    "IgnoredSeries",
    "InstanceStore",
    "OpenSeries",
    "Retention",
    "SeriesIndex",
    "require_its_folder",
]
