"""A finished object becomes durable, or is held aside.

In: how to write it, how to check it. Out: a file under its final name, synced, checked as it
lies on the disk, its folder synced. What survives a crash: the finished file or nothing; a
half-written one has another name and is removed at the next start.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from dicom_gateway.errors import EncodingFailed, Retryable

HELD = "held"
"""Folder beside the results for objects that the geometry gate has held, by job."""


def keep(
    path: Path,
    write: Callable[[BinaryIO], None],
    check: Callable[[Path], None],
    held: Path | None = None,
) -> None:
    """Temporary file, sync, check, rename, sync of the folder.

    Args:
        path: The final name.
        write: Writes the whole object.
        check: Reads it again from the disk; raises `EncodingFailed` where it isn't right.
        held: Where an object goes that isn't; None throws it away.

    Raises:
        EncodingFailed: as `check` raised it; the object lies in `held`, or nowhere.
        Retryable: (result_not_written) the disk doesn't take it.
    """
    # A name for each attempt: one whose lease was lost may still be writing the same object.
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        try:
            check(unfinished)
        except EncodingFailed:
            _hold(unfinished, path.name, held)
            raise
        unfinished.rename(path)
        _sync(path.parent)
    except OSError as error:
        msg = f"the result can't be written ({error.strerror}); is the store's disk full?"
        raise Retryable(msg, code="result_not_written") from error
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _hold(unfinished: Path, name: str, held: Path | None) -> None:
    if held is not None:
        held.mkdir(parents=True, exist_ok=True)
        unfinished.rename(held / name)
        _sync(held)
        _sync(held.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
