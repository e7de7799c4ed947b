"""Room 4: when a series is complete, and its one true volume in shared memory."""

from dicom_gateway.assemble.arena import Arena, remove_leftovers
from dicom_gateway.assemble.completeness import Evidence, Verdict, gather, judge
from dicom_gateway.assemble.decoders import DecoderPool
from dicom_gateway.assemble.headers import Header, read_header
from dicom_gateway.assemble.volume import assemble_volume

__all__ = [
    "Arena",
    "DecoderPool",
    "Evidence",
    "Header",
    "Verdict",
    "assemble_volume",
    "gather",
    "judge",
    "read_header",
    "remove_leftovers",
]
