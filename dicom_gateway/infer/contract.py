"""The contract: what a served pipeline takes and gives, as the builder wrote it.

In: the JSON text of the model parameter `contract`. Out: `records.Contract`. The last one
seen of each pipeline is kept as a file, so that routing goes on while Triton is away.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dicom_gateway.errors import ContractMismatch
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.records import CodedConcept, Contract, Input, Output, ScoredClass, Segment

SCHEMA_MAJOR = 1
"""The version of the contract's schema that this gateway speaks."""


class _Part(BaseModel):
    # A later minor version may add keys that we can do without.
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Code(_Part):
    value: Annotated[str, Field(min_length=1)]
    scheme_designator: Annotated[str, Field(min_length=1, max_length=16)]
    meaning: Annotated[str, Field(min_length=1, max_length=64)]

    def record(self) -> CodedConcept:
        return CodedConcept(self.value, self.scheme_designator, self.meaning)


_Byte = Annotated[int, Field(ge=0, le=255)]


class _Segment(_Part):
    label: Annotated[int, Field(ge=1, le=65535)]
    name: Annotated[str, Field(min_length=1, max_length=64)]
    category: _Code
    type: _Code
    type_modifier: _Code | None = None
    anatomic_region: _Code | None = None
    colour_rgb: tuple[_Byte, _Byte, _Byte] | None = None

    def record(self) -> Segment:
        return Segment(
            label=self.label,
            name=self.name,
            category=self.category.record(),
            type=self.type.record(),
            type_modifier=self.type_modifier.record() if self.type_modifier else None,
            anatomic_region=self.anatomic_region.record() if self.anatomic_region else None,
            colour_rgb=self.colour_rgb,
        )


class _Class(_Part):
    name: Annotated[str, Field(min_length=1)]
    code: _Code | None = None

    def record(self) -> ScoredClass:
        return ScoredClass(self.name, self.code.record() if self.code else None)


class _Output(_Part):
    name: Annotated[str, Field(min_length=1)]
    kind: Literal["labelmap", "masks", "scores", "image", "boxes", "points"]
    datatype: str
    dims: tuple[int, ...]
    segments: tuple[_Segment, ...] = ()
    classes: tuple[Annotated[str, Field(min_length=1)] | _Class, ...] = ()
    on_input_grid: bool = True

    def record(self) -> Output:
        return Output(
            name=self.name,
            kind=self.kind,
            datatype=self.datatype,
            dims=self.dims,
            segments=tuple(segment.record() for segment in self.segments),
            classes=tuple(
                ScoredClass(one) if isinstance(one, str) else one.record() for one in self.classes
            ),
            on_input_grid=self.on_input_grid,
        )


_Irregular = Literal["refuse", "resample", "split"]


class _Input(_Part):
    kind: Literal["volume", "image", "inputs"]
    modality: str
    irregular: _Irregular | tuple[_Irregular, ...] | None = None

    def allowed(self) -> tuple[Literal["resample", "split"], ...] | None:
        """What may be done to an irregular series; None where the contract says nothing."""
        if self.irregular is None:
            return None
        said = (self.irregular,) if isinstance(self.irregular, str) else self.irregular
        return tuple(one for one in said if one != "refuse")


class _NamedInput(_Part):
    name: Annotated[str, Field(min_length=1)]
    layout: Literal["volume", "channels", "gray", "rgb", "points", "value"]
    modality: str = ""
    channels: tuple[str, ...] = ()
    tensors: Mapping[str, str]
    datatype: str
    dims: tuple[int, ...]

    def record(self) -> Input:
        return Input(
            name=self.name,
            layout=self.layout,
            modality=self.modality,
            channels=self.channels,
            tensors=dict(self.tensors),
            datatype=self.datatype,
            dims=self.dims,
        )


class _Document(_Part):
    builder_version: str
    pipeline: str
    version: str
    description: str = ""
    intended_use: str = ""
    input: _Input
    inputs: tuple[_NamedInput, ...] = ()
    outputs: Annotated[tuple[_Output, ...], Field(min_length=1)]
    peak_bytes_per_voxel: Annotated[float, Field(ge=0)] = 0.0
    weights: Mapping[str, str] = {}


def read_contract(text: str, pipeline: str) -> Contract:
    """The contract as a record.

    Args:
        text: The JSON of the model parameter `contract`.
        pipeline: The ensemble it was read from, for the error's sentence.

    Raises:
        ContractMismatch: no JSON, another schema major version, or a value that the
            schema doesn't allow; one sentence that says which and what to do.
    """
    if not text:
        msg = (
            f"'{pipeline}' is served by Triton but carries no contract; it was not built by "
            "tritome. Build it with 'tritome build', or take it out of gateway.yaml"
        )
        raise ContractMismatch(msg)
    try:
        raw = json.loads(text)
    except json.JSONDecodeError as error:
        msg = f"the contract of '{pipeline}' is no JSON; build the pipeline again"
        raise ContractMismatch(msg) from error
    major = _major(raw)
    if major != SCHEMA_MAJOR:
        found = "names no schema version" if major is None else f"has schema version {major}"
        remedy = "update the gateway" if (major or 0) > SCHEMA_MAJOR else "build the pipeline again"
        msg = (
            f"the contract of '{pipeline}' {found} and this gateway speaks {SCHEMA_MAJOR}; {remedy}"
        )
        raise ContractMismatch(msg)
    try:
        document = _Document.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        msg = f"the contract of '{pipeline}' is wrong at {place}: {first['msg']}"
        raise ContractMismatch(msg) from error
    return Contract(
        pipeline=document.pipeline,
        version=document.version,
        input_kind=document.input.kind,
        modality=document.input.modality,
        outputs=tuple(output.record() for output in document.outputs),
        peak_bytes_per_voxel=document.peak_bytes_per_voxel,
        builder_version=document.builder_version,
        description=document.description,
        intended_use=document.intended_use,
        weights=dict(document.weights),
        irregular=document.input.allowed(),
        inputs=tuple(one.record() for one in document.inputs),
    )


def _major(raw: Any) -> int | None:
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and not isinstance(version, bool):
        return version
    first = version.partition(".")[0] if isinstance(version, str) else ""
    return int(first) if first.isdigit() else None


class SeenContracts:
    """The last contract text seen of each pipeline, one file each; safe from several threads.

    A convenience, never a reason to fail: what can't be kept or read is logged and asked of
    Triton again.

    Args:
        folder: Made when the first contract is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mutex = threading.Lock()
        self._texts: dict[str, str] = {}
        self._kept: dict[str, str] = {}  # what is certainly in the file
        self._log = get_logger(room="infer")

    def keep(self, pipeline: str, text: str) -> None:
        """Remembers the text; the file is replaced in one step, never half written."""
        with self._mutex:
            self._texts[pipeline] = text
            if self._kept.get(pipeline) == text:
                return
            try:
                self._replace(self._path(pipeline), text)
            except OSError as error:
                self._log.warning(
                    "contract_not_kept", pipeline=pipeline, reason=error.strerror or "no reason"
                )
            else:
                self._kept[pipeline] = text

    def text(self, pipeline: str) -> str | None:
        """The text last kept, in this life or an earlier one; None where there is none."""
        with self._mutex:
            if pipeline not in self._texts:
                try:
                    found = self._path(pipeline).read_text(encoding="utf-8")
                except FileNotFoundError:
                    return None
                except (OSError, UnicodeDecodeError) as error:
                    self._log.warning(
                        "contract_not_read", pipeline=pipeline, reason=type(error).__name__
                    )
                    return None
                if not found:
                    return None  # a power cut left the file without its bytes
                self._texts[pipeline] = found
            return self._texts[pipeline] or None

    def _replace(self, path: Path, text: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        # A name of its own: a second process on the same folder can't take it away.
        fd, beside = tempfile.mkstemp(prefix=f"{path.name[:100]}.", suffix=".part", dir=path.parent)
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(fd)
            Path(beside).replace(path)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise

    def _path(self, pipeline: str) -> Path:
        # The name comes from a configuration: quoted, it can't leave the folder.
        return self._folder / f"{quote(pipeline, safe='')}.json"
