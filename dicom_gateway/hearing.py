"""Who hears what the rooms tell: the audit trail, and the metrics.

In: what the rooms tell. Out: the same, to both. Nothing is kept here.

Part of `app.py`, in a file of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from dicom_gateway.auditing import Audit
from dicom_gateway.metering import Meter
from dicom_gateway.records import Delivery, Job


@dataclass(frozen=True, slots=True)
class Hearing:
    """What both want to know; where only one does, it is told itself."""

    audit: Audit
    meter: Meter

    def turned_away(
        self, calling_ae_title: str, called_ae_title: str, host_ip: str, reason: str
    ) -> None:
        """An association was refused."""
        self.meter.turned_away(reason)
        self.audit.turned_away(calling_ae_title, called_ae_title, host_ip, reason)

    def job_ended(self, job: Job, failure: str | None) -> None:
        """A job has made its results, or failed; `failure` is the code of why."""
        self.audit.job_ended(job.job_id, failure)
        self.meter.job_ended(job, failure)

    def delivery_ended(self, delivery: Delivery, failure: str | None) -> None:
        """A delivery has ended; `failure` is the code of what ended it in vain."""
        self.audit.sent(delivery, failure)
        self.meter.delivery_ended(delivery.job_id, delivery.destination, failure)
