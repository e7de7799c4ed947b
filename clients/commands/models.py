"""`tritome models`: what a repository holds and what a Triton serves of it.

Everything goes through Triton's own repository API, in explicit mode; a server that is not
running just has nothing to say.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from clients.console import out, plain_table
from clients.errors import ClientError

if TYPE_CHECKING:
    from collections.abc import Sequence

RPC_TIMEOUT_S = 10.0
LOAD_TIMEOUT_S = 300.0


def list_models(repository: Path, url: str) -> None:
    """Prints each model with its versions, the one that is chosen, and its state."""
    from ensemble_builder.repository import served_version, versions_of  # noqa: PLC0415

    states = _states(url)
    folders = sorted(one for one in repository.glob("*") if (one / "config.pbtxt").is_file())
    if not folders:
        msg = f"{repository} holds no model; `tritome build` writes some"
        raise ClientError(msg)
    table = plain_table("Model", "Kind", "Versions", "Served next", "In Triton")
    for model in folders:
        versions = versions_of(model)
        newest = model / str(versions[-1]) if versions else model
        kind = "pipeline" if (newest / "contract.json").is_file() else "step"
        table.add_row(
            Text(model.name, "bold" if kind == "pipeline" else ""),
            kind,
            ", ".join(map(str, versions)),
            str(served_version(model)) if versions else "none",
            "no server" if states is None else states.get(model.name, "not loaded"),
        )
    out.print(table)


def load(repository: Path, pipeline: str, url: str) -> None:
    """Loads a pipeline's models anew, steps first: what `build` wrote is served then.

    Until then the pipeline is not served.

    Raises:
        ClientError: Triton doesn't answer or doesn't take them.
    """
    from ensemble_builder.repository import served_version, steps_of_version  # noqa: PLC0415

    steps = steps_of_version(repository / pipeline, served_version(repository / pipeline))
    _load(list(steps), url)
    out.print(f"{pipeline} is loaded.")


def unload(repository: Path, pipeline: str, url: str) -> None:
    """Unloads a pipeline; its steps stay where another pipeline uses them.

    Raises:
        ClientError: Triton doesn't answer.
    """
    from ensemble_builder.repository import served_version, steps_of_version  # noqa: PLC0415

    own = set(steps_of_version(repository / pipeline, served_version(repository / pipeline)))
    for contract in repository.glob("*/*/contract.json"):
        other = contract.parents[1].name
        if other != pipeline:
            own -= set(steps_of_version(contract.parents[1], int(contract.parent.name)))
    client = _client(url)
    try:
        for name in (pipeline, *sorted(own - {pipeline})):
            _call(client.unload_model, name, client_timeout=RPC_TIMEOUT_S)
    finally:
        client.close()
    out.print(f"{pipeline} is unloaded. `tritome models load {pipeline}` brings it back.")


def roll(repository: Path, pipeline: str, version: int | None, url: str) -> None:
    """Chooses an earlier (or later) version of a pipeline, and loads it where Triton runs.

    Raises:
        ClientError: there is no such version, or Triton doesn't take it.
    """
    from ensemble_builder.repository import (  # noqa: PLC0415
        roll_to,
        served_version,
        versions_of,
    )

    if version is None:
        before = [
            n
            for n in versions_of(repository / pipeline)
            if n < served_version(repository / pipeline)
        ]
        if not before:
            msg = f"{pipeline} has no earlier version to go back to"
            raise ClientError(msg)
        version = before[-1]
    chosen = roll_to(repository, pipeline, version)
    out.print(f"Version {version} of {pipeline} is chosen.")
    if _states(url) is None:
        out.print(f"No Triton answers at {url}; it will serve it when it starts.")
        return
    _load(list(chosen), url)
    out.print(f"Triton serves it now. Back again: tritome models roll {pipeline} --to N")


def _load(models: Sequence[str], url: str) -> None:
    """Loads the steps of a pipeline, then itself, the last of `models`.

    It isn't served meanwhile: old and new steps together compute neither of the two, and the
    labels would be those of the old one. The gateway's jobs wait.
    """
    pipeline = models[-1]
    is_served = (_states(url) or {}).get(pipeline, "").startswith("ready")
    client = _client(url)
    try:
        if is_served:
            _call(client.unload_model, pipeline, client_timeout=RPC_TIMEOUT_S)
        for name in models:
            with out.status(f"Loading {name} ..."):
                _call(client.load_model, name, client_timeout=LOAD_TIMEOUT_S)
    except ClientError as error:
        if not is_served:
            raise
        msg = f"{error}; {pipeline} isn't served now: `tritome models roll` takes the one before"
        raise ClientError(msg) from error
    finally:
        client.close()


def _states(url: str) -> dict[str, str] | None:
    """Model -> state and version, None where no Triton answers."""
    from tritonclient.utils import InferenceServerException  # noqa: PLC0415

    client = _client(url)
    try:
        index = client.get_model_repository_index(client_timeout=RPC_TIMEOUT_S).models
    except InferenceServerException:
        return None
    finally:
        client.close()
    found: dict[str, str] = {}
    # The index has a line for each version it ever loaded; the one that is ready wins.
    for one in sorted(index, key=lambda one: bool(one.state == "READY")):
        found[one.name] = f"{one.state.lower()} {one.version} {one.reason}".strip()
    return found


def _client(url: str) -> Any:
    import tritonclient.grpc as triton  # noqa: PLC0415

    return triton.InferenceServerClient(url, channel_args=[("grpc.enable_http_proxy", 0)])


def _call(method: Any, name: str, **options: Any) -> None:
    from tritonclient.utils import InferenceServerException  # noqa: PLC0415

    try:
        method(name, **options)
    except InferenceServerException as error:
        text = str(error.message())
        hint = ""
        if "explicit" in text or "mode" in text:
            hint = " (start Triton with --model-control-mode=explicit, as `tritome triton` does)"
        msg = f"Triton doesn't take '{name}': {text}{hint}"
        raise ClientError(msg) from error
