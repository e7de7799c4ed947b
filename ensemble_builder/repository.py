"""Writes planned models into a model repository: beside, synced, then renamed.

A reader (Triton loading, a copy running) sees each model as it was or as it is, never half
written. A build that is killed between two renames leaves a model out; building again mends it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from ensemble_builder.errors import RepositoryError
from ensemble_builder.plan import Model


def write(models: Iterable[Model], repository: Path) -> Iterator[tuple[Model, bool]]:
    """Writes the models one by one.

    Yields:
        Each model and whether its folder changed; an equal one is left untouched.

    Raises:
        RepositoryError: the repository can't be written.
    """
    try:
        repository.mkdir(parents=True, exist_ok=True)
        # Beside the repository, not in it: Triton takes every folder there for a model, also
        # one whose name begins with a dot, and doesn't start with a half-written one.
        workshop = repository.resolve().parent / f".{repository.resolve().name}-building"
        shutil.rmtree(workshop, ignore_errors=True)
        workshop.mkdir()
        try:
            for model in models:
                yield model, _write_model(model, repository, workshop)
            _sync(repository)
        finally:
            shutil.rmtree(workshop, ignore_errors=True)
    except OSError as error:
        msg = f"{repository} can't be written: {error.strerror or error}"
        raise RepositoryError(msg) from error


def _write_model(model: Model, repository: Path, workshop: Path) -> bool:
    target = repository / model.name
    contents = {
        name: found.read_bytes() if isinstance(found, Path) else found
        for name, found in model.files.items()
    }
    if _read(target) == contents:
        return False
    fresh, old = workshop / f"{model.name}.new", workshop / f"{model.name}.old"
    for name, content in contents.items():
        path = fresh / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        _sync(path)
    for folder, _, _ in os.walk(fresh):
        _sync(Path(folder))
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    return True


def _read(folder: Path) -> dict[str, bytes]:
    """What lies in a model's folder, without what Python leaves there."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
