"""Writes planned models into a model repository: beside, synced, then renamed.

Building what is there already changes no byte; a model that would differ gets version N+1, so
that `tritome models` can go back. The ensemble's version names the versions of the models it
was built with (`steps.json`). A reader (Triton loading, a copy running) sees each version whole
or not at all. A build that is killed half-way is mended by building again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from ensemble_builder.errors import RepositoryError
from ensemble_builder.plan import CONFIG_FILE, VERSION, Model, config_text
from ensemble_builder.sharing import STEPS_FILE, refuse_taken_names

WRITTEN_LATER = frozenset({"parity.json"})
"""Files in a version's folder that don't come from the plan."""


def write(
    models: Iterable[Model], repository: Path, *, replace: bool = False
) -> Iterator[tuple[Model, bool]]:
    """Writes the models of one pipeline, one by one.

    Args:
        models: In the order in which they may be loaded, the ensemble last.
        repository: Made where it doesn't exist.
        replace: Write version 1 and drop all others instead of adding one.

    Yields:
        Each model and whether its folder changed; an equal one is left untouched.

    Raises:
        RepositoryError: the repository can't be written, or another pipeline has a model that
            would be replaced by another one (see `sharing.py`).
    """
    planned = list(models)
    try:
        repository.mkdir(parents=True, exist_ok=True)
        # Beside the repository, not in it: Triton takes every folder there for a model, also
        # one whose name begins with a dot, and doesn't start with a half-written one.
        workshop = repository.resolve().parent / f".{repository.resolve().name}-building"
        shutil.rmtree(workshop, ignore_errors=True)
        workshop.mkdir()
        try:
            versions: dict[str, int] = {}
            made = {model.name: _contents(model) for model in planned}
            refuse_taken_names(
                repository,
                planned[-1].name,
                made,
                {
                    name: _read(repository / name / str(there[-1]))
                    for name in made
                    if (there := versions_of(repository / name))
                },
            )
            for model in planned:
                contents = made[model.name]
                if model is planned[-1]:
                    steps = json.dumps(versions, indent=2, sort_keys=True) + "\n"
                    contents[STEPS_FILE] = steps.encode()
                target = repository / model.name
                versions[model.name] = _version_to_write(contents, target, replace=replace)
                yield (
                    model,
                    _write_model(
                        contents,
                        target,
                        workshop / model.name,
                        version=versions[model.name],
                        replace=replace,
                    ),
                )
            _sync(repository)
        finally:
            shutil.rmtree(workshop, ignore_errors=True)
    except OSError as error:
        msg = f"{repository} can't be written: {error.strerror or error}"
        raise RepositoryError(msg) from error


def versions_of(model: Path) -> list[int]:
    """Version numbers of a model's folder, lowest first."""
    return sorted(int(one.name) for one in model.glob("*") if one.name.isdigit() and one.is_dir())


def served_version(model: Path) -> int:
    """The version that Triton serves of a model's folder: the chosen one, or the newest.

    Raises:
        RepositoryError: it has none, or its config can't be read.
    """
    there = versions_of(model)
    if not there:
        msg = f"{model.parent} has no model '{model.name}'; `tritome build` writes one"
        raise RepositoryError(msg)
    chosen = _config(model / CONFIG_FILE).version_policy.specific.versions
    return int(chosen[-1]) if chosen else there[-1]


def steps_of_version(ensemble: Path, version: int) -> dict[str, int]:
    """Model -> version that an ensemble's version was built with, itself included.

    Raises:
        RepositoryError: the ensemble has no such version.
    """
    path = ensemble / str(version) / STEPS_FILE
    try:
        steps = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if version in versions_of(ensemble):
            msg = f"{ensemble.name} is a step of a pipeline; name the pipeline itself"
            raise RepositoryError(msg) from error
        there = ", ".join(map(str, versions_of(ensemble))) or "none"
        msg = f"{ensemble.name} has no version {version} (there is {there})"
        raise RepositoryError(msg) from error
    return {**{str(name): int(number) for name, number in steps.items()}, ensemble.name: version}


def roll_to(repository: Path, ensemble: str, version: int) -> dict[str, int]:
    """Lets Triton serve one version of a pipeline from the next load on.

    Models that several pipelines share go with it.

    Returns:
        Model -> version, in the order in which they should be loaded.

    Raises:
        RepositoryError: there is no such version, or the repository can't be written.
    """
    chosen = steps_of_version(repository / ensemble, version)
    for name, number in chosen.items():
        if not (repository / name / str(number) / CONFIG_FILE).is_file():
            msg = f"{name} has no version {number} any more, which {ensemble} {version} needs"
            raise RepositoryError(msg)
    for name, number in chosen.items():
        model = repository / name
        config = _config(model / str(number) / CONFIG_FILE)
        if number != versions_of(model)[-1]:
            config.version_policy.specific.versions.append(number)
        try:
            _replace_file(model / CONFIG_FILE, config_text(config))
        except OSError as error:
            msg = f"{model} can't be written: {error.strerror}"
            raise RepositoryError(msg) from error
    return chosen


def _config(path: Path) -> pb.ModelConfig:
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), pb.ModelConfig())
    except (OSError, text_format.ParseError) as error:
        msg = f"{path} can't be read: {error}"
        raise RepositoryError(msg) from error


def _version_to_write(contents: Mapping[str, bytes], target: Path, *, replace: bool) -> int:
    there = versions_of(target)
    if replace or not there:
        return int(VERSION)
    return there[-1] if _read(target / str(there[-1])) == contents else there[-1] + 1


def _contents(model: Model) -> dict[str, bytes]:
    """Files of the version's folder, with the config that belongs to it."""
    found = {CONFIG_FILE: _bytes(model.files[CONFIG_FILE])}
    for name, content in model.files.items():
        if name.startswith(f"{VERSION}/"):
            found[name.removeprefix(f"{VERSION}/")] = _bytes(content)
    return found


def _bytes(content: bytes | Path) -> bytes:
    return content.read_bytes() if isinstance(content, Path) else content


def _write_model(
    contents: Mapping[str, bytes], target: Path, beside: Path, *, version: int, replace: bool
) -> bool:
    folder = target / str(version)
    others = [n for n in versions_of(target) if n != version] if replace else []
    same = _read(folder) == contents
    config, served = contents[CONFIG_FILE], target / CONFIG_FILE
    if same and not others and served.is_file() and served.read_bytes() == config:
        return False
    target.mkdir(exist_ok=True)
    if not same:
        _put_folder(folder, contents, beside)
    _replace_file(served, config)
    for gone in others:
        shutil.rmtree(target / str(gone))
    return True


def _put_folder(folder: Path, contents: Mapping[str, bytes], beside: Path) -> None:
    fresh, old = beside.with_suffix(".new"), beside.with_suffix(".old")
    for name, content in contents.items():
        path = fresh / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        _sync(path)
    for inner, _, _ in os.walk(fresh):
        _sync(Path(inner))
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    _sync(folder.parent)


def _replace_file(path: Path, content: bytes) -> None:
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(content)
    _sync(fresh)
    fresh.replace(path)
    _sync(path.parent)


def _read(folder: Path) -> dict[str, bytes]:
    """What lies in a version's folder, without what Python and `tritome verify` leave there."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and path.name not in WRITTEN_LATER
    }


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
