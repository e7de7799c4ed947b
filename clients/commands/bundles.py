"""What every command that reads a bundle does first: options, and whether it may run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from clients.console import warn
from clients.errors import ClientError

if TYPE_CHECKING:
    from ensemble_builder.bundle import Options


def options(
    *,
    configs: Sequence[str] = (),
    settings: Sequence[str] = (),
    runtime: str = "auto",
    precision: str = "f32",
    network_backend: str = "",
    name: str | None = None,
    random_weights: int | None = None,
    input_datatype: Literal["INT16", "FP32"] = "INT16",
    instances: int = 2,
) -> Options:
    """The builder's options from a command line's; `settings` are KEY=VALUE, the value YAML.

    Raises:
        ClientError: a setting that isn't one.
    """
    from ensemble_builder.bundle import Options  # noqa: PLC0415 - imports torch and MONAI

    return Options(
        configs=tuple(configs),
        overrides=dict(_setting(one) for one in settings),
        runtime=runtime,
        precision=precision,
        network_backend=network_backend,
        name=name,
        random_weights=random_weights,
        input_datatype=input_datatype,
        instances=instances,
    )


def _setting(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        msg = f"--set {text}: expected KEY=VALUE, such as inferer.roi_size=[64,64,64]"
        raise ClientError(msg)
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        msg = f"--set {text}: the value can't be read as YAML or JSON"
        raise ClientError(msg) from error


def check_trust(bundle: str, *, again: bool) -> None:
    """Says once that a bundle is code; refuses one that changed.

    Raises:
        BundleError: it, or one that a pipeline names, changed since it was last built.
        PipelineError: a pipeline's YAML is wrong.
    """
    from ensemble_builder.pipeline import code_of  # noqa: PLC0415
    from ensemble_builder.trust import Trust, trust  # noqa: PLC0415

    given = Path(bundle)
    if not (given.is_file() or (given / "configs").is_dir()):
        return  # a built-in name, or a mistake that reading it will name: perhaps a whole disk
    for path in code_of(given):
        known, digest = trust(path, again=again)
        if known in (Trust.NEW, Trust.CHANGED):
            warn(
                f"A bundle is code, and reading {path.resolve().name} runs it. Its digest is "
                f"recorded ({digest[:12]}); you will be asked again when it changes."
            )
