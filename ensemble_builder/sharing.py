"""Which pipelines of a repository have a model in common, and may.

A bundle that several pipelines take from the built-in ones is served once, and a newer build of
it goes to all of them. But names are joined with "_", so two pipelines can come to one name by
different ways (pipeline `head`, node `neck_spot`; pipeline `head_neck`, node `spot`): then one
would get the other's network, and nothing would say so.

In: the models about to be written. Out: a refusal, where one would take another's place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ensemble_builder.errors import RepositoryError

STEPS_FILE = "steps.json"
"""Beside an ensemble's version: model -> version that it was built with."""

PIPELINE_RECORD = "pipeline.json"
"""Beside the version of one that joins several bundles: what it is made of."""

_BUNDLE = "bundle/"
_STEPS = ("_preprocess", "_inferer", "_postprocess", "_network")

Files = Mapping[str, bytes]
"""Of one version's folder."""


def refuse_taken_names(
    repository: Path, ensemble: str, planned: Mapping[str, Files], there: Mapping[str, Files]
) -> None:
    """Refuses to write a model that another pipeline has, unless both have the same bundle.

    Args:
        repository: Where they go.
        ensemble: The pipeline that is built; among `planned`, too.
        planned: Model -> what would be written.
        there: Model -> what lies there; models that aren't there are left out.

    Raises:
        RepositoryError: names the model and the pipeline that has it.
    """
    for name, files in there.items():
        users = [one for one in _users(repository, name) if one != ensemble]
        was_ensemble = STEPS_FILE in files
        if name == ensemble:
            taken = users[:1]
        elif was_ensemble:
            taken = [name]
        elif _bundle_of(files) == _bundle_of(planned[name]) and _bundle_of(files):
            taken = []  # one bundle, perhaps by a newer builder
        elif not _bundle_of(files) and dict(files) == dict(planned[name]):
            taken = []  # the same joint
        elif name.removesuffix(_step(name)) == ensemble:
            # A bundle's own pipeline brings it up to date, for those that share it.
            taken = [one for one in users if _has_for_itself(repository, one, ensemble)]
        else:
            taken = users
        if taken:
            msg = (
                f"'{name}' is a model of the pipeline '{taken[0]}' in {repository} already, and "
                f"'{ensemble}' would put another one in its place; give the pipeline or its node "
                "another name, or build into another repository"
            )
            raise RepositoryError(msg)


def _step(name: str) -> str:
    return next((one for one in _STEPS if name.endswith(one)), "")


def _bundle_of(files: Files) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name.startswith(_BUNDLE)}


def _users(repository: Path, model: str) -> list[str]:
    """Ensembles with a version that has this model among its steps."""
    found = set()
    for path in repository.glob(f"*/*/{STEPS_FILE}"):
        try:
            steps = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if model in steps:
            found.add(path.parent.parent.name)
    return sorted(found)


def _has_for_itself(repository: Path, pipeline: str, prefix: str) -> bool:
    """Whether a pipeline calls the models of one of its nodes so, by both names."""
    for path in (repository / pipeline).glob(f"*/{PIPELINE_RECORD}"):
        try:
            members = json.loads(path.read_text(encoding="utf-8"))["members"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if any(of == prefix == f"{pipeline}_{node}" for node, of in dict(members).items()):
            return True
    return False
