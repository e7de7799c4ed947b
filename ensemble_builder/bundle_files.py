"""What lies where in a bundle: its folder or zip, its config files, its weights.

In: what a person named. Out: paths inside the bundle. Nothing of it is run here, but for the
path that its CheckpointLoader states.
"""

from __future__ import annotations

import re
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from ensemble_builder.errors import BundleError
from ensemble_builder.runtime.config import BundleConfig
from ensemble_builder.runtime.recipe import Weights

BUILT_IN = Path(__file__).parent / "pipelines"
WEIGHTS_SUFFIXES = (".pt", ".pth", ".ts", ".ckpt", ".tar")
CONFIG_NAMES = ("inference.json", "inference.yaml", "inference.yml")

LARGEST_ZIP_BYTES = 8 * 2**30
"""A zip that says it unpacks to more is refused."""


def find_bundle(bundle: str | Path) -> Path:
    """The folder of a bundle given by path, by zip, or by the name of a built-in pipeline.

    A zip is unpacked into a folder of its own that is kept for this process.

    Raises:
        BundleError: there is none.
    """
    path = Path(bundle)
    if (path / "configs").is_dir():
        return path
    if path.is_file() and zipfile.is_zipfile(path):
        return _unpacked(path)
    built_in = BUILT_IN / str(bundle)
    if re.fullmatch(r"[a-z][a-z0-9_]*", str(bundle)) and (built_in / "configs").is_dir():
        return built_in
    names = ", ".join(sorted(p.parent.name for p in BUILT_IN.glob("*/configs")))
    near = _near(path)
    msg = (
        f"'{bundle}' is neither a folder with configs/ in it, nor a zip of one, "
        f"nor built in ({names}){f'; did you mean {near}?' if near else ''}"
    )
    raise BundleError(msg)


def _near(path: Path) -> str:
    """A bundle that a path leads into, or the only one in a folder; "" where there is none."""
    if not path.exists():
        return ""
    above = [one for one in path.resolve().parents[:2] if (one / "configs").is_dir()]
    below = [one.parent for one in path.glob("*/configs") if one.is_dir()]
    near = above or (below if len(below) == 1 else [])
    return str(near[0]) if near else ""


_unpacked_zips: dict[Path, tempfile.TemporaryDirectory[str]] = {}


def _unpacked(path: Path) -> Path:
    held = _unpacked_zips.setdefault(
        path.resolve(), tempfile.TemporaryDirectory(prefix="tritome-bundle-")
    )
    root = Path(held.name) / path.stem  # of this name, where the zip has no folder of its own
    if not root.exists():
        try:
            with zipfile.ZipFile(path) as archive:
                if sum(one.file_size for one in archive.infolist()) > LARGEST_ZIP_BYTES:
                    msg = f"{path.name}: unpacks to more than {LARGEST_ZIP_BYTES} bytes"
                    raise BundleError(msg)
                archive.extractall(root)  # zipfile keeps every name inside `root`
        except (OSError, zipfile.BadZipFile, RuntimeError) as error:
            msg = f"{path.name}: can't be unpacked: {error}"
            raise BundleError(msg) from error
    there = [
        one.parent
        for one in root.glob("**/configs")
        if one.is_dir() and "__MACOSX" not in one.parts
    ]
    outermost = min((len(one.parts) for one in there), default=0)
    found = sorted(one for one in there if len(one.parts) == outermost)
    if not found:
        msg = f"{path.name}: has no folder with configs/ in it"
        raise BundleError(msg)
    if len(found) > 1:
        names = ", ".join(one.name for one in found[:4])
        msg = f"{path.name}: has {len(found)} bundles in it ({names}); unpack it and name one"
        raise BundleError(msg)
    return found[0]


def config_names(folder: Path, wanted: Sequence[str]) -> tuple[str, ...]:
    """Paths of the config files inside the bundle."""
    if not wanted:
        found = next((n for n in CONFIG_NAMES if (folder / "configs" / n).is_file()), None)
        if found:
            return (f"configs/{found}",)
        there = [one.name for one in config_files(folder)]
        hint = f"it has {', '.join(there)}: choose with --config" if there else "it holds no config"
        msg = f"configs/ holds none of {', '.join(CONFIG_NAMES)}; {hint}"
        raise BundleError(msg)
    names = []
    for name in wanted:
        inside = [one for one in (name, f"configs/{name}") if (folder / one).is_file()]
        if not inside or folder.resolve() not in (folder / inside[0]).resolve().parents:
            msg = f"--config {name}: there is no such file in the bundle"
            raise BundleError(msg)
        names.append(inside[0])
    return tuple(names)


def config_files(folder: Path) -> list[Path]:
    """All config files of a bundle."""
    return sorted(
        one
        for one in (folder / "configs").glob("*")
        if one.suffix in (".json", ".yaml", ".yml") and one.name != "metadata.json"
    )


def says(file: Path, places: Sequence[str]) -> bool:
    """True where a config file has one of these ids itself."""
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(found, dict) and any(place in found for place in places)


def weights_of(bundle: BundleConfig, folder: Path, seed: int | None) -> Weights:
    """Where the config's own CheckpointLoader finds the weights, or models/model.pt."""
    key, strict, stated = "model", True, "models/model.pt"
    loaders = bundle.components("CheckpointLoader")
    if loaders:
        place, item = loaders[0]
        try:
            found = Path(str(bundle.parsed(f"{place}::load_path")))
        except Exception as error:  # an expression of the bundle's
            msg = f"{place}: load_path can't be evaluated: {' '.join(str(error).split())}"
            raise BundleError(msg) from error
        root = folder.resolve()
        absolute = found if found.is_absolute() else root / found
        if root in absolute.resolve().parents:
            stated = str(absolute.resolve().relative_to(root))
        elif absolute.resolve().is_file() or not (root / stated).is_file():
            msg = f"{place}: load_path lies outside the bundle; put the weights into models/"
            raise BundleError(msg)
        objects = item.get("load_dict", {})
        key = next(iter(objects), "model") if isinstance(objects, Mapping) else "model"
        strict = bool(item.get("strict", True)) and bool(item.get("strict_shape", True))
    if (folder / stated).is_file():
        return Weights(stated, str(key), strict)
    others = _other_weights(bundle, folder, is_said=bool(loaders))
    if len(others) == 1:
        bundle.notes.append(f"the weights are those of {others[0]}")
        return Weights(others[0], str(key), strict)
    if seed is not None:
        return Weights("", str(key), strict, seed)
    if others:
        msg = (
            f"{stated} is missing, and it isn't said which of {', '.join(others)} holds the "
            f"weights; call that one {stated}"
        )
        raise BundleError(msg)
    msg = (
        f"{stated} is missing; {_where_from(folder)} first (or try the bundle with "
        "--random-weights 0, which gives meaningless results)"
    )
    raise BundleError(msg)


def _where_from(folder: Path) -> str:
    """How to get weights: Model Zoo bundles say where their large files are."""
    if any((folder / f"large_files.{suffix}").is_file() for suffix in ("yml", "yaml", "json")):
        return f"fetch it with 'python -m monai.bundle download_large_files --bundle_path {folder}'"
    return "download or train the weights"


def _other_weights(bundle: BundleConfig, folder: Path, *, is_said: bool) -> list[str]:
    """Files that may hold the weights: those that the config names, or all in models/.

    Where a loader says which file it is and that isn't there, whatever else the config names is
    something else, such as a searched architecture.
    """
    there = sorted(one for one in (folder / "models").glob("*") if one.suffix in WEIGHTS_SUFFIXES)
    texts = list(bundle.texts())
    named = [one for one in there if any(one.name in text for text in texts)]
    found = [one for one in there if one not in named] if is_said else named or there
    return [f"models/{one.name}" for one in found]


def named_files(bundle: BundleConfig, folder: Path) -> tuple[str, ...]:
    """Files whose names stand in the config, but for example images in folders of their own."""
    texts = " ".join(bundle.texts())
    there = [*folder.glob("*.*")]
    for part in ("configs", "models", "scripts"):
        there += (folder / part).rglob("*.*")
    named = [path for path in there if path.name in texts and path.is_file()]
    return tuple(sorted(str(path.relative_to(folder)) for path in named))
