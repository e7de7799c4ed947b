"""A pipeline's YAML -> a frozen `PipelineSpec`, or one sentence with file and line.

In: a file that names networks, regions of interest and merges, and how they follow one another.
Out: what it says, every key known and every value of its kind; whether the names in it fit
together is `graph`'s question. `python -m ensemble_builder.spec` prints the JSON Schema, which
also lies in `schema/pipeline.schema.json`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    ValidationError,
    model_validator,
)

from ensemble_builder.contract import Code
from ensemble_builder.errors import PipelineError

SCHEMA_FILE = Path(__file__).parent / "schema" / "pipeline.schema.json"
SCHEMA_ID = "https://json-schema.org/draft/2020-12/schema"

LARGEST_FILE_BYTES = 1_000_000
LARGEST_TREE = 20_000
"""Values in one file; aliases in YAML can make a few lines unfold into billions."""

_OF_BUNDLES = frozenset({"preprocessing", "inferer", "postprocessing", "network_def", "evaluator"})
"""Ids of a bundle's config, which no pipeline has."""

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")]
"""What a node or an input is called: lower_snake, at most 31 characters."""

_Byte = Annotated[int, Field(strict=True, ge=0, le=255)]
_Label = Annotated[int, Field(strict=True, ge=1, le=65535)]

Place = tuple[str | int, ...]
"""Keys and indices that lead to a value of the file, such as ("nodes", "lungs", "image")."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputSpec(_Part):
    """An image that a request brings."""

    modality: Annotated[str, Field(pattern=r"^[A-Z]{0,16}$")] = ""
    """DICOM Modality, such as CT; that of the networks where not given."""


class NetworkNode(_Part):
    """A MONAI bundle that gives a label map."""

    bundle: Annotated[str, Field(min_length=1)]
    """A built-in bundle's name, or a folder or zip, seen from this file."""
    image: Name | Annotated[tuple[Name, ...], Field(min_length=1)] = "image"
    """What the bundle's first input gets: an input or a region; a list fills its channels one by
    one, and then a network or a merge may stand in it too: its labels become a channel."""
    inputs: Mapping[str, Name] = {}
    """Further inputs of the bundle, by its own key -> an input, a region, a network or a merge."""
    config: str | None = None
    """Which inference config of the bundle, where it has several."""
    overrides: Mapping[str, JsonValue] = {}
    """Config ids and their values, as `tritome build --set` has them."""
    runtime: str | None = None
    """What computes the network, such as torch; as `tritome build --runtime` says otherwise."""

    @property
    def channels(self) -> tuple[str, ...]:
        """What the first input gets, one name for each channel."""
        return (self.image,) if isinstance(self.image, str) else self.image


class RegionNode(_Part):
    """A part of the image, found by a mask: cut out, or with all else blanked, or both."""

    region_of: Name
    """The network or merge whose mask says where."""
    labels: Annotated[tuple[_Label, ...], Field(min_length=1)] | None = None
    """Labels that count; all of them where not given."""
    margin_mm: Annotated[float, Field(strict=True, ge=0, le=500, allow_inf_nan=False)] = 0.0
    """How far the region reaches beyond these labels, along the image's axes."""
    crop: Annotated[bool, Field(strict=True)] = True
    """Cut the image to the region's bounding box; masks found in it are pasted back."""
    outside_value: Annotated[float, Field(strict=True, allow_inf_nan=False)] | None = None
    """Where given, every voxel of other labels gets this value (in CT: HU), or the nearest one
    that the image's pixels can hold, so that the mask gates what the next network sees. Voxels
    within `margin_mm` of the labels are kept."""
    when_empty: Literal["whole", "refuse"] = "whole"
    """Where the mask has none of the labels: take the whole image, or refuse the request."""

    @model_validator(mode="after")
    def _does_something(self) -> RegionNode:
        if not self.crop and self.outside_value is None:
            msg = "a region that neither crops nor has an outside_value changes nothing"
            raise ValueError(msg)
        return self


class MergedSegment(_Part):
    """One row of the common segment table."""

    of: Name
    """The member, as `merge` names it."""
    label: _Label
    """The label in that member's mask."""
    to: _Label
    """The label in the merged mask; several rows may share one, which joins them."""
    name: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """The member's own where not given; so are the five below, and null takes one of the last
    three away. Of rows that are joined the first says it; a side, place or colour in which their
    members differ, and which it doesn't say, is left out."""
    category: Code | None = None
    type: Code | None = None
    type_modifier: Code | None = None
    anatomic_region: Code | None = None
    colour_rgb: tuple[_Byte, _Byte, _Byte] | None = None


class MergeNode(_Part):
    """Several masks as one, with one segment table."""

    merge: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Networks or other merges."""
    overlap: Literal["first", "last", "priority", "refuse"]
    """Who gets a voxel that several claim: the first or the last of `merge`, the label that
    stands first in `priority`, or nobody: the request is refused."""
    priority: tuple[_Label, ...] = ()
    """Labels of the merged mask, the strongest first; only with `overlap: priority`."""
    segments: Annotated[tuple[MergedSegment, ...], Field(min_length=1)] | None = None
    """The common table; labels that no row names become background. Where not given: the
    members' segments one after the other, numbered from 1."""

    @model_validator(mode="after")
    def _priority_fits(self) -> MergeNode:
        if (self.overlap == "priority") != bool(self.priority):
            msg = "overlap: priority and a list under priority go together"
            raise ValueError(msg)
        return self


_KINDS: Mapping[str, type[BaseModel]] = {
    "bundle": NetworkNode,
    "region_of": RegionNode,
    "merge": MergeNode,
}
"""The key that tells what a node is -> the node."""


def _kind(value: Any) -> str | None:
    """Tag of a node's kind; with a sign that no key has, so that errors can leave it out."""
    if isinstance(value, BaseModel):
        return next((f"<{key}>" for key, kind in _KINDS.items() if type(value) is kind), None)
    if not isinstance(value, Mapping):
        return None
    return next((f"<{key}>" for key in _KINDS if key in value), None)


Node = Annotated[
    Annotated[NetworkNode, Tag("<bundle>")]
    | Annotated[RegionNode, Tag("<region_of>")]
    | Annotated[MergeNode, Tag("<merge>")],
    Discriminator(_kind),
]


class PipelineSpec(_Part):
    """A pipeline of several models: nodes that name one another, and which one is the result."""

    pipeline: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")]
    """Name of the ensemble in Triton."""
    version: Annotated[str, Field(min_length=1, max_length=64)] = "1"
    description: str = ""
    intended_use: str = ""
    inputs: Annotated[Mapping[Name, InputSpec], Field(min_length=1)] = {"image": InputSpec()}
    nodes: Annotated[Mapping[Name, Node], Field(min_length=1)]
    output: Name
    """The network or merge whose mask is the pipeline's."""


@dataclass(frozen=True, slots=True)
class SpecFile:
    """A pipeline and where each of its values stands.

    Attributes:
        spec: What the file says.
        path: The file.
        lines: Place -> line, from 1.
    """

    spec: PipelineSpec
    path: Path
    lines: Mapping[Place, int]

    def error(self, place: Place, sentence: str) -> PipelineError:
        """An error that says file and line of a value, and what is wrong with it."""
        return PipelineError(_at(self.path, self.lines, place, sentence))


def read_spec(path: Path) -> SpecFile:
    """Reads a pipeline's YAML (or JSON, which is YAML).

    Raises:
        PipelineError: the file can't be read, is no YAML, or says what no pipeline can be.
    """
    raw, lines = _load(path)
    if isinstance(raw, dict) and "nodes" not in raw and _OF_BUNDLES & raw.keys():
        msg = (
            f"{path}: is a config of one bundle, not a pipeline of several; name the bundle's "
            f"folder instead, and this file with --config {path.name}"
        )
        raise PipelineError(msg)
    try:
        return SpecFile(PipelineSpec.model_validate(raw), path, lines)
    except ValidationError as error:
        place, sentence = _explain(error, raw)
        raise PipelineError(_at(path, lines, place, sentence)) from error


def is_spec(path: Path) -> bool:
    """True where a file's name is that of a pipeline's YAML."""
    return path.suffix.lower() in (".yaml", ".yml") and path.is_file()


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a pipeline's YAML."""
    schema = PipelineSpec.model_json_schema(mode="validation")
    return {"$schema": SCHEMA_ID, **schema, "title": "tritome pipeline"}


def schema_text() -> str:
    """The JSON Schema as it lies in `schema/`."""
    return json.dumps(json_schema(), indent=2, sort_keys=True) + "\n"


def _load(path: Path) -> tuple[Any, dict[Place, int]]:
    """The file's values and the line of each."""
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            msg = f"{path}: is larger than {LARGEST_FILE_BYTES} bytes, which no pipeline needs"
            raise PipelineError(msg)
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        if root is None:
            msg = f"{path}:1: is empty; a pipeline needs 'pipeline', 'nodes' and 'output'"
            raise PipelineError(msg)
        lines: dict[Place, int] = {}
        for place, node in _walk(root, path):
            lines[place] = node.start_mark.line + 1
        constructor = yaml.SafeLoader("")
        try:
            return constructor.construct_document(root), lines
        finally:
            constructor.dispose()
    except OSError as error:
        msg = f"{path}: can't be read: {error.strerror or error}"
        raise PipelineError(msg) from error
    except UnicodeDecodeError as error:
        msg = f"{path}: is no text in UTF-8"
        raise PipelineError(msg) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        msg = f"{path}{line}: is no YAML: {error.problem or error.context}"
        raise PipelineError(msg) from error
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, LookupError) as error:
        # The last two: keys that are lists, and tags on values that aren't of their kind.
        why = (str(error).splitlines() or [type(error).__name__])[0]
        msg = f"{path}: is no YAML that can be read here: {why}"
        raise PipelineError(msg) from error


def _walk(root: yaml.Node, path: Path) -> Iterator[tuple[Place, yaml.Node]]:
    """Each value of the document with its place, keys that stand twice refused."""
    left: list[tuple[Place, yaml.Node]] = [((), root)]
    seen = 0
    while left:
        place, node = left.pop()
        seen += 1
        if seen > LARGEST_TREE:
            msg = f"{path}: unfolds into more than {LARGEST_TREE} values; use fewer aliases"
            raise PipelineError(msg)
        yield place, node
        if isinstance(node, yaml.SequenceNode):
            left += [((*place, n), child) for n, child in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, child in node.value:
                line = key.start_mark.line + 1
                if key.value in lines:
                    msg = (
                        f"{path}:{line}: '{key.value}' stands here for the second time, first "
                        f"in line {lines[key.value]}; give one of them another name"
                    )
                    raise PipelineError(msg)
                if isinstance(key.value, str):
                    lines[key.value] = line
                    left.append(((*place, key.value), child))


def _at(path: Path, lines: Mapping[Place, int], place: Place, sentence: str) -> str:
    """`file:line: sentence`, the line of the nearest enclosing value that has one."""
    while place and place not in lines:
        place = place[:-1]
    return f"{path}:{lines.get(place, 1)}: {sentence}"


def _explain(error: ValidationError, raw: Any) -> tuple[Place, str]:
    """The first thing that is wrong, as a place of the file and a sentence."""
    found = error.errors()[0]
    kind = found["type"]
    loc = _in_file(found["loc"], raw, keep_last=kind == "missing")
    what = ".".join(str(part) for part in loc) or "the file"
    if kind == "extra_forbidden":
        known = _known_keys(loc, raw)
        near = difflib.get_close_matches(str(loc[-1]), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
        return loc, f"{what} is no key that a pipeline has here; {hint}"
    if kind == "missing":
        return loc, f"{what} is missing"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        return loc, (
            f"{what} is no node: give it a 'bundle' (a network), a 'region_of' (a part of the "
            "image) or a 'merge' (several masks as one)"
        )
    if kind == "string_pattern_mismatch":
        pattern = str(found["ctx"]["pattern"])
        said = (
            "a short name in lower_snake, such as left_lung"
            if pattern.startswith("^[a-z]")
            else f"something like {pattern}"
        )
        return loc, f"{what} is '{found['input']}', expected {said}"
    if kind in ("model_type", "model_attributes_type", "dict_type", "mapping_type"):
        return loc, f"{what} must have keys and values, as 'key: value'"
    sentence = re.sub(r"^(Value error|Assertion failed), ", "", str(found["msg"]))
    return loc, f"{what}: {sentence[:1].lower()}{sentence[1:]}"


def _in_file(loc: Place, raw: Any, *, keep_last: bool) -> Place:
    """A place as the file has it: pydantic's also names kinds of node and of value."""
    out: list[str | int] = []
    owner = raw
    for n, part in enumerate(loc):
        try:
            owner = owner[part]
        except (KeyError, IndexError, TypeError):
            if not (keep_last and n == len(loc) - 1):
                continue
        out.append(part)
    return tuple(out)


def _known_keys(loc: Place, raw: Any) -> list[str]:
    """Keys that are known where an unknown one stands."""
    owner: Any = raw
    for part in loc[:-1]:
        owner = owner[part]
    if len(loc) == 1:
        return sorted(PipelineSpec.model_fields)
    if loc[0] == "inputs":
        return sorted(InputSpec.model_fields)
    kind = next((_KINDS[key] for key in _KINDS if key in owner), None)
    if kind is not None:
        return sorted(kind.model_fields)
    return sorted((Code if "value" in owner else MergedSegment).model_fields)


def main() -> None:
    """Prints the JSON Schema."""
    print(schema_text(), end="")


if __name__ == "__main__":
    main()
