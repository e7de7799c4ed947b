"""A real Orthanc, out of the reach of the machine's own network.

Orthanc listens on every address whatever its settings say. Where we may (as root), it
therefore gets a network namespace with one cable to this machine: it sees nobody but us,
and nobody but us sees it. Where we may not, it runs with its HTTP side closed to others
and takes DICOM only from the titles that it knows.

Comes in: a folder. Goes out: the addresses of both ends and a small REST client. Survives
a crash: the folder, which the test gave; a leftover namespace has the prefix `tritome-`.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.processes import PeerFailed, Running, free_port, needs, running

# The address of a proxy, if this machine has one, must not be asked for our own peers.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Orthanc:
    """A listening Orthanc.

    Attributes:
        host: Where it is reached, as seen from this machine.
        our_host: Where this machine is reached, as seen from Orthanc: a receiver that
            Orthanc should send to listens there (or on every address).
    """

    ae_title: str
    host: str
    our_host: str
    dicom_port: int
    http_port: int
    running: Running

    def get(self, path: str) -> Any:
        """The JSON answer to GET `path`, such as `/instances`."""
        return json.loads(self.get_bytes(path))

    def get_bytes(self, path: str) -> bytes:
        """The answer to GET `path` as it is, such as `/instances/{id}/file`."""
        return self._ask("GET", path)

    def post(self, path: str, body: Mapping[str, Any] | list[Any] | str | bytes) -> Any:
        """The JSON answer to POST `path`; text and bytes go as they are, the rest as JSON."""
        return json.loads(self._ask("POST", path, body))

    def put(self, path: str, body: Mapping[str, Any] | list[Any]) -> None:
        """PUT `path`, such as `/modalities/{name}`."""
        self._ask("PUT", path, body)

    def instances(self) -> list[str]:
        """Orthanc's own identifiers of the instances it has."""
        return list(self.get("/instances"))

    def sop_instance_uids(self) -> list[str]:
        """The SOP Instance UIDs of the instances it has, sorted."""
        found = self.get("/instances?expand")
        return sorted(one["MainDicomTags"]["SOPInstanceUID"] for one in found)

    def file(self, instance: str) -> bytes:
        """The DICOM file of the instance with this identifier of Orthanc's."""
        return self.get_bytes(f"/instances/{instance}/file")

    def wait_for(self, count: int, *, timeout_s: float = 60.0) -> list[str]:
        """Orthanc's identifiers of its instances, as soon as there are `count` of them."""
        self.running.wait_until(
            lambda: len(self.instances()) >= count,
            that=f"it had {count} instances",
            timeout_s=timeout_s,
        )
        return self.instances()

    def send(self, resources: list[str], *, ae_title: str, host: str, port: int) -> None:
        """Lets Orthanc send what it has (instances, series, studies) by C-STORE.

        Raises:
            PeerFailed: when Orthanc could not send, with what it said.
        """
        self.put("/modalities/receiver", {"AET": ae_title, "Host": host, "Port": port})
        self.post("/modalities/receiver/store", {"Resources": resources, "Synchronous": True})

    def _ask(self, method: str, path: str, body: Any = None) -> bytes:
        data = body if isinstance(body, bytes | None) else None
        if isinstance(body, str):
            data = body.encode()
        elif data is None and body is not None:
            data = json.dumps(body).encode()
        url = f"http://{self.host}:{self.http_port}{path}"
        try:
            with _OPENER.open(
                urllib.request.Request(url, data=data, method=method), timeout=120
            ) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            msg = f"Orthanc answered {error.code} to {method} {path}: {said}"
            raise PeerFailed(msg) from error


@contextmanager
def orthanc(
    folder: Path,
    ae_title: str = "ORTHANC",
    *,
    known: Mapping[str, tuple[str, str, int]] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Iterator[Orthanc]:
    """Runs Orthanc while the block lasts.

    `folder` takes its storage, its settings and its log. `known` says which peers it knows
    from the start, name -> (AE title, host, port); `settings` are more of Orthanc's own.
    """
    program = needs("Orthanc", package="orthanc")
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        cable = stack.enter_context(_own_network())
        host, our_host, prefix = cable or ("127.0.0.1", "127.0.0.1", ())
        dicom_port, http_port = (4242, 8042) if cable else (free_port(), free_port())
        document = {
            "Name": "tritome-tests",
            "StorageDirectory": str(folder.resolve() / "storage"),
            "IndexDirectory": str(folder.resolve() / "storage"),
            "DicomAet": ae_title,
            "DicomPort": dicom_port,
            "HttpPort": http_port,
            "RemoteAccessAllowed": cable is not None,
            "AuthenticationEnabled": False,
            "DicomAlwaysAllowStore": cable is not None,
            "DicomCheckCalledAet": True,
            "TcpNoDelay": True,
            "SaveJobs": False,
            "DicomModalities": {name: list(peer) for name, peer in (known or {}).items()},
            **(settings or {}),
        }
        config = folder / "orthanc.json"
        config.write_text(json.dumps(document, indent=1), encoding="utf-8")
        process = stack.enter_context(
            running(
                [*prefix, program, "--verbose", config],
                log=folder / "orthanc.log",
                environment={"TCP_NODELAY": "1"},
            )
        )
        peer = Orthanc(ae_title, host, our_host, dicom_port, http_port, process)
        process.wait_until(lambda: _answers(peer), that="it answered")
        yield peer


def _answers(peer: Orthanc) -> bool:
    try:
        peer.get("/system")
    except OSError:
        return False
    return True


@contextmanager
def _own_network() -> Iterator[tuple[str, str, tuple[str, ...]] | None]:
    """A namespace with a cable: (its address, ours, what to put before a command).

    None where this user may not make one.
    """
    ip = needs("ip", package="iproute2")
    tag = secrets.token_hex(4)
    namespace, ours, theirs = f"tritome-{tag}", f"tm{tag}a", f"tm{tag}b"
    # Source: RFC 2544 appendix C.2.2: 198.18.0.0/15 is for tests and on nobody's network.
    number = int(tag, 16)
    subnet = f"198.{18 + (number & 1)}.{number >> 8 & 0xFF}."
    low = (number >> 16 & 0x3F) * 4
    our_host, host = f"{subnet}{low + 1}", f"{subnet}{low + 2}"

    def do(*words: str) -> bool:
        answer = subprocess.run([ip, *words], capture_output=True, check=False)
        return answer.returncode == 0

    if not do("netns", "add", namespace):
        yield None
        return
    inside = ("netns", "exec", namespace, ip)
    try:
        laid = (
            do("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", namespace)
            and do("address", "add", f"{our_host}/30", "dev", ours)
            and do("link", "set", ours, "up")
            and do(*inside, "address", "add", f"{host}/30", "dev", theirs)
            and do(*inside, "link", "set", theirs, "up")
            and do(*inside, "link", "set", "lo", "up")
        )
        yield (host, our_host, (ip, "netns", "exec", namespace)) if laid else None
    finally:
        # The pair of interfaces goes with the namespace only once nobody is in it.
        do("link", "delete", ours)
        do("netns", "delete", namespace)
