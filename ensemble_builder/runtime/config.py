"""A bundle's config, made ready to be served: the steps without their file I/O.

`BundleConfig` reads one or several config files (as MONAI merges them), applies overrides
and instantiates the parts: `preprocessing`, `inferer`, the network, `postprocessing`. Never
handlers, datasets, evaluators or checkpoint loaders. A bundle is code: parsing it runs the
expressions in it.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pydoc import locate
from typing import Any, cast

import torch
from monai.bundle import ConfigParser
from monai.bundle.config_item import ComponentLocator
from monai.transforms import Compose, LoadImage, LoadImaged, SaveImaged

import ensemble_builder
from ensemble_builder.errors import BundleError
from ensemble_builder.runtime.compatibility import modernised
from ensemble_builder.runtime.rewriting import (
    anchor_macros,
    components,
    is_one_of,
    put_device,
    texts,
    without_files,
)
from ensemble_builder.runtime.steps import READERS, Loaded, Written

PARTS: Mapping[str, tuple[str, ...]] = {
    "preprocessing": ("evaluator::val_data_loader::dataset", "preprocessing", "dataset::transform"),
    "inferer": ("evaluator::inferer", "inferer"),
    "postprocessing": ("evaluator::postprocessing", "postprocessing"),
    "network": ("evaluator::network", "network", "network_def", "net", "model"),
}
"""Where each part is looked for: what the evaluator runs first, then MONAI's own ids."""


class BundleConfig:
    """One bundle's config, parsed; gives the parts that are served.

    Args:
        bundle: The bundle's root; its python packages become importable.
        configs: Config files inside it; later ones win, as MONAI merges them.
        overrides: Config ids and the values put there.
        device: Stands for the config's own `device`.
    """

    def __init__(
        self,
        bundle: Path,
        configs: Sequence[str],
        device: torch.device,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        bundle = bundle.resolve()  # Triton gives its repository as it was named
        _make_importable(bundle)
        self._given = (bundle, configs, device, overrides)
        self._device = device
        self.notes: list[str] = []
        self._parser = ConfigParser()
        self._parser.read_config([str(bundle / name) for name in configs])
        for place, value in (overrides or {}).items():
            self._override(place, value)
        self._resolve_macros(bundle)
        self._parser["bundle_root"] = str(bundle)
        self._parser["device"] = f"$__import__('torch').device('{device}')"
        put_device(self._parser.config, str(device))
        locator = self._parser.locator
        weights_are_loaded = bool(self.components("CheckpointLoader"))
        for place, item in list(components(self._parser.config)):
            name = str(item["_target_"])
            located = _located(name, locator)
            fresh = without_files(item, name, located)
            if fresh is None:
                fresh, notes = modernised(item, located, weights_are_loaded)
                self.notes += notes
            if fresh is not item and place:
                self._parser[place] = fresh
        self._parser.parse()

    def _resolve_macros(self, bundle: Path) -> None:
        """Puts what `%macros` mean in their place, before readers and writers are looked for.

        MONAI looks for their files where the command was given; that is the bundle's root, or
        its configs/, for whoever runs a bundle.

        Raises:
            BundleError: a macro that leads nowhere.
        """
        anchor_macros(self._parser.config, bundle)
        try:
            self._parser.resolve_macro_and_relative_ids()
        except OSError as error:
            msg = f"a %macro names {error.filename}, which can't be read ({error.strerror})"
            raise BundleError(msg) from error
        except (KeyError, IndexError) as error:
            words = " ".join(str(error.args[0]).split())
            msg = f"a %macro names something that isn't there: {words}"
            raise BundleError(msg) from error

    def _override(self, place: str, value: Any) -> None:
        """Puts a value where `a.b.0`, `a::b::0` or `a#b#0` says.

        Raises:
            BundleError: there is no such place to change.
        """
        steps = place.replace("::", "#").split("#")
        if len(steps) == 1 and place not in self._parser.config:
            steps = place.split(".")
        found: Any = self._parser.config
        for step in steps[:-1]:
            try:
                found = found[int(step) if isinstance(found, list) else step]
            except (KeyError, IndexError, ValueError, TypeError) as error:
                msg = f"--set {place}: the config has no '{step}' there"
                raise BundleError(msg) from error
        if not isinstance(found, dict | list):
            msg = f"--set {place}: '{steps[-2]}' is {found!r}; set it as a whole"
            raise BundleError(msg)
        try:
            if isinstance(found, list):
                found[int(steps[-1])] = value
            else:
                found[steps[-1]] = value
        except (IndexError, ValueError) as error:
            msg = f"--set {place}: the list has no item '{steps[-1]}'"
            raise BundleError(msg) from error

    @property
    def folder(self) -> Path:
        """The bundle's root."""
        return self._given[0]

    def again(self) -> BundleConfig:
        """The same config parsed anew, sharing no object with this one, as another process has."""
        return BundleConfig(*self._given)

    # What is written ------------------------------------------------------------------

    def place(self, part: str) -> str | None:
        """The config id of a part, references followed; None where the config has none.

        Without an `evaluator` at the top, the only one further down says where the parts are;
        without any, the only thing that can be the part is it, whatever its id.
        """
        evaluators = [one for one, _ in self.components("Evaluator")]
        for place in PARTS[part]:
            if place.startswith("evaluator::") and self.raw("evaluator") is None:
                if len(evaluators) != 1:
                    continue
                place = place.replace("evaluator", evaluators[0], 1)  # noqa: PLW2901
            found = self._follow(place)
            if found is None:
                continue
            if part == "preprocessing" and place.endswith("dataset"):
                found = self._follow(f"{found}::transform")
            if found is not None:
                return found
        alike = [] if evaluators or self.raw("evaluator") else self._alike(part)
        return alike[0] if len(alike) == 1 else None

    def _alike(self, part: str) -> list[str]:
        """Where something stands that can be nothing else than this part."""
        if part == "inferer":
            return [place for place, _ in self.components("Inferer")]
        if part not in ("preprocessing", "postprocessing"):
            return []
        found = []
        for place, item in self.components("Compose"):
            names = [str(one["_target_"]) for _, one in components(item)]
            reads = any(is_one_of(one, READERS) or one.endswith(".Loaded") for one in names)
            if reads == (part == "preprocessing"):
                found.append(place)
        return found

    def raw(self, name: str, default: Any = None) -> Any:
        """What is written at a config id, nothing instantiated."""
        return self._parser.get(name, default)

    def parsed(self, name: str) -> Any:
        """The value of one config id; its relative paths begin at the bundle's root."""
        with contextlib.chdir(self.folder):  # as whoever runs a bundle stands at its root
            return self._parser.get_parsed_content(name)

    def components(self, target: str) -> list[tuple[str, dict[str, Any]]]:
        """Ids and items whose `_target_` ends in `target`."""
        return [
            (place, item)
            for place, item in components(self._parser.config)
            if str(item["_target_"]).rsplit(".", 1)[-1].endswith(target)
        ]

    def evaluator(self) -> Mapping[str, Any]:
        """The evaluator as it is written; nothing where there is none, or not one."""
        found = self.raw(self._follow("evaluator") or "evaluator")
        if found is None:
            others = [item for _, item in self.components("Evaluator")]
            found = others[0] if len(others) == 1 else {}
        return found if isinstance(found, Mapping) else {}

    def texts(self) -> Iterator[str]:
        """Every string of the config."""
        yield from texts(self._parser.config)

    # What is instantiated -------------------------------------------------------------

    def preprocessing(self) -> Compose:
        """The preprocessing without its reader; also the recipe for its own inverse."""
        return self._compose("preprocessing")

    def postprocessing(self) -> Compose:
        """The postprocessing without its writer, in the bundle's own order."""
        return self._compose("postprocessing")

    def inferer(self) -> Any:
        """The bundle's inferer, such as a SlidingWindowInferer, on this config's device."""
        place = self.place("inferer")
        found = self.parsed(place or "inferer")
        for name in ("device", "sw_device"):
            # A config that asks for CUDA by name would leave the device Triton gave us.
            if getattr(found, name, None) is not None:
                setattr(found, name, self._device)
        return found

    def network(self, network_id: str, seed: int | None = None) -> torch.nn.Module:
        """The network, on the device, in eval mode, without the bundle's weights.

        Args:
            network_id: Its config id.
            seed: Of its random weights; drawn on the CPU, so that they are the same anywhere.
        """
        if seed is None:
            network = self.parsed(network_id)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                network = self.parsed(network_id)
        if not isinstance(network, torch.nn.Module):
            msg = f"{network_id}: is a {type(network).__name__}, expected a torch.nn.Module"
            raise BundleError(msg)
        return network.eval()

    def _compose(self, part: str) -> Compose:
        place = self.place(part)
        if place is None:
            msg = f"the config has no '{part}', which serving needs"
            raise BundleError(msg)
        found = self.parsed(place)
        if isinstance(found, list | tuple):
            found = Compose(list(found))
        if not isinstance(found, Compose):
            msg = f"{part}: is a {type(found).__name__}, expected a Compose of transforms"
            raise BundleError(msg)
        _drop_files(found)
        return found

    def _follow(self, place: str) -> str | None:
        """An id after `@references` along its way; None where there is nothing."""
        found = ""
        for step in place.split("::"):
            found = f"{found}::{step}" if found else step
            for _ in range(16):  # a reference to itself must not hang us
                value = self._parser.get(found, None)
                if value is None:
                    return None
                if not (isinstance(value, str) and value.startswith("@")):
                    break
                found = value[1:].replace("#", "::")
        return found


def _located(name: str, locator: ComponentLocator) -> object:
    """The class that a `_target_` means, as ConfigParser finds it; None where there is none."""
    if name.startswith(("$", "@")):
        return None
    try:
        module = locator.get_component_module_name(name)
        if isinstance(module, str):
            return getattr(importlib.import_module(module), name, None)
        return locate(name)
    except Exception:  # noqa: BLE001 - a bundle's module raises what it likes; parsing says it
        return None


def _drop_files(compose: Compose) -> None:
    """The same for transforms that an expression constructed; disabled ones are left out."""
    kept = []
    for one in compose.transforms:
        found: Any = one
        if one is None:  # what a reference to a disabled item gives
            continue
        if isinstance(one, LoadImage) or (isinstance(one, Loaded) and one.array):
            msg = (
                "preprocessing: LoadImage gives an array; serving needs transforms of "
                "dictionaries, such as LoadImaged with keys"
            )
            raise BundleError(msg)
        if isinstance(one, Compose):
            _drop_files(one)
        elif isinstance(one, LoadImaged):
            loader = one._loader
            found = Loaded(
                one.keys,
                loader.dtype,
                image_only=loader.image_only,
                ensure_channel_first=loader.ensure_channel_first,
            )
        elif isinstance(one, SaveImaged):
            found = Written(one.keys, one.saver.init_kwargs.get("output_dtype"))
        kept.append(found)
    compose.transforms = tuple(kept) if isinstance(compose.transforms, tuple) else kept


_importable: list[str] = []


def _make_importable(bundle: Path) -> None:
    """Puts a bundle's root on the import path, and the bundle read before it off again.

    Packages of different bundles have the same names (`scripts`), so modules of another one
    are forgotten.
    """
    root = str(bundle.resolve())
    if _importable == [root] or not _has_python(bundle):
        return
    while _importable:
        gone = _importable.pop()
        while gone in sys.path:
            sys.path.remove(gone)
        for name, module in list(sys.modules.items()):
            places = [getattr(module, "__file__", None), *_namespace_places(module)]
            if any(one and str(one).startswith(gone + "/") for one in places):
                del sys.modules[name]
    sys.path.insert(0, root)
    _importable.append(root)
    importlib.invalidate_caches()


def _has_python(bundle: Path) -> bool:
    if Path(ensemble_builder.__file__).parent in bundle.resolve().parents:
        return False  # a built-in bundle's modules are ours, and imported as such
    return any(bundle.glob("*.py")) or any(bundle.glob("*/**/*.py"))


def _namespace_places(module: object) -> list[str]:
    try:
        return [str(one) for one in cast(Any, getattr(module, "__path__", ()))]
    except Exception:  # noqa: BLE001 - lazy modules of others raise what they like here
        return []
