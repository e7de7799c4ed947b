"""Room 4: when a series is complete, and its true volumes in shared memory."""

from dicom_gateway.assemble.arena import Arena, remove_leftovers
from dicom_gateway.assemble.completeness import Evidence, Verdict, gather, judge
from dicom_gateway.assemble.decoders import DecoderPool
from dicom_gateway.assemble.headers import Header, read_header
from dicom_gateway.assemble.plan import VolumePlan, plan_images, plan_volumes
from dicom_gateway.assemble.policy import Allowance, allowance
from dicom_gateway.assemble.resample import land
from dicom_gateway.assemble.volume import assemble, assemble_volume

__all__ = [
    "Allowance",
    "Arena",
    "DecoderPool",
    "Evidence",
    "Header",
    "Verdict",
    "VolumePlan",
    "allowance",
    "assemble",
    "assemble_volume",
    "gather",
    "judge",
    "land",
    "plan_images",
    "plan_volumes",
    "read_header",
    "remove_leftovers",
]
