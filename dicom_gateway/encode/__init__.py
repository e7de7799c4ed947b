"""Room 7: masks and scores become DICOM objects that reference their sources."""

from dicom_gateway.encode.identity import result_series_uid, result_uid
from dicom_gateway.encode.reading import SourceReading
from dicom_gateway.encode.results import encode_results, encode_segmentation
from dicom_gateway.encode.tables import share_tables

__all__ = [
    "SourceReading",
    "encode_results",
    "encode_segmentation",
    "result_series_uid",
    "result_uid",
]

share_tables()
