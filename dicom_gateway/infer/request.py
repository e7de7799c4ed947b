"""One request's tensors: volumes as a pipeline wants them, its outputs as a job needs them.

In: volumes that lie in the arena, and a contract. Out: Triton's inputs and wished outputs,
and after the answer an `Inference`. Nothing survives a crash.

Images and label maps stay in shared memory; RESCALE, AFFINE and scores are a few kilobytes and
travel in the request itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferInput, InferRequestedOutput, InferResult

from dicom_gateway.errors import ContractMismatch, VolumeTooLarge
from dicom_gateway.infer.region import Arena
from dicom_gateway.infer.slots import inputs_of, slots_of
from dicom_gateway.records import ArenaSpan, Contract, Inference, Input, Output, Volume

_PAGE_BYTES = 4096
"""Spans of the arena start on a page."""

_LABELS: dict[str, type[np.uint8] | type[np.uint16]] = {"UINT8": np.uint8, "UINT16": np.uint16}
_IMAGES: dict[str, type[np.int16] | type[np.float32]] = {"INT16": np.int16, "FP32": np.float32}


@dataclass
class Request:
    """A request while it is made, sent and read.

    Attributes:
        volumes: One for each slot of the contract; the first one's grid is the result's.
        held: Spans to give back, or to keep from use, when it has ended: whatever happens.
    """

    contract: Contract
    volumes: tuple[Volume, ...]
    arena: Arena
    held: list[ArenaSpan] = field(default_factory=list)
    _outputs: tuple[Output, ...] = ()
    _spans: dict[str, ArenaSpan] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.held = [volume.image for volume in self.volumes]

    def make(self) -> tuple[list[InferInput], list[InferRequestedOutput]]:
        """Triton's words for it; room for the outputs is taken.

        Raises:
            ContractMismatch: the pipeline takes or gives what this gateway can't.
            ArenaFull: no room just now.
            VolumeTooLarge: no room ever.
        """
        inputs = inputs_of(self.contract)
        self._outputs = usable_outputs(self.contract)
        slots = slots_of(self.contract)
        if len(slots) != len(self.volumes):
            msg = (
                f"'{self.contract.pipeline}' takes {len(slots)} images and got "
                f"{len(self.volumes)}; write a rule with a role for each of them"
            )
            raise ContractMismatch(msg)
        first = self.volumes[0]
        for dtype in sorted({volume.dtype for volume in self.volumes}):
            check_room(self.contract, self.arena, int(np.prod(first.shape_kji)), dtype)
        tensors = []
        rest = list(self.volumes)
        for one in inputs:
            channels = one.dims[0] if one.layout == "channels" else 1
            volumes, rest = rest[:channels], rest[channels:]
            tensors += self._input(one, volumes)
        wanted = []
        for output in self._outputs:
            asked = InferRequestedOutput(output.name)
            if output.kind != "scores":
                span = self._take(int(np.prod(self._shape(output))) * _label_bytes(output))
                asked.set_shared_memory(span.region, span.size_bytes, offset=span.offset_bytes)
                self._spans[output.name] = span
            wanted.append(asked)
        return tensors, wanted

    def read(self, result: InferResult | None, duration_s: float) -> Inference:
        """Copies the outputs out of the arena.

        Raises:
            ContractMismatch: they aren't what the contract says.
        """
        labelmaps: dict[str, NDArray[Any]] = {}
        scores: dict[str, NDArray[np.float32]] = {}
        for output in self._outputs:
            told = None if result is None else result.get_output(output.name)
            shape = output.dims if output.kind == "scores" else self._shape(output)
            if told is None or tuple(told.shape) != shape or told.datatype != output.datatype:
                found = "nothing" if told is None else f"{told.datatype} {list(told.shape)}"
                msg = (
                    f"output {output.name} is {found} where the contract promises "
                    f"{output.datatype} {list(shape)}; build the pipeline again"
                )
                raise ContractMismatch(msg)
            if output.kind == "scores":
                assert result is not None
                scores[output.name] = _finite(result.as_numpy(output.name), output)
                continue
            span, shape = self._spans[output.name], self._shape(output)
            found_there = self.arena.view(span, _LABELS[output.datatype], shape)
            if output.kind == "masks":
                found_there = np.minimum(found_there, 1)
            # A copy: the span will be somebody else's.
            maps = np.array(found_there).reshape(-1, *self.volumes[0].shape_kji)
            for n, one in enumerate(output.labelmaps):
                labelmaps[one.name] = maps[n]
        return Inference(labelmaps=labelmaps, duration_s=duration_s, scores=scores)

    def _shape(self, output: Output) -> tuple[int, ...]:
        """Of a label map or of masks."""
        grid = self.volumes[0].shape_kji
        spatial = len(output.dims) - (output.kind == "masks")
        shape = grid if spatial == 3 else grid[1:]
        return (output.dims[0], *shape) if output.kind == "masks" else shape

    def _input(self, one: Input, volumes: Sequence[Volume]) -> list[InferInput]:
        first = volumes[0]
        span = first.image
        shape: tuple[int, ...] = first.shape_kji
        if one.layout == "channels":
            shape = (len(volumes), *first.shape_kji)
        elif one.layout == "gray":
            shape = first.shape_kji[1:]
        if _is_gathered(one, first.dtype):
            span = self._gathered(one, volumes)
        image = InferInput(one.tensors["image"], list(shape), one.datatype)
        image.set_shared_memory(span.region, span.size_bytes, offset=span.offset_bytes)
        rescale = np.stack([volume.rescale for volume in volumes])
        return [
            image,
            _inline(one.tensors["rescale"], rescale if one.layout == "channels" else rescale[0]),
            _inline(one.tensors["affine"], first.affine_lps),
        ]

    def _gathered(self, one: Input, volumes: Sequence[Volume]) -> ArenaSpan:
        """Volumes one behind the other in one span, in the input's datatype; theirs go back."""
        shape = volumes[0].shape_kji
        if any(volume.shape_kji != shape for volume in volumes):
            msg = f"the channels of '{self.contract.pipeline}' have different shapes"
            raise ContractMismatch(msg)
        dtype = _IMAGES[one.datatype]
        size_bytes = len(volumes) * int(np.prod(shape)) * np.dtype(dtype).itemsize
        span = self._take(size_bytes)
        gathered = self.arena.view(span, dtype, (len(volumes), *shape))
        for n, volume in enumerate(volumes):
            gathered[n] = self.arena.view(volume.image, _IMAGES[volume.dtype], shape)
        for volume in volumes:  # Triton never sees these
            self.held.remove(volume.image)
            self.arena.free(volume.image)
        return span

    def _take(self, size_bytes: int) -> ArenaSpan:
        span = self.arena.allocate(size_bytes)
        self.held.append(span)
        return span


def usable_outputs(contract: Contract) -> tuple[Output, ...]:
    """Those that become results: label maps, masks and scores.

    Raises:
        ContractMismatch: there is none, or one that can't be placed on the study.
    """
    outputs = tuple(o for o in contract.outputs if o.kind in ("labelmap", "masks", "scores"))
    for output in outputs:
        name = f"output {output.name} of '{contract.pipeline}'"
        if output.kind == "scores":
            if output.datatype != "FP32" or len(output.dims) != 1:
                msg = f"{name} has scores of {output.datatype} {list(output.dims)}, not FP32 [n]"
                raise ContractMismatch(msg)
            continue
        if not output.on_input_grid:
            msg = (
                f"{name} has a grid of its own, so its mask can't be placed on the study; give "
                "the bundle's postprocessing an Invertd"
            )
            raise ContractMismatch(msg)
        if output.datatype not in _LABELS:
            msg = f"{name} is a label map of {output.datatype}; this gateway reads UINT8 and UINT16"
            raise ContractMismatch(msg)
        channels = output.dims[0] if output.kind == "masks" else 1
        labels = [segment.label for segment in output.segments]
        if output.kind == "masks" and labels != list(range(1, channels + 1)):
            msg = (
                f"{name} has {channels} masks and the contract doesn't say what each of them is; "
                "list labels 1, 2, ... for them under 'segments' in the bundle's metadata.json "
                "and build it again"
            )
            raise ContractMismatch(msg)
    if not outputs:
        kinds = ", ".join(sorted({output.kind for output in contract.outputs}))
        msg = (
            f"'{contract.pipeline}' has nothing among its outputs ({kinds}) that this gateway can "
            "make a result of; it takes label maps, masks and scores"
        )
        raise ContractMismatch(msg)
    return outputs


def check_room(contract: Contract, arena: Arena, voxels: int, dtype: str = "INT16") -> int:
    """Ask it before a volume is decoded: can all of a request lie in the arena at once?

    Args:
        contract: Of the pipeline to run.
        arena: Where images and label maps will lie together; each begins on a page.
        voxels: K * J * I of one image; where there are several, they share one grid.
        dtype: Of the images as they are decoded, INT16 or FP32.

    Returns:
        Bytes of the arena that the request takes.

    Raises:
        VolumeTooLarge: not even when the arena is empty.
        ContractMismatch: the pipeline is none that this gateway can ask.
    """
    decoded = _whole_pages(voxels * np.dtype(_IMAGES[dtype]).itemsize)
    came = sent = gathered = 0
    for one in inputs_of(contract):
        if dtype == "FP32" and one.datatype == "INT16":
            msg = (
                f"the series has floating point pixels and '{contract.pipeline}' takes 16-bit "
                "integers; build it with 'tritome build --input-datatype FP32', which takes both, "
                "or send the series with integer pixels"
            )
            raise ContractMismatch(msg)
        channels = one.dims[0] if one.layout == "channels" else 1
        size = _whole_pages(channels * voxels * np.dtype(_IMAGES[one.datatype]).itemsize)
        came += channels * decoded
        sent += size
        gathered += size if _is_gathered(one, dtype) else 0
    masks = sum(
        _whole_pages(voxels * _label_bytes(one) * (one.dims[0] if one.kind == "masks" else 1))
        for one in usable_outputs(contract)
        if one.kind != "scores"
    )
    # For a moment what came lies beside what is sent of it; the label maps come after that.
    image = came + gathered if came + gathered > sent + masks else sent
    needed = max(came + gathered, sent + masks)
    if needed > arena.size_bytes:
        mib = 2**20
        msg = (
            f"this volume of {voxels} voxels needs {image / mib:.1f} MiB of shared memory and its "
            f"result {(needed - image) / mib:.1f} MiB beside it, and the arena has "
            f"{arena.size_bytes / mib:.1f} MiB in all; set triton.arena-bytes in gateway.yaml to "
            f"at least {needed}, restart the gateway, then 'tritome jobs retry'"
        )
        raise VolumeTooLarge(msg)
    return needed


def _is_gathered(one: Input, dtype: str) -> bool:
    """Whether images of this dtype are copied before they are sent."""
    return one.layout == "channels" or dtype != one.datatype


def _whole_pages(size_bytes: int) -> int:
    return -(-size_bytes // _PAGE_BYTES) * _PAGE_BYTES


def _label_bytes(output: Output) -> int:
    return np.dtype(_LABELS[output.datatype]).itemsize


def _inline(name: str, values: NDArray[np.float64]) -> InferInput:
    tensor = InferInput(name, list(values.shape), "FP64")
    tensor.set_data_from_numpy(np.ascontiguousarray(values, dtype=np.float64))
    return tensor


def _finite(scores: NDArray[Any] | None, output: Output) -> NDArray[np.float32]:
    if scores is None or not np.isfinite(scores).all():
        msg = (
            f"output {output.name} holds scores that are no numbers; look at the weights of the "
            "pipeline, and at the image: 'tritome infer' tries it by itself"
        )
        raise ContractMismatch(msg)
    return np.array(scores, dtype=np.float32)
