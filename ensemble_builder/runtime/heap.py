"""What loading left behind goes back to the system: an instance may wait for hours."""

from __future__ import annotations

import ctypes
import gc


def give_back() -> None:
    """Frees what nothing refers to, and what the C library keeps for later.

    Source: malloc_trim(3), of the GNU C library; without it nothing is asked for.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
