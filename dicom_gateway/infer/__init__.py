"""Room 6: the contract, and the request on the arena to Triton."""

from dicom_gateway.infer.client import TritonClient, check_room
from dicom_gateway.infer.contract import read_contract

__all__ = ["TritonClient", "check_room", "read_contract"]
