"""A bundle is code: which ones a person has let run, by digest.

Said once for each bundle; one that has changed since is refused until somebody says
`--trust`. The built-in ones are ours. Kept in one small file of the person who builds.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

from ensemble_builder.bundle import BUILT_IN
from ensemble_builder.errors import BundleError

_IGNORED = frozenset({"__pycache__", ".git"})


class Trust(StrEnum):
    """What is known of a bundle."""

    BUILT_IN = "built in"
    KNOWN = "known"
    """The same bytes were let run before."""
    NEW = "new"
    """Seen for the first time; its digest is recorded now."""
    CHANGED = "changed"
    """It had other bytes before; a person said --trust."""


def trust(bundle: Path, *, again: bool = False) -> tuple[Trust, str]:
    """Records a bundle's digest, or compares it with the recorded one.

    Args:
        bundle: Its folder, or its zip before anything is unpacked.
        again: The person has looked at what changed (`--trust`).

    Returns:
        What is known, and the sha256 over its names and bytes.

    Raises:
        BundleError: it has changed since it was last built, and nobody said --trust.
    """
    if BUILT_IN.resolve() in bundle.resolve().parents:
        return Trust.BUILT_IN, ""
    digest = digest_of(bundle)
    path = _record()
    known = _read(path)
    key = str(bundle.resolve())
    before = known.get(key)
    if before == digest:
        return Trust.KNOWN, digest
    if before is not None and not again:
        msg = (
            f"{bundle.resolve().name}: has changed since it was last built; a bundle is code and "
            "building runs it: look at what changed, then say --trust"
        )
        raise BundleError(msg)
    known[key] = digest
    _write(path, known)
    return (Trust.NEW if before is None else Trust.CHANGED), digest


def digest_of(bundle: Path) -> str:
    """sha256 over the names and bytes of all files of a bundle."""
    digest = hashlib.sha256()
    for path in sorted(_files(bundle)):
        name = "" if path == bundle else str(path.relative_to(bundle))
        with path.open("rb") as file:
            digest.update(f"{name}\0{path.stat().st_size}\0".encode())
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _files(bundle: Path) -> Iterator[Path]:
    if bundle.is_file():
        yield bundle
        return
    for path in bundle.rglob("*"):
        if path.is_file() and not _IGNORED.intersection(path.parts):
            yield path


def _record() -> Path:
    home = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(home) / "tritome" / "trusted_bundles.json"


def _read(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        msg = f"{path} can't be read ({error}); mend or remove it"
        raise BundleError(msg) from error
    return {str(key): str(value) for key, value in found.items()}


def _write(path: Path, known: dict[str, str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        msg = f"{path} can't be written ({error.strerror}); set XDG_DATA_HOME to a folder of yours"
        raise BundleError(msg) from error
