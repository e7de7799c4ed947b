"""The request to Triton: images in the arena go in, label maps and scores come out.

In: volumes and their contract. Out: `Inference`, copied out of the arena. Nothing survives a
crash here: the job is claimed again and infers again.

Two bytes per voxel go in and one comes out, both through shared memory; the request itself
carries only RESCALE and AFFINE (a few kilobytes). `request.py` makes and reads it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

from dicom_gateway.config import TritonSettings
from dicom_gateway.errors import (
    GatewayError,
    RequestLost,
    Retryable,
    TritonUnavailable,
)
from dicom_gateway.infer.contract import SeenContracts, read_contract
from dicom_gateway.infer.mapping import (
    as_gateway_error,
    broke_under_it,
    part_is_dead,
    status_of,
)
from dicom_gateway.infer.region import RPC_TIMEOUT_S, Arena, Region
from dicom_gateway.infer.request import Request
from dicom_gateway.infer.turns import PARAMETER, Lanes, Turns
from dicom_gateway.records import Contract, Inference, Priority, Volume

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

_LEVELS = {level: number for number, level in enumerate(Priority, 1)}
"""Triton counts from 1, the most urgent."""

_END_BY_ITSELF_S = 5.0
"""So long a stopped request has time to end between its windows, and to say that it has."""


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
        turns: Where the models see who waits and who can't; without it nobody is paused.
    """

    def __init__(
        self, settings: TritonSettings, seen_folder: Path, turns: Turns | None = None
    ) -> None:
        self._settings = settings
        self._turns = turns if turns is not None and turns.works else None
        self._lanes = Lanes()
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

    @property
    def has_lost_an_arena(self) -> bool:
        """Whether Triton had an arena and doesn't find it any more; only a new one helps."""
        return any(region.is_lost for region in self._regions.values())

    def quarantined_bytes(self, arena: Arena) -> int:
        """Bytes of `arena` that Triton may still touch although their request has ended."""
        return self._regions[arena.name].quarantined_bytes

    # The request --------------------------------------------------------------------

    def infer(
        self,
        volumes: Volume | Sequence[Volume],
        contract: Contract,
        arena: Arena,
        job_id: str,
        stop: threading.Event | None = None,
        *,
        priority: Priority = Priority.NORMAL,
    ) -> Inference:
        """Runs the pipeline on what a study brings and copies its results out.

        Takes the volumes' spans over: whatever happens, they go back to the arena as soon
        as Triton can't touch them any more, and the caller must not free them.

        Args:
            volumes: One for each of `slots_of(contract)`, on one grid, images in `arena`: int16
                or float32 [K, J, I]; a 2-D image has K = 1.
            contract: Of the pipeline to run.
            arena: The one given to `use_arena`.
            job_id: Becomes Triton's request id.
            stop: Ends the wait early when set.
            priority: Immediate requests find a lane free, and pause the others.

        Raises:
            TritonUnavailable: away, not ready, `stop` was set, or another version of the
                pipeline has been loaded since its contract was read.
            RequestLost: a part of Triton died under the request, or it took too long.
            InferenceRejected: Triton says that the input is at fault, or the model broke.
            ContractMismatch: the outputs aren't what the contract says.
            ArenaFull: no room for the outputs just now.
            VolumeTooLarge: no room for the outputs ever.
        """
        region = self._regions[arena.name]
        given = (volumes,) if isinstance(volumes, Volume) else tuple(volumes)
        request = Request(contract, given, arena)
        answer: _Answer | None = None
        try:
            inputs, outputs = request.make()
            with self._turn(contract.pipeline, job_id, priority, stop):
                region.ensure_registered()
                if stop is not None and stop.is_set():
                    msg = "the job was stopped before its request was sent"
                    raise TritonUnavailable(msg)
                started = time.monotonic()
                answer = self._ask(
                    contract.pipeline, inputs, outputs, job_id, stop, priority=priority
                )
            duration_s = time.monotonic() - started
            trouble = None
            if answer.error is not None:
                stopped = stop is not None and stop.is_set()
                trouble = self._what_became(answer.error, contract, stopped)
            if not isinstance(trouble, Retryable):
                self._check_unchanged(contract)
            if trouble is not None:
                raise trouble from answer.error
            return request.read(answer.result, duration_s)
        finally:
            if answer is None or answer.error is None or status_of(answer.error) in _ANSWERED:
                region.give_back(request.held)
            else:
                region.quarantine(request.held)

    def _ask(
        self,
        pipeline: str,
        inputs: list[InferInput],
        outputs: list[InferRequestedOutput],
        job_id: str,
        stop: threading.Event | None,
        *,
        priority: Priority,
    ) -> _Answer:
        """Sends the request and waits for its answer, whatever that is."""
        answer = _Answer()
        call = self._triton.async_infer(
            pipeline,
            inputs,
            answer,
            outputs=outputs,
            request_id=job_id,
            client_timeout=self._settings.request_timeout_s,
            priority=_LEVELS[priority],
            parameters={PARAMETER: self._turns.name} if self._turns is not None else None,
        )
        while not answer.done.wait(0.1):
            if stop is not None and stop.is_set():
                if self._turns is not None:
                    self._turns.drop(job_id)
                    if answer.done.wait(_END_BY_ITSELF_S):
                        break
                call.cancel()  # calls `answer` with CANCELLED; Triton may go on for a while
                answer.done.wait()
        return answer

    @contextmanager
    def _turn(
        self, pipeline: str, request_id: str, priority: Priority, stop: threading.Event | None
    ) -> Iterator[None]:
        """While it lasts the models know of the request; a lane stays free for immediate ones."""
        if self._turns is None:
            yield
            return
        immediate = priority is Priority.IMMEDIATE
        most = {} if immediate else self._lanes_for_others(pipeline)
        with (
            self._lanes.enter(most, stop),
            self._turns.listed(request_id, immediate=immediate),
        ):
            yield

    def _lanes_for_others(self, pipeline: str) -> dict[str, int]:
        """For each step's model with several instances, one less; the others keep no lane free."""
        most: dict[str, int] = {}
        try:
            ensemble = self._triton.get_model_config(pipeline, client_timeout=RPC_TIMEOUT_S).config
            for step in ensemble.ensemble_scheduling.step:
                name = step.model_name
                found = self._triton.get_model_config(name, client_timeout=RPC_TIMEOUT_S).config
                # On GPUs a group has its count of instances on each.
                count = sum(g.count * max(1, len(g.gpus)) for g in found.instance_group)
                most |= {name: count - 1} if count > 1 else {}
        except InferenceServerException:
            return {}
        return most

    def _check_unchanged(self, contract: Contract) -> None:
        """An answer is only believed while its pipeline's contract is what it was before.

        Where another version has been loaded in between, labels may mean something else.
        """
        name = contract.pipeline
        if read_contract(self._contract_text(name), name) != contract:
            msg = f"another version of '{name}' was loaded while it computed; it computes again"
            raise TritonUnavailable(msg)

    def _what_became(
        self, error: InferenceServerException, contract: Contract, stopped: bool
    ) -> GatewayError:
        """The error to raise; a request that took something down with it is `RequestLost`."""
        told = as_gateway_error(error)
        if stopped or not isinstance(told, TritonUnavailable):
            return told
        if status_of(error) is grpc.StatusCode.DEADLINE_EXCEEDED:
            patience_s = self._settings.request_timeout_s
            told = TritonUnavailable(
                f"'{contract.pipeline}' gave no answer within {patience_s:g} s; where it only "
                "takes longer, raise triton.request-timeout-s in gateway.yaml"
            )
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
