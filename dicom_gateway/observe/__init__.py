"""Logs without patients, and the health of the processes."""

from dicom_gateway.observe.logging import get_logger, level_of, set_up_logging

__all__ = ["get_logger", "level_of", "set_up_logging"]
