"""Room 6: the contract, and the request on the arena to Triton."""

from dicom_gateway.infer.client import TritonClient
from dicom_gateway.infer.contract import read_contract

__all__ = ["TritonClient", "read_contract"]
