"""A small archive: dcmtk's dcmqrscp, which answers C-FIND and C-MOVE from a folder of files.

Comes in: files and where each move destination is. Goes out: a listening peer. Survives a
crash: the folder that the test gave.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import Running, free_port, needs, running

_CONFIG = """
NetworkTCPPort  = {port}
MaxPDUSize      = 16384
MaxAssociations = 8
HostTable BEGIN
{hosts}
HostTable END
VendorTable BEGIN
VendorTable END
AETable BEGIN
{title} {folder} RW (200, 1024mb) ANY
AETable END
"""


@dataclass(frozen=True)
class Dcmqrscp:
    """A listening archive."""

    ae_title: str
    host: str
    port: int
    running: Running


@contextmanager
def dcmqrscp(
    folder: Path, files: Iterable[Path], destinations: Mapping[str, int], ae_title: str = "ARCHIVE"
) -> Iterator[Dcmqrscp]:
    """Runs dcmqrscp on these files while the block lasts.

    `destinations`: AE title -> port on this machine.
    """
    program = needs("dcmqrscp", package="dcmtk")
    indexer = needs("dcmqridx", package="dcmtk")
    storage = folder / "storage"
    storage.mkdir(parents=True)
    paths = [shutil.copy(path, storage / path.name) for path in files]
    subprocess.run([indexer, str(storage), *map(str, paths)], check=True, capture_output=True)
    port = free_port()
    hosts = "\n".join(
        f"peer{number} = ({title}, 127.0.0.1, {at})"
        for number, (title, at) in enumerate(destinations.items())
    )
    config = folder / "dcmqrscp.cfg"
    config.write_text(
        _CONFIG.format(port=port, hosts=hosts, title=ae_title, folder=storage), encoding="ascii"
    )
    command = [program, "--verbose", "--config", str(config), str(port)]
    with running(command, log=folder / "dcmqrscp.log", environment={"TCP_NODELAY": "1"}) as process:
        process.wait_until(lambda: _listens(port), that="it listened")
        yield Dcmqrscp(ae_title, "127.0.0.1", port, process)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
