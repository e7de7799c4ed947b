"""Room 6: the contract, and the request on the arena to Triton."""

from dicom_gateway.infer.client import TritonClient
from dicom_gateway.infer.contract import read_contract
from dicom_gateway.infer.request import check_room
from dicom_gateway.infer.slots import Slot, fill, slots_of

__all__ = ["Slot", "TritonClient", "check_room", "fill", "read_contract", "slots_of"]
