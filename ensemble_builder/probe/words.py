"""How a bundle's own troubles are said, and which of them end the probing at once."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import monai
from monai.transforms import Compose, Invertd, Randomizable

from ensemble_builder.errors import BundleError


def flat(compose: Compose) -> list[Any]:
    """All transforms of a Compose and of those within it."""
    return list(compose.flatten().transforms)


def refuse_randomness(part: str, transforms: Compose) -> None:
    """A training config gives other results each time, so nothing could be proven of it."""
    for one in flat(transforms):
        if isinstance(one, Randomizable) and not isinstance(one, Compose | Invertd):
            msg = (
                f"{part}: {type(one).__name__} is random, as for training; name an "
                "inference config with --config, or take it out"
            )
            raise BundleError(msg)


def extra_list(extra_keys: Sequence[str] | Mapping[str, str]) -> list[str]:
    """The keys themselves, whether or not the network takes them by name."""
    return list(extra_keys.values() if isinstance(extra_keys, Mapping) else extra_keys)


def missing_package(cause: BaseException) -> str:
    """The sentence for a Python package that the bundle needs and this machine lacks."""
    unknown = re.search(r"Cannot locate class or function path: '([^']+)'", str(cause))
    if unknown:
        return (
            f"there is no '{unknown.group(1)}' in MONAI {monai.__version__} or the bundle: is it "
            "spelt right, made for another MONAI, or missing from scripts/?"
        )
    found = re.search(r"No module named '([\w.]+)'", str(cause))
    if not found:
        return ""
    name = found.group(1).split(".")[0]
    return f"needs the Python package '{name}', which is not installed: pip install {name}"


def said(cause: BaseException) -> str:
    """What a library said, in one line of reasonable length."""
    words = " ".join(str(cause).split())
    return f"{type(cause).__name__}: {words[:240]}" if words else type(cause).__name__


def transform_of(error: BaseException) -> str:
    """The transform that MONAI says it was applying, as 'Spacingd: '."""
    found = re.search(r"applying transform <?([\w.]+)", str(error))
    return f"{found.group(1).rsplit('.', 1)[-1]}: " if found else ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Probing tries what must fail; neither MONAI's log nor its warnings concern anybody."""
    loggers = [logging.getLogger(name) for name in ("monai", "monai.transforms.compose", "")]
    levels = [one.level for one in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for one in loggers:
            one.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for one, level in zip(loggers, levels, strict=True):
                one.setLevel(level)


class Failed(Exception):
    """One try didn't work; `depth` says how far it came."""

    def __init__(self, depth: int, sentence: str, missing: str = "") -> None:
        super().__init__(sentence)
        self.depth, self.sentence, self.missing = depth, sentence, missing
