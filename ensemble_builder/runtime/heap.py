"""Memory between requests: kept while studies follow each other, given back when they don't.

Every request needs the same large arrays. Taken from the system anew each time, they are zeroed
by it page by page, which costs more than the work on them. What the C library is asked for here
is the GNU one's (mallopt(3), malloc_trim(3)); where there is another, nothing is asked for.

On a GPU torch keeps what was freed, for its own process. The steps are several processes, so what
one keeps the others lack: where little of the GPU is free, none keeps anything.
"""

from __future__ import annotations

import ctypes
import gc
import threading
from types import TracebackType
from typing import Any

import torch

KEPT_S = 60.0
"""So long after a request its memory is kept for the next one."""
MOST_KEPT_BYTES = 512 << 20
"""What is more goes back soon: it was an unusual study, or has fallen to pieces."""
SOON_S = 0.5
LEAST_FREE_SHARE = 0.5
"""Of a GPU's memory; where less is free, nothing is kept."""

_cuda: Any = torch.cuda  # without types
_MOST_MMAPS = -4
_TRIM_THRESHOLD = -1
"""Parameters of mallopt(3)."""


def give_back() -> None:
    """Frees what nothing refers to, and what the C library and torch keep for later."""
    gc.collect()
    _call("malloc_trim", 0)
    torch.cuda.empty_cache()  # which is nothing where this process has used no GPU


def leave_room() -> None:
    """Gives back what torch keeps on the GPU, where the other steps could be short of it."""
    if _cuda.is_initialized():
        free_bytes, all_bytes = torch.cuda.mem_get_info()
        if free_bytes < LEAST_FREE_SHARE * all_bytes:
            torch.cuda.empty_cache()


class KeptMemory:
    """Entered for each request; what its memory was is there for the next one."""

    def __init__(self, kept_s: float = KEPT_S) -> None:
        """From now on the C library keeps what is freed, in the whole process."""
        self._kept_s = kept_s
        self._timer: threading.Timer | None = None
        self._gpu = torch.cuda.current_device() if _cuda.is_initialized() else None
        # Large arrays too come from the heap, whose end isn't cut off whenever it is free.
        _call("mallopt", _MOST_MMAPS, 0)
        _call("mallopt", _TRIM_THRESHOLD, 2**31 - 1)

    def __enter__(self) -> None:
        """The next one is here."""
        if self._timer is not None:
            self._timer.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Until another comes, or the time is over."""
        # At once would be too early: the request itself is still there.
        kept_s = self._kept_s if _free_bytes() <= MOST_KEPT_BYTES else min(SOON_S, self._kept_s)
        self._timer = threading.Timer(kept_s, self._give_back)
        self._timer.daemon = True
        self._timer.start()

    def _give_back(self) -> None:
        if self._gpu is not None:
            torch.cuda.set_device(self._gpu)  # a new thread would open the machine's first one
        give_back()


class _Mallinfo(ctypes.Structure):
    """struct mallinfo2 (mallinfo(3))."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def _free_bytes() -> int:
    """What the C library has and nobody uses; 0 where it doesn't say."""
    function: Any = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if function is None:
        return 0
    function.restype = _Mallinfo
    return int(function().fordblks)


def _call(name: str, *args: int) -> None:
    function: Any = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*args)
