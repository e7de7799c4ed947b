"""The life of one decoder child: read a task, decode it into the arena, answer, again.

In: JSON lines on the socket whose descriptor is the first argument. Out: a greeting
`{}`, then one JSON line for each, `{}` or `{"kind", "code", "message"}`. It ends when the
socket does, and an alarm ends it in the middle of a codec, so it never outlives its parent
for long, however that ends.

Started as `python -m dicom_gateway.assemble.decode_child FD HEADROOM_BYTES ALARM_S`.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import signal
import socket
import sys

import numpy as np
from numpy.typing import NDArray

from dicom_gateway.assemble.pixels import PixelReader, PixelTask
from dicom_gateway.errors import BrokenPixelData, Retryable, UnusableSeries


def main(descriptor: int, headroom_bytes: int, alarm_s: float) -> None:
    """Serves until the parent closes its end."""
    _limit_memory(headroom_bytes)
    # No handler: only the default action, death, works while a codec holds the interpreter.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    reader = PixelReader()
    with socket.socket(fileno=descriptor) as peer, peer.makefile("rb") as lines:
        peer.sendall(b"{}\n")  # hello: the imports are done
        for line in lines:
            signal.setitimer(signal.ITIMER_REAL, alarm_s)
            answer = _answer(reader, line)
            signal.setitimer(signal.ITIMER_REAL, 0)
            peer.sendall(json.dumps(answer).encode() + b"\n")


def _answer(reader: PixelReader, line: bytes) -> dict[str, str]:
    try:
        _decode(reader, **json.loads(line))
    except UnusableSeries as error:
        return {"kind": "unusable", "code": error.code, "message": str(error)}
    except BrokenPixelData as error:
        return {"kind": "broken", "code": error.code, "message": str(error)}
    except Retryable as error:
        return {"kind": "retryable", "code": error.code, "message": str(error)}
    except MemoryError:
        message = "decoding it takes more memory than a decoder may have"
        return {"kind": "broken", "code": BrokenPixelData.code, "message": message}
    except Exception as error:  # noqa: BLE001 - this is the process's edge
        # Only the type: a library's text may quote values of the data set.
        message = f"the pixels can't be decoded ({type(error).__name__}); send the series again"
        return {"kind": "broken", "code": BrokenPixelData.code, "message": message}
    return {}


def _decode(reader: PixelReader, arena: str, offset_bytes: int, task: dict[str, str | int]) -> None:
    """Maps only the piece of the arena that this frame goes to, and fills it."""
    work = PixelTask(**task)  # type: ignore[arg-type]
    start = offset_bytes - offset_bytes % mmap.ALLOCATIONGRANULARITY
    try:
        fd = os.open(arena, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:  # no fault of the image
        msg = f"the shared memory for volumes can't be opened ({error.strerror})"
        raise Retryable(msg, code="decoder_unavailable") from error
    try:
        piece = mmap.mmap(fd, offset_bytes - start + work.size_bytes, offset=start)
    finally:
        os.close(fd)
    out: NDArray[np.int16] | NDArray[np.float32] = np.ndarray(
        (work.rows, work.columns), work.dtype, buffer=piece, offset=offset_bytes - start
    )
    reader.read(work, out)


def _limit_memory(headroom_bytes: int) -> None:
    # What the interpreter and the codecs have mapped so far counts too.
    with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123
        so_far = int(statm.read().split()[0]) * resource.getpagesize()
    limit = so_far + headroom_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core would hold pixels


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
