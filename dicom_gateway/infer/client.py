"""The request to Triton: a volume in the arena goes in, label maps come out.

In: `Volume` and `Contract`. Out: `Inference`, copied out of the arena. Nothing survives a
crash here: the job is claimed again and infers again.

Two bytes per voxel go in and one comes out, both through shared memory; the request itself
carries only RESCALE and AFFINE (a few kilobytes).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

from dicom_gateway.config import TritonSettings
from dicom_gateway.errors import (
    ContractMismatch,
    GatewayError,
    RequestLost,
    TritonUnavailable,
    VolumeTooLarge,
)
from dicom_gateway.infer.contract import SeenContracts, read_contract
from dicom_gateway.infer.mapping import (
    as_gateway_error,
    broke_under_it,
    part_is_dead,
    status_of,
)
from dicom_gateway.infer.region import RPC_TIMEOUT_S, Arena, Region
from dicom_gateway.records import ArenaSpan, Contract, Inference, Output, Volume

_CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC's own patience grows to two minutes; a restarted Triton is back in seconds.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),  # images never travel through a proxy of the site
    ("grpc.use_local_subchannel_pool", 1),
]

_ANSWERED = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
"""Only a server says these: the request has ended there. The rest gRPC also says by itself."""

_PAGE_BYTES = 4096
"""Spans of the arena start on a page."""

_NUMPY: dict[str, type[np.uint8] | type[np.uint16]] = {"UINT8": np.uint8, "UINT16": np.uint16}


class _Answer:
    """What the callback of one request leaves for the thread that waits for it."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.result: InferResult | None = None
        self.error: InferenceServerException | None = None

    def __call__(self, result: InferResult | None, error: InferenceServerException | None) -> None:
        self.result, self.error = result, error
        self.done.set()


class TritonClient:
    """One Triton, seen from one gateway process; safe to use from several threads.

    Args:
        settings: Where Triton is and how long a request may take.
        seen_folder: Where the last seen contracts are kept.
    """

    def __init__(self, settings: TritonSettings, seen_folder: Path) -> None:
        self._settings = settings
        self._triton = InferenceServerClient(settings.url, channel_args=_CHANNEL)
        self._seen = SeenContracts(seen_folder)
        self._regions: dict[str, Region] = {}
        self._computed_when_broken: dict[str, int] = {}
        self._closed = False

    # Contracts ----------------------------------------------------------------------

    def contract(self, pipeline: str) -> Contract:
        """The contract of one pipeline: Triton's, or the last seen while Triton is away.

        Raises:
            TritonUnavailable: Triton doesn't answer or doesn't serve it, and it was never
                seen before.
            ContractMismatch: it carries none, or one that this gateway doesn't speak.
        """
        try:
            text = self._contract_text(pipeline)
        except TritonUnavailable:
            seen = self._seen.text(pipeline)
            if seen is None:
                raise
            return read_contract(seen, pipeline)
        contract = read_contract(text, pipeline)
        self._seen.keep(pipeline, text)
        return contract

    def contracts(self, names: Iterable[str]) -> dict[str, Contract]:
        """The contracts of several pipelines, by name; raises as `contract` does."""
        return {name: self.contract(name) for name in names}

    def check_ready(self, pipeline: str) -> None:
        """A cheap look before the expensive work, and the end of old quarantines.

        Raises:
            TritonUnavailable: a request for `pipeline` would certainly fail now.
        """
        try:
            ready = self._triton.is_model_ready(pipeline, client_timeout=RPC_TIMEOUT_S)
        except InferenceServerException as error:
            raise TritonUnavailable(str(as_gateway_error(error))) from error
        if not ready:
            msg = f"Triton at {self._settings.url} doesn't serve '{pipeline}' (yet)"
            raise TritonUnavailable(msg)
        for region in self._regions.values():
            if region.quarantined_bytes:
                region.ensure_registered()

    def is_ready(self) -> bool:
        """Whether Triton answers and has loaded its models."""
        try:
            return bool(self._triton.is_server_ready(client_timeout=RPC_TIMEOUT_S))
        except InferenceServerException:
            return False

    # Shared memory ------------------------------------------------------------------

    def use_arena(self, arena: Arena) -> None:
        """Makes an arena known; it is registered before the first request needs it."""
        self._regions[arena.name] = Region(arena, self._triton)

    def quarantined_bytes(self, arena: Arena) -> int:
        """Bytes of `arena` that Triton may still touch although their request has ended."""
        return self._regions[arena.name].quarantined_bytes

    # The request --------------------------------------------------------------------

    def infer(
        self,
        volume: Volume,
        contract: Contract,
        arena: Arena,
        job_id: str,
        stop: threading.Event | None = None,
    ) -> Inference:
        """Runs the pipeline on a volume and copies its label maps out.

        Takes the volume's span over: whatever happens, it goes back to the arena as soon
        as Triton can't touch it any more, and the caller must not free it.

        Args:
            volume: IMAGE lies in `arena`, int16 [K, J, I].
            contract: Of the pipeline to run.
            arena: The one given to `use_arena`.
            job_id: Becomes Triton's request id.
            stop: Ends the wait early when set.

        Raises:
            TritonUnavailable: away, not ready, or `stop` was set.
            RequestLost: a part of Triton died under the request, or it took too long.
            InferenceRejected: Triton says that the input is at fault, or the model broke.
            ContractMismatch: the outputs aren't what the contract says.
            ArenaFull: no room for the outputs just now.
            VolumeTooLarge: no room for the outputs ever.
        """
        region = self._regions[arena.name]
        spans = [volume.image]
        answer: _Answer | None = None
        try:
            outputs = _outputs(contract, volume.dtype)
            voxels = int(np.prod(volume.shape_kji))
            check_room(contract, arena, voxels)
            masks: dict[str, ArenaSpan] = {}
            for output in outputs:
                masks[output.name] = arena.allocate(voxels * _voxel_bytes(output))
                spans.append(masks[output.name])
            region.ensure_registered()
            if stop is not None and stop.is_set():
                msg = "the job was stopped before its request was sent"
                raise TritonUnavailable(msg)
            started = time.monotonic()
            answer = self._ask(volume, contract, masks, job_id, stop)
            duration_s = time.monotonic() - started
            if answer.error is not None:
                stopped = stop is not None and stop.is_set()
                raise self._what_became(answer.error, contract, stopped) from answer.error
            return Inference(
                labelmaps={
                    output.name: _copy_out(answer.result, output, arena, masks[output.name], volume)
                    for output in outputs
                },
                duration_s=duration_s,
            )
        finally:
            if answer is None or answer.error is None or status_of(answer.error) in _ANSWERED:
                region.give_back(spans)
            else:
                region.quarantine(spans)

    def _ask(
        self,
        volume: Volume,
        contract: Contract,
        masks: dict[str, ArenaSpan],
        job_id: str,
        stop: threading.Event | None,
    ) -> _Answer:
        """Sends the request and waits for its answer, whatever that is."""
        image = InferInput("IMAGE", list(volume.shape_kji), volume.dtype)
        image.set_shared_memory(
            volume.image.region, volume.image.size_bytes, offset=volume.image.offset_bytes
        )
        wanted = []
        for name, span in masks.items():
            output = InferRequestedOutput(name)
            output.set_shared_memory(span.region, span.size_bytes, offset=span.offset_bytes)
            wanted.append(output)
        answer = _Answer()
        call = self._triton.async_infer(
            contract.pipeline,
            [image, _inline("RESCALE", volume.rescale), _inline("AFFINE", volume.affine_lps)],
            answer,
            outputs=wanted,
            request_id=job_id,
            client_timeout=self._settings.request_timeout_s,
        )
        while not answer.done.wait(0.1):
            if stop is not None and stop.is_set():
                call.cancel()  # calls `answer` with CANCELLED; Triton may go on for a while
                answer.done.wait()
        return answer

    def _what_became(
        self, error: InferenceServerException, contract: Contract, stopped: bool
    ) -> GatewayError:
        """The error to raise; a request that took something down with it is `RequestLost`."""
        told = as_gateway_error(error)
        if stopped or not isinstance(told, TritonUnavailable):
            return told
        lost = broke_under_it(error)
        if part_is_dead(error):
            lost = self._was_well(contract.pipeline)
        return RequestLost(str(told)) if lost else told

    def _was_well(self, pipeline: str) -> bool:
        """Whether a pipeline that is broken now has computed since it was last found broken.

        A stub stays dead until somebody loads its model again, and meets every request until
        then: only the first of them can have killed it.
        """
        try:
            statistics = self._triton.get_inference_statistics(
                pipeline, client_timeout=RPC_TIMEOUT_S
            )
            # Nanoseconds, not a count: after a restart that may come to the same number.
            computed = sum(one.inference_stats.success.ns for one in statistics.model_stats)
        except InferenceServerException:
            computed = 0
        before = self._computed_when_broken.get(pipeline)
        self._computed_when_broken[pipeline] = computed
        return before is None or computed not in (0, before)

    def _contract_text(self, pipeline: str) -> str:
        try:
            config = self._triton.get_model_config(pipeline, client_timeout=RPC_TIMEOUT_S).config
        except InferenceServerException as error:
            raise as_gateway_error(error) from error
        if "contract" not in config.parameters:
            return ""
        return str(config.parameters["contract"].string_value)

    def close(self) -> None:
        """Unregisters the arenas and hangs up; call when no request is under way."""
        if self._closed:
            return
        self._closed = True
        for region in self._regions.values():
            region.unregister()
        self._triton.close()


def _inline(name: str, values: NDArray[np.float64]) -> InferInput:
    tensor = InferInput(name, list(values.shape), "FP64")
    tensor.set_data_from_numpy(np.ascontiguousarray(values, dtype=np.float64))
    return tensor


def check_room(contract: Contract, arena: Arena, voxels: int) -> None:
    """Ask it before a volume is decoded: can IMAGE and every label map lie in the arena?

    Args:
        contract: Of the pipeline to run.
        arena: Where they will lie together; each begins on a page.
        voxels: K * J * I.

    Raises:
        VolumeTooLarge: not even when the arena is empty.
        ContractMismatch: the pipeline is none that this gateway can ask.
    """
    image = _whole_pages(2 * voxels)
    masks = sum(_whole_pages(voxels * _voxel_bytes(one)) for one in _outputs(contract, "INT16"))
    if image + masks > arena.size_bytes:
        mib = 2**20
        msg = (
            f"this volume of {voxels} voxels needs {image / mib:.1f} MiB of shared memory and its "
            f"result {masks / mib:.1f} MiB beside it, and the arena has "
            f"{arena.size_bytes / mib:.1f} MiB in all; set triton.arena-bytes in gateway.yaml to "
            f"at least {image + masks}, restart the gateway, then 'tritome jobs retry'"
        )
        raise VolumeTooLarge(msg)


def _whole_pages(size_bytes: int) -> int:
    return -(-size_bytes // _PAGE_BYTES) * _PAGE_BYTES


def _voxel_bytes(output: Output) -> int:
    return np.dtype(_NUMPY[output.datatype]).itemsize


def _outputs(contract: Contract, dtype: str) -> list[Output]:
    if contract.input_kind != "volume" or dtype != "INT16":
        taken = {"volume": "one volume", "image": "one 2-D image", "inputs": "several inputs"}
        msg = (
            f"'{contract.pipeline}' takes {taken[contract.input_kind]} and the study gives a "
            f"volume of {dtype}; this gateway sends one INT16 volume"
        )
        raise ContractMismatch(msg)
    outputs = [output for output in contract.outputs if output.kind == "labelmap"]
    for output in outputs:
        if not output.on_input_grid:
            msg = (
                f"output {output.name} of '{contract.pipeline}' has a grid of its own, so its mask "
                "can't be placed on the study; give the bundle's postprocessing an Invertd"
            )
            raise ContractMismatch(msg)
    for output in outputs:
        if output.datatype not in _NUMPY:
            msg = (
                f"output {output.name} of '{contract.pipeline}' is a label map of "
                f"{output.datatype}; this gateway reads UINT8 and UINT16"
            )
            raise ContractMismatch(msg)
    if not outputs:
        msg = f"'{contract.pipeline}' has no label map among its outputs; this gateway needs one"
        raise ContractMismatch(msg)
    return outputs


def _copy_out(
    result: InferResult | None, output: Output, arena: Arena, span: ArenaSpan, volume: Volume
) -> NDArray[Any]:
    told = None if result is None else result.get_output(output.name)
    if told is None or tuple(told.shape) != volume.shape_kji or told.datatype != output.datatype:
        found = "nothing" if told is None else f"{told.datatype} {list(told.shape)}"
        msg = (
            f"output {output.name} is {found} where the contract promises {output.datatype} "
            f"{list(volume.shape_kji)}; build the pipeline again"
        )
        raise ContractMismatch(msg)
    return np.array(arena.view(span, _NUMPY[output.datatype], volume.shape_kji))
