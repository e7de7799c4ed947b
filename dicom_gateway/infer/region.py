"""The arena as Triton knows it: registered once per server life, and never reused too early.

In: an arena, and spans whose request ended without a clear answer. Out: the certainty that
the region is registered, and the spans given back once Triton can't touch them any more.
Nothing survives a crash; the next start unregisters what this life left behind.

A request that ran out of time, was cancelled, or whose connection broke may still be read
and written by Triton. Its spans are quarantined. Triton counts who uses a region, so the
proof is simple: once it lets us unregister the region, or doesn't know it any more (another
server life), nobody uses it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from dicom_gateway.errors import TritonUnavailable
from dicom_gateway.infer.mapping import as_gateway_error, clean_text
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.records import ArenaSpan

Scalar = TypeVar("Scalar", bound=np.generic)

_NOT_THERE = "Unable to open shared memory region"

RPC_TIMEOUT_S = 5.0
"""For the small questions; an inference has its own limit."""


class Arena(Protocol):
    """What this room needs of `assemble.arena.Arena`."""

    name: str
    size_bytes: int

    @property
    def path(self) -> Path:
        """The file under /dev/shm."""
        ...

    @property
    def key(self) -> str:
        """The name for shm_open(3)."""
        ...

    def allocate(self, size_bytes: int) -> ArenaSpan:
        """Lends a span."""
        ...

    def free(self, span: ArenaSpan) -> None:
        """Takes a span back."""
        ...

    def view(self, span: ArenaSpan, dtype: type[Scalar], shape: tuple[int, ...]) -> NDArray[Scalar]:
        """The memory of a span as an array, in place."""
        ...


class Region:
    """One arena's registration with one Triton; safe to use from several threads."""

    def __init__(self, arena: Arena, triton: InferenceServerClient) -> None:
        self.arena = arena
        self._triton = triton
        self._mutex = threading.Lock()
        self._quarantine: list[ArenaSpan] = []
        self._was_registered = False
        self.is_lost = False
        """Triton had it, and doesn't find it any more: another /dev/shm, or somebody removed it."""
        self._log = get_logger(region=arena.name)

    @property
    def quarantined_bytes(self) -> int:
        """What Triton may still touch although its request has ended for us.

        Without the mutex, which is held while Triton is asked: nobody who only wants to know this
        waits for a Triton that hangs.
        """
        return sum(span.size_bytes for span in tuple(self._quarantine))

    def give_back(self, spans: Iterable[ArenaSpan]) -> None:
        """Returns spans whose request Triton has answered."""
        for span in spans:
            self.arena.free(span)

    def quarantine(self, spans: Iterable[ArenaSpan]) -> None:
        """Keeps spans out of use until Triton certainly has let go of them."""
        with self._mutex:
            self._quarantine.extend(spans)

    def ensure_registered(self) -> None:
        """Registers the arena where the server doesn't know it; call before each request.

        Raises:
            TritonUnavailable: Triton doesn't answer, or can't see our shared memory.
        """
        with self._mutex:
            try:
                regions = self._regions()
                self._forget_leftovers(regions)
                known = self.arena.name in regions
                if known and self._quarantine:
                    known = not self._let_go()
                if known:
                    return
                # Not known, so nobody uses it: an earlier server life ended with its
                # requests, or `_let_go` has just proved it.
                self._give_back_quarantine()
                self._register()
            except InferenceServerException as error:
                raise TritonUnavailable(
                    f"{as_gateway_error(error)}. Triton and the gateway must share /dev/shm, and "
                    "Triton 2.68 or later needs --allow-client-shm=true"
                    if "shared memory" in str(error)
                    else str(as_gateway_error(error))
                ) from error

    def _register(self) -> None:
        try:
            self._triton.register_system_shared_memory(
                self.arena.name,
                self.arena.key,
                self.arena.size_bytes,
                client_timeout=RPC_TIMEOUT_S,
            )
        except InferenceServerException as error:
            self.is_lost = self._was_registered and _NOT_THERE in str(error)
            raise
        self._was_registered = True
        self._log.info("arena_registered", size_bytes=self.arena.size_bytes)

    def unregister(self) -> None:
        """Takes the arena back from Triton, at the end of this gateway; best effort."""
        with self._mutex:
            try:
                self._triton.unregister_system_shared_memory(
                    self.arena.name, client_timeout=RPC_TIMEOUT_S
                )
            except InferenceServerException as error:
                self._log.info("arena_not_unregistered", reason=str(as_gateway_error(error)))

    def _regions(self) -> set[str]:
        status = self._triton.get_system_shared_memory_status(client_timeout=RPC_TIMEOUT_S)
        return set(status.regions)

    def _forget_leftovers(self, regions: set[str]) -> None:
        """Unregisters arenas whose file is gone: their gateway was killed.

        Triton would otherwise hold their memory, patients' images in it, for good.
        """
        prefix = self.arena.name.rpartition("_")[0] + "_"
        for name in sorted(regions - {self.arena.name}):
            if not name.startswith(prefix) or self.arena.path.with_name(name).exists():
                continue
            try:
                self._triton.unregister_system_shared_memory(name, client_timeout=RPC_TIMEOUT_S)
            except InferenceServerException as error:
                # A request of the killed gateway still uses it; the next look is soon.
                self._log.info("leftover_in_use", leftover=name, reason=clean_text(str(error)))
            else:
                self._log.info("leftover_forgotten", leftover=name)

    def _let_go(self) -> bool:
        """Whether Triton gave the region up, which it only does when nobody uses it."""
        try:
            self._triton.unregister_system_shared_memory(
                self.arena.name, client_timeout=RPC_TIMEOUT_S
            )
        except InferenceServerException as error:
            if "in use" in str(error):
                return False  # still registered and usable for other requests
            raise
        if self.arena.name in self._regions():
            # Later Tritons say yes at once and do it when the last request has ended.
            msg = "Triton still works on an earlier request; the next one waits for its end"
            raise TritonUnavailable(msg)
        return True

    def _give_back_quarantine(self) -> None:
        if self._quarantine:
            self._log.info("quarantine_ended", spans=len(self._quarantine))
        while self._quarantine:
            self.arena.free(self._quarantine.pop())
