"""Memory that is free but still the process's: given back to the system.

The C library keeps what is freed, in case it is wanted again. After a large study that is a
hundred megabytes and more, which other programs on the machine can't have.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back() -> None:
    """Gives free memory back; some milliseconds. Without glibc there is nothing to do."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
