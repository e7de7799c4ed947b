"""Room 8: one outbox per destination; results go out until they have provably arrived."""

from dicom_gateway.deliver.caretaker import Caretaker
from dicom_gateway.deliver.entries import Entries
from dicom_gateway.deliver.outbox import Outbox
from dicom_gateway.deliver.proof import CommitmentReports, Prover

__all__ = ["Caretaker", "CommitmentReports", "Entries", "Outbox", "Prover"]
