"""Frames are decoded while the rest of their series still arrives.

Stage: beside a series' arrival, before its job. In: paths of instances that have just been kept.
Out: decoded frames, copied into the volume when the job asks for them, so that little more than
the last instance is left to decode by then. What survives a crash: nothing, and nothing depends
on it: what is not here when it is asked for is decoded then.

The room is bounded. When it is full, the oldest frames go; when even that doesn't help, or an
instance can't be decoded, it is left to its job, which says so in front of a person.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from dicom_gateway.assemble.arena import Arena
from dicom_gateway.assemble.decoders import DecoderPool
from dicom_gateway.assemble.frames import frames_of
from dicom_gateway.assemble.headers import Header, read_header
from dicom_gateway.assemble.pixels import PixelTask, plan_pixels
from dicom_gateway.errors import ArenaFull, GatewayError, UnusableSeries, VolumeTooLarge
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.records import ArenaSpan

KEEP_S = 120.0
"""How long a frame waits for its job. Longer, and its series lacks something."""


@dataclass(slots=True, eq=False)
class _Decoded:
    """One frame: waiting for a decoder, with one, done, or of no use."""

    task: PixelTask
    span: ArenaSpan
    since_s: float
    ended: threading.Event = field(default_factory=threading.Event)
    usable: bool = False
    dropped: bool = False
    """Nobody wants it any more; whoever has it in hand gives its room back."""
    begun: bool = False


class Ahead:
    """Decodes what arrives; `run` serves until `stop`.

    Args:
        room: Where decoded frames wait; of this object alone.
        decoders: Shared with the jobs.
        read: Gives a header by path; a caller that will ask again passes its cache.
    """

    def __init__(
        self,
        room: Arena,
        decoders: DecoderPool,
        read: Callable[[Path], Header] = read_header,
    ) -> None:
        self._room = room
        self._decoders = decoders
        self._read = read
        self._mutex = threading.Lock()
        self._frames: OrderedDict[PixelTask, _Decoded] = OrderedDict()
        self._arrived: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self._work: queue.SimpleQueue[_Decoded | None] = queue.SimpleQueue()
        self._log = get_logger(room="assemble")

    def arrived(self, path: Path) -> None:
        """An instance is kept under `path`; returns at once."""
        self._arrived.put(path)

    def run(self) -> None:
        """Plans what arrives and has it decoded, until `stop`."""
        helpers = [
            threading.Thread(target=self._decode_all, name=f"ahead-{n}", daemon=True)
            for n in range(self._decoders.size)
        ]
        for one in helpers:
            one.start()
        try:
            while (path := self._arrived.get()) is not None:
                self._plan(path)
        finally:
            self._drop_all()
            for _ in helpers:
                self._work.put(None)
            for one in helpers:
                one.join()

    def stop(self) -> None:
        """Ends `run` once what the decoders have in hand is done."""
        self._arrived.put(None)
        self._drop_all()  # what waits for a decoder needn't be decoded any more

    def take(
        self, arena: Arena, frames: Sequence[tuple[int, PixelTask]]
    ) -> list[tuple[int, PixelTask]]:
        """Copies what is decoded already to its places.

        Waits for those that a decoder has in hand just now; those that none has begun with are
        left to the caller.

        Args:
            arena: Where they go.
            frames: Offsets in bytes there, and what belongs there.

        Returns:
            Those that the caller must decode itself.
        """
        left = []
        for offset_bytes, task in frames:
            with self._mutex:
                found = self._frames.pop(task, None)
                if found is not None and not found.begun:
                    found.dropped = True
            if found is None or found.dropped:
                left.append((offset_bytes, task))
                continue
            found.ended.wait()
            try:
                if found.usable:
                    span = ArenaSpan(arena.name, offset_bytes, task.size_bytes)
                    shape = (task.rows, task.columns)
                    arena.view(span, task.dtype, shape)[...] = self._room.view(
                        found.span, task.dtype, shape
                    )
                else:
                    left.append((offset_bytes, task))
            finally:
                self._room.free(found.span)
        return left

    def _plan(self, path: Path) -> None:
        try:
            tasks = [plan_pixels(frame) for frame in frames_of(self._read(path))]
        except UnusableSeries:
            return  # no image, or none that could be used: its job will say so
        for task in tasks:
            with self._mutex:
                known = task in self._frames
            if known:
                continue
            span = self._some_room(task.size_bytes)
            if span is None:
                return
            one = _Decoded(task, span, time.monotonic())
            with self._mutex:
                self._frames[task] = one
            self._work.put(one)

    def _some_room(self, size_bytes: int) -> ArenaSpan | None:
        now_s = time.monotonic()
        with self._mutex:
            # They lie in the order in which they came.
            old = list(takewhile(lambda one: now_s - one.since_s > KEEP_S, self._frames.values()))
        self._drop(old)
        while True:
            try:
                return self._room.allocate(size_bytes)
            except VolumeTooLarge:
                return None
            except ArenaFull:
                with self._mutex:
                    oldest = next(
                        (one for one in self._frames.values() if one.ended.is_set()), None
                    )
                if oldest is None:
                    return None
                self._drop([oldest])

    def _drop(self, some: Iterable[_Decoded]) -> None:
        for one in some:
            with self._mutex:
                if self._frames.get(one.task) is not one:
                    continue  # its job has just taken it
                del self._frames[one.task]
                one.dropped = True
                in_hand = not one.ended.is_set()
            if not in_hand:
                self._room.free(one.span)

    def _drop_all(self) -> None:
        with self._mutex:
            everything = list(self._frames.values())
        self._drop(everything)

    def _decode_all(self) -> None:
        while (one := self._work.get()) is not None:
            with self._mutex:
                one.begun = not one.dropped
            if one.begun:
                try:
                    self._decoders.decode_frame(self._room.path, one.span.offset_bytes, one.task)
                    one.usable = True
                except GatewayError as error:
                    # Its job meets the same and says so where a person looks.
                    self._log.info("not_decoded_ahead", code=error.code)
                except Exception:  # noqa: BLE001 - a thread's outermost edge; its job does it
                    self._log.error("not_decoded_ahead", exc_info=True)
            with self._mutex:
                one.ended.set()
                dropped = one.dropped
            if dropped:
                self._room.free(one.span)
