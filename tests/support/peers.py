"""Real DICOM peers: dcmtk's storescp, storescu and echoscu, Orthanc, and dciodvfy.

Comes in: a folder or files. Goes out: a peer that listens, or what a peer said. A peer
that is not installed is a failure that names the package. Survives a crash: the folders
that the test gave.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom import uid

from tests.support.orthanc import Orthanc, orthanc
from tests.support.processes import MissingPeer, PeerFailed, Running, free_port, needs, running

__all__ = [
    "MissingPeer",
    "Orthanc",
    "PeerFailed",
    "Sent",
    "Storescp",
    "dciodvfy",
    "echoscu",
    "free_port",
    "orthanc",
    "storescp",
    "storescu",
]

# Without it dcmtk waits 45 ms for each instance (Nagle against delayed acknowledgement).
_WITHOUT_DELAY = {"TCP_NODELAY": "1"}

# storescu proposes one family of transfer syntaxes at a time; this names the one that a
# file's own syntax is in. What is not listed is uncompressed and proposed by default.
_PROPOSES = {
    uid.JPEGBaseline8Bit: "--propose-jpeg8",
    uid.JPEGExtended12Bit: "--propose-jpeg12",
    uid.JPEGLossless: "--propose-lossless",
    uid.JPEGLosslessSV1: "--propose-lossless",
    uid.JPEGLSLossless: "--propose-jls-lossless",
    uid.JPEGLSNearLossless: "--propose-jls-lossy",
    uid.JPEG2000Lossless: "--propose-j2k-lossless",
    uid.JPEG2000: "--propose-j2k-lossy",
    uid.RLELossless: "--propose-rle",
    uid.DeflatedExplicitVRLittleEndian: "--propose-deflated",
}


@dataclass(frozen=True)
class Storescp:
    """A listening dcmtk storescp.

    Attributes:
        folder: What was received, whole files only, one for each reception: the same
            instance received twice lies there twice.
    """

    ae_title: str
    host: str
    port: int
    folder: Path
    running: Running

    def received(self) -> list[Path]:
        """The files received so far, oldest first."""
        return sorted(self.folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)

    def wait_for(self, count: int, *, timeout_s: float = 60.0) -> list[Path]:
        """The files received, as soon as there are `count` of them.

        Raises:
            PeerFailed: when they don't come in time, with what storescp said.
        """
        self.running.wait_until(
            lambda: len(self.received()) >= count,
            that=f"it had received {count} instances",
            timeout_s=timeout_s,
        )
        return self.received()

    def wait_for_segmentations(self, count: int, *, timeout_s: float = 60.0) -> list[Path]:
        """The SEGs received, as soon as there are `count` of them; other objects don't count."""
        self.running.wait_until(
            lambda: len(self.segmentations()) >= count,
            that=f"it had received {count} SEGs",
            timeout_s=timeout_s,
        )
        return self.segmentations()

    def segmentations(self) -> list[Path]:
        """The SEGs received so far, oldest first."""
        return [
            path
            for path in self.received()
            if pydicom.filereader.read_file_meta_info(path).MediaStorageSOPClassUID
            == uid.SegmentationStorage
        ]


@contextmanager
def storescp(
    folder: Path, ae_title: str = "STORESCP", *, port: int = 0, options: Iterable[str] = ()
) -> Iterator[Storescp]:
    """Runs dcmtk's storescp while the block lasts (it listens on every address).

    Whole received files appear in `folder`, which is made if it isn't there. Port 0 takes a
    free one; give one to come back where a peer was before. `options` are more of
    storescp's own, such as `--refuse` or `--abort-after`.
    """
    program = needs("storescp", package="dcmtk")
    port = port or free_port()
    folder.mkdir(parents=True, exist_ok=True)
    # Files are written beside the folder and renamed into it when they are whole, so that
    # nobody reads half a file. Unique names make a second reception visible.
    with tempfile.TemporaryDirectory(prefix="storescp-", dir=folder.parent) as beside:
        arriving = Path(beside, "arriving")
        arriving.mkdir()
        command = [
            program,
            *("--verbose", "--accept-all", "--promiscuous"),
            *("--bit-preserving", "--unique-filenames", "--disable-host-lookup"),
            *("--aetitle", ae_title, "--output-directory", str(arriving)),
            *("--exec-sync", "--exec-on-reception", f"mv '#p/#f' '{folder.resolve()}/#f'"),
            *options,
            str(port),
        ]
        log = Path(beside, "log")
        with running(command, log=log, environment=_WITHOUT_DELAY) as process:
            # A probing connection would count as an association that failed.
            process.wait_until(lambda: _listens(port), that="it listened")
            yield Storescp(ae_title, "127.0.0.1", port, folder, process)


@dataclass(frozen=True)
class Sent:
    """How sending went: dcmtk's exit code (0: every response was success) and its words."""

    exit_code: int
    output: str


def storescu(
    files: Iterable[Path],
    host: str,
    port: int,
    calling: str = "STORESCU",
    called: str = "ANY-SCP",
    *,
    options: Iterable[str] = (),
    timeout_s: float = 300.0,
) -> Sent:
    """Sends `files` with dcmtk's storescu, each in its own transfer syntax.

    There is one association for each family of transfer syntaxes among the files.
    `options` are more of storescu's own, such as `--abort`.
    """
    program = needs("storescu", package="dcmtk")
    families: dict[str | None, list[str]] = defaultdict(list)
    for path in files:
        meta = pydicom.filereader.read_file_meta_info(path)
        families[_PROPOSES.get(meta.TransferSyntaxUID)].append(str(path))
    exit_code, output = 0, ""
    for proposes, paths in families.items():
        answer = _run(
            [
                program,
                # --required: without it storescu proposes a fixed list that has no SEG.
                *("--verbose", "--required"),
                *((proposes,) if proposes else ()),
                *("--aetitle", calling, "--call", called),
                *options,
                host,
                str(port),
                *paths,
            ],
            timeout_s,
        )
        exit_code = exit_code or answer.returncode
        output += answer.stdout
    return Sent(exit_code, output)


def echoscu(
    host: str, port: int, calling: str = "ECHOSCU", called: str = "ANY-SCP", *, timeout_s: int = 30
) -> Sent:
    """Asks for a C-ECHO with dcmtk's echoscu."""
    program = needs("echoscu", package="dcmtk")
    titles = ("--aetitle", calling, "--call", called)
    answer = _run([program, "--verbose", *titles, host, str(port)], timeout_s)
    return Sent(answer.returncode, answer.stdout)


def dciodvfy(path: Path) -> list[str]:
    """The errors that dicom3tools' dciodvfy finds in a file; warnings are left out.

    Raises:
        PeerFailed: when it can't judge the file at all, so that an empty list means valid.
    """
    program = needs("dciodvfy", package="dicom3tools")
    answer = _run([program, str(path)], 300.0)
    lines = answer.stdout.splitlines()
    # Errors of the module start the line, errors of a value follow the tag they are about.
    errors = [line for line in lines if re.search(r"(^|- )Error\b", line)]
    if not errors and (answer.returncode or not lines):
        msg = f"dciodvfy could not judge {path.name}: {answer.stdout.strip() or 'no output'}"
        raise PeerFailed(msg)
    return errors


def _run(command: list[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout_s,
        check=False,
        env={**os.environ, **_WITHOUT_DELAY},
    )


def _listens(port: int) -> bool:
    # Source: proc(5), /proc/net/tcp: local address in hex, state 0A is LISTEN.
    suffix = f":{port:04X}"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[1].endswith(suffix):
                return True
    return False
