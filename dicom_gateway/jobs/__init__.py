"""Room 5: durable jobs with leases and fences; the queue that survives everything."""

from dicom_gateway.jobs.admission import Admission, admission
from dicom_gateway.jobs.desk import JobDesk
from dicom_gateway.jobs.queue import JobQueue
from dicom_gateway.jobs.worker import JobRun, Worker

__all__ = ["Admission", "JobDesk", "JobQueue", "JobRun", "Worker", "admission"]
