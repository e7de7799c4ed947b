"""Room 1: the door. C-ECHO and C-STORE, behind limits on who and how much."""

from dicom_gateway.receive.scp import Receiver

__all__ = ["Receiver"]
