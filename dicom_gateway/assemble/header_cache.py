"""Headers that were read lately: judge, decoders and jobs ask for the same ones in turn.

In: paths. Out: headers, each read once while it is asked for again and again. One that nobody
has asked for in a while goes, so that a night of studies takes no more memory than the last
few of them. Nothing survives a crash, and nothing depends on it.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from dicom_gateway.assemble.headers import Header, read_header

KEEP_S = 120.0
"""How long one stays that nobody asks for: a series waits for its job less than that, or is
read again."""
MOST = 4096
"""About five large series; a header is some three kilobytes here."""


class HeaderCache:
    """Gives headers by path; safe to call from several threads.

    Args:
        read: Reads one that isn't here.
        clock_s: Seconds that only grow.
    """

    def __init__(
        self,
        read: Callable[[Path], Header] = read_header,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._kept: OrderedDict[Path, tuple[Header, float]] = OrderedDict()

    def __call__(self, path: Path) -> Header:
        """The header of the file under `path`.

        Raises:
            UnusableSeries: as `read_header`; the next one who asks has it read again.
        """
        now_s = self._clock_s()
        with self._lock:
            found = self._kept.get(path)
        # Read outside the lock: two who ask at once may both read, and get equal ones.
        header = self._read(path) if found is None else found[0]
        with self._lock:
            self._kept[path] = header, now_s
            self._kept.move_to_end(path)
            while len(self._kept) > MOST or self._oldest_s() < now_s - KEEP_S:
                self._kept.popitem(last=False)
        return header

    def __len__(self) -> int:
        """How many are in memory."""
        return len(self._kept)

    def _oldest_s(self) -> float:
        return next(iter(self._kept.values()))[1]
