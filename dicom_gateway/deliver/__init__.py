"""Room 8: one outbox per destination; results go out until they are accepted."""

from dicom_gateway.deliver.caretaker import Caretaker
from dicom_gateway.deliver.entries import Entries
from dicom_gateway.deliver.outbox import Outbox

__all__ = ["Caretaker", "Entries", "Outbox"]
