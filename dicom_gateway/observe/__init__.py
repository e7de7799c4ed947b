"""Logs without patients, and the health of the processes."""
