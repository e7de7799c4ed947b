"""Finds a tritonserver, launches it on loopback, watches it with a real inference.

`find.py` looks for it, `process.py` is one run of it, `heartbeat.py` asks whether it still
computes, and `TritonServer` in `supervisor.py` keeps it running.
"""

from ensemble_builder.server.find import FoundServer, find_tritonserver
from ensemble_builder.server.supervisor import TritonServer

__all__ = ["FoundServer", "TritonServer", "find_tritonserver"]
