"""Room 7: masks become DICOM objects that reference their sources."""

from dicom_gateway.encode.identity import result_series_uid, result_uid
from dicom_gateway.encode.segmentation import encode_segmentation
from dicom_gateway.encode.verify import verify_segmentation

__all__ = ["encode_segmentation", "result_series_uid", "result_uid", "verify_segmentation"]
