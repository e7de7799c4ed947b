"""The contract: what a client needs to know of a pipeline, as one JSON document.

The builder writes it into the ensemble's config as the model parameter `contract`; anyone
reads it through Triton's model-config API. `python -m ensemble_builder.contract` prints its
JSON Schema. The gateway has a reader of its own and never imports this module.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

PARAMETER = "contract"
"""Name of the model parameter that holds the document."""

SCHEMA_VERSION = 1
"""Grows when a reader of the version before would misunderstand the document."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Code(_Part):
    """A code triplet (PS3.3 Table 8.8-1)."""

    value: str = Field(min_length=1, max_length=16)
    scheme_designator: str = Field(min_length=1, max_length=16)
    meaning: str = Field(min_length=1, max_length=64)


_Byte = Annotated[int, Field(ge=0, le=255)]


class SegmentRow(_Part):
    """What one label value means (PS3.3 C.8.20.4)."""

    label: int = Field(ge=1, le=65535)
    name: str = Field(min_length=1, max_length=64)
    category: Code
    type: Code
    type_modifier: Code | None = None
    anatomic_region: Code | None = None
    colour_rgb: tuple[_Byte, _Byte, _Byte] | None = None


class ClassRow(_Part):
    """What one score means, with its code."""

    name: str = Field(min_length=1, max_length=64)
    code: Code | None = None


class InputPart(_Part):
    """The short form of what goes in, enough for a pipeline of one image."""

    kind: Literal["volume", "image", "inputs"]
    """`volume`: one volume [K, J, I]. `image`: one 2-D image. `inputs`: see `inputs`."""
    modality: str
    """DICOM Modality, such as CT; empty where the bundle doesn't say."""
    irregular: Literal["refuse", "resample", "split"] | None = None
    """What may be done to a series that is no regular volume; None leaves it to the site."""


class NamedInput(_Part):
    """One thing that a request brings."""

    name: str
    """The bundle's key for it."""
    layout: Literal["volume", "channels", "gray", "rgb", "points", "value"]
    """[K, J, I]; [C, K, J, I], co-registered; [J, I]; a photograph [H, W, C]; points [N, D],
    indices in the order i, j, k; one number."""
    modality: str
    channels: tuple[str, ...]
    """Names of its channels in their order; empty where the bundle doesn't say."""
    tensors: dict[str, str]
    """Role (`image`, `rescale`, `affine`, `values`) -> Triton tensor."""
    datatype: str
    """Of its main tensor, Triton's word."""
    dims: tuple[int, ...]
    """Of its main tensor, -1 is any."""
    example_shape: tuple[int, ...]
    """A small shape that the builder tried; a heartbeat may use it."""


class OutputPart(_Part):
    """One output tensor of the ensemble."""

    name: str
    kind: Literal["labelmap", "masks", "scores", "image", "boxes", "points"]
    """`labelmap` [K, J, I] or [J, I]; `masks` one per channel, may overlap; `scores` [n]."""
    datatype: str
    """Triton's word, such as UINT8."""
    dims: tuple[int, ...]
    segments: tuple[SegmentRow, ...] = ()
    """Of a label map by label; of masks by channel, the first is 1."""
    classes: tuple[str | ClassRow, ...] = ()
    """Names of the scores, with their codes where the bundle states them, or of the channels of
    masks and images."""
    on_input_grid: bool = True
    """Its voxels are those of the first image; a patch around a click, say, has its own."""


class Contract(_Part):
    """The whole document."""

    schema_version: Literal[1] = 1
    builder_version: str
    pipeline: str = Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")
    version: str
    description: str = ""
    intended_use: str = ""
    input: InputPart
    inputs: tuple[NamedInput, ...] = ()
    outputs: tuple[OutputPart, ...] = Field(min_length=1)
    peak_bytes_per_voxel: float = Field(gt=0)
    """Working memory of all steps together for one voxel of the input, an estimate."""
    weights: dict[str, str]
    """Where the weights came from: sha256, license, source."""
    bundle_sha256: str = ""
    """Digest of everything that was built from: configs, scripts, weights."""
    certificate: str = "parity.json"
    """File in the ensemble's version folder that `tritome verify` writes."""

    def to_json(self) -> str:
        """The document in its one canonical form (sorted keys, no spaces)."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


def main() -> None:
    """Prints the JSON Schema."""
    print(json.dumps(Contract.model_json_schema(), indent=2, sort_keys=True))


if __name__ == "__main__":
    main()
