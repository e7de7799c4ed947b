"""DICOMweb, transcoding to explicit VR little endian, in a child process with limits.

In: paths of kept files, one a line, on standard input. Out: for each its length in eight bytes
and the new file, on standard output; length 0 where it can't be done. What a decoder does to
its process is no harm to the gateway.

Nothing is decoded unless a peer asks for it.
"""

from __future__ import annotations

import os
import resource
import select
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from dicom_gateway.errors import BrokenPixelData

POSSIBLE = frozenset(
    map(
        str,
        (
            ExplicitVRLittleEndian,
            ImplicitVRLittleEndian,
            JPEGLosslessSV1,
            JPEGLSLossless,
            JPEG2000Lossless,
            RLELossless,
        ),
    )
)
"""Transfer syntaxes from which nothing is lost or newly made up.

Not big-endian ones: pydicom doesn't swap their pixel data.
"""
_MEMORY_BYTES = 8 << 30
_OBJECT_TIMEOUT_S = 120.0
_LENGTH = struct.Struct("<Q")
_CHUNK_BYTES = 1 << 20


def transcode(paths: Sequence[Path]) -> Iterator[Iterator[bytes]]:
    """Each file in explicit VR little endian, piece by piece; take each one to its end.

    Raises:
        BrokenPixelData: one can't be decoded, or not within the limits.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", "dicom_gateway.web.dicomweb.transcode"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        for path in paths:
            child.stdin.write(f"{path}\n".encode())
            child.stdin.flush()
            deadline_s = time.monotonic() + _OBJECT_TIMEOUT_S
            length = _LENGTH.unpack(_exactly(child, _LENGTH.size, deadline_s))[0]
            if not length:
                raise _broken()
            yield _pieces(child, length, deadline_s)
    finally:
        child.kill()
        child.stdin.close()
        child.stdout.close()
        child.wait()


def _pieces(child: subprocess.Popen[bytes], length: int, deadline_s: float) -> Iterator[bytes]:
    while length:
        piece = _some(child, min(length, _CHUNK_BYTES), deadline_s)
        length -= len(piece)
        yield piece
        # The peer may take its time; only the child's is counted.
        deadline_s = time.monotonic() + _OBJECT_TIMEOUT_S


def _exactly(child: subprocess.Popen[bytes], size: int, deadline_s: float) -> bytes:
    data = b""
    while len(data) < size:
        data += _some(child, size - len(data), deadline_s)
    return data


def _some(child: subprocess.Popen[bytes], most: int, deadline_s: float) -> bytes:
    assert child.stdout is not None
    fd = child.stdout.fileno()
    ready, _, _ = select.select([fd], [], [], max(0.0, deadline_s - time.monotonic()))
    data = os.read(fd, most) if ready else b""
    if not data:
        raise _broken()
    return data


def _broken() -> BrokenPixelData:
    msg = "an object can't be transcoded; ask for it as it is kept: transfer-syntax=*"
    return BrokenPixelData(msg)


def _work() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = sys.stdout.buffer
    for line in sys.stdin.buffer:
        try:
            data = _in_explicit_little_endian(Path(os.fsdecode(line.rstrip(b"\n"))))
        except Exception:  # noqa: BLE001 - this process's outermost edge around foreign codecs
            data = b""
        out.write(_LENGTH.pack(len(data)))
        out.write(data)
        out.flush()


def _in_explicit_little_endian(path: Path) -> bytes:
    ds = dcmread(path)
    if UID(ds.file_meta.TransferSyntaxUID).is_compressed:
        ds.decompress(generate_instance_uid=False)
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    anew = BytesIO()
    ds.save_as(anew, implicit_vr=False, little_endian=True, enforce_file_format=True)
    return anew.getvalue()


if __name__ == "__main__":
    _work()
