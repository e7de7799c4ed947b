"""One at a time on a store's folder: the gateway, or who mends its index.

In: the folder. Out: a lock that lasts until the file is closed; the kernel drops it when the
process dies. The gateway's own start takes the same one.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dicom_gateway.errors import ConfigurationError

LOCK = "gateway.lock"


@contextmanager
def alone_on(folder: Path) -> Iterator[None]:
    """No gateway runs on the folder while this lasts, and none starts.

    Raises:
        ConfigurationError: one runs, or the folder can't be used.
    """
    try:
        lock = (folder / LOCK).open("a", encoding="ascii")
    except OSError as error:
        msg = f"store.folder {folder} can't be used: {error.strerror}"
        raise ConfigurationError(msg) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            msg = f"a gateway runs on store.folder {folder}; stop it first, then try again"
            raise ConfigurationError(msg) from error
        yield
