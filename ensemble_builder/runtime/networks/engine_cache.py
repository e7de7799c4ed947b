"""Where engines that fit only this machine are kept: never in the model repository.

A TensorRT engine takes minutes to build and runs on one kind of GPU with one version of
TensorRT. It is kept in `TRITOME_CACHE` (or `XDG_CACHE_HOME`/tritome, or ~/.cache/tritome),
under a digest of everything it was made from. An engine is code, so a folder that others can
write to is not used. What survives a crash: whole engines; a half-written one has another name.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
from pathlib import Path

FOLDER = "TRITOME_CACHE"

_log = logging.getLogger(__name__)


def cache_folder() -> Path | None:
    """The folder, made where it was missing; None where there can be none that is ours alone."""
    named = os.environ.get(FOLDER)
    try:
        base = os.environ.get("XDG_CACHE_HOME")
        folder = Path(named) if named else Path(base or Path.home() / ".cache") / "tritome"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
        _log.warning("engines are built anew at each load, there is no cache folder: %s", error)
        return None
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        _log.warning("engines are built anew at each load: others may write to the cache folder")
        return None
    return folder


def digest(model: bytes, *made_from: object) -> str:
    """A name for an engine: of the network and of everything else it was made from."""
    found = hashlib.sha256(hashlib.sha256(model).digest())
    for part in made_from:
        found.update(f"{part!r}\n".encode())
    return found.hexdigest()


def cached(name: str) -> bytes | None:
    """An engine kept under this digest."""
    folder = cache_folder()
    if folder is None:
        return None
    with contextlib.suppress(OSError):
        return (folder / f"{name}.engine").read_bytes()
    return None


def keep(name: str, engine: bytes) -> None:
    """Keeps an engine; one that can't be kept is built again next time."""
    folder = cache_folder()
    if folder is None:
        return
    try:
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as file:
            file.write(engine)
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(folder / f"{name}.engine")
    except OSError as error:
        _log.warning("an engine can't be kept: %s", error.strerror)
