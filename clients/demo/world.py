"""The demo's little hospital: Triton and gateway as processes, a PACS, and a sender's view.

In: a model repository. Out: addresses, and what the gateway says about its jobs. Lives in
a temporary folder; everything is gone afterwards, whatever happens.
"""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from clients.commands.jobs import Index
from clients.commands.serve import GATEWAY, TRITON, gateway_program, triton_program
from clients.errors import ClientError
from clients.receiver import Receiver
from clients.send import Peer
from clients.supervise import Supervisor
from dicom_gateway.config import load_settings
from dicom_gateway.records import Job, JobEvent

CALLED = "LUNG"
CALLING = "TRITOME_SEND"
PIPELINE = "lung_ct"
_PACS = "DEMO_PACS"
_PROGRAMS = (TRITON, GATEWAY)


class TooLate(ClientError):
    """The demo's time is over."""


@dataclass
class Patience:
    """A deadline, and why we wait just now.

    Args:
        timeout_s: For the demo as a whole.
    """

    timeout_s: float
    _until: float = field(init=False)

    def __post_init__(self) -> None:
        self._until = time.monotonic() + self.timeout_s

    def check(self, waiting_for: str) -> None:
        """Does nothing while there is time.

        Raises:
            TooLate: there is none.
        """
        if time.monotonic() > self._until:
            msg = (
                f"after {self.timeout_s:.0f} s the demo was still waiting for {waiting_for}. "
                "On a slow machine give it more with --timeout-s"
            )
            raise TooLate(msg)


@dataclass
class World:
    """What runs while the demo does."""

    peer: Peer
    triton_url: str
    pacs: Receiver
    config: Path
    supervisor: Supervisor
    patience: Patience

    def wait_until(self, that: str, true: Callable[[], bool], every_s: float = 0.3) -> float:
        """Returns the seconds it took.

        Raises:
            ClientError: a program died for good, or the time is over.
        """
        started = time.monotonic()
        while not true():
            self.supervisor.require_running()
            self.patience.check(that)
            self.supervisor.wait(every_s)
        return time.monotonic() - started

    def triton_ready(self) -> bool:
        """Whether the pipeline can be asked."""
        from tritonclient.grpc import InferenceServerClient  # noqa: PLC0415
        from tritonclient.utils import InferenceServerException  # noqa: PLC0415

        with InferenceServerClient(self.triton_url) as client:
            try:
                return bool(client.is_model_ready(PIPELINE, client_timeout=2.0))
            except InferenceServerException:
                return False

    def gateway_listens(self) -> bool:
        """Whether the gateway accepts connections."""
        with socket.socket() as probe:
            probe.settimeout(1.0)
            return probe.connect_ex((self.peer.host, self.peer.port)) == 0

    @contextmanager
    def index(self) -> Iterator[Index]:
        """The gateway's index, as `tritome jobs` reads it."""
        index = Index(self.config)
        try:
            yield index
        finally:
            index.close()

    def jobs(self) -> list[tuple[Job, list[JobEvent]]]:
        """All jobs and their stories, the oldest first."""
        with self.index() as index:
            jobs = index.desk.list_jobs()
            return [(job, index.desk.events(job.job_id)) for job in reversed(jobs)]

    def last_words(self) -> str:
        """The newest lines of both programs, for a failure."""
        parts = []
        for name in _PROGRAMS:
            words = self.supervisor.last_words(name, 15)
            parts.append(f"--- the last lines of {name}\n{words or '(it said nothing)'}")
        return "\n".join(parts)


@contextmanager
def a_world(
    model_repository: Path, received: Path, log: Path, patience: Patience
) -> Iterator[World]:
    """Starts everything on free ports and ends it all with the block.

    Args:
        model_repository: What Triton serves.
        received: Where the PACS writes what it gets.
        log: Where the lines of both programs go.
        patience: How long all may take.
    """
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tritome-demo-")))
        # The port of the PACS is held by the PACS itself; the others may, in theory, be
        # taken by someone else before their programs bind them, which then says so.
        pacs = stack.enter_context(Receiver(received, ae_title=_PACS))
        scp, http, grpc, metrics = _free_ports(4)
        config = work / "gateway.yaml"
        config.write_text(yaml.safe_dump(_settings(work, scp, grpc, pacs.port)), encoding="utf-8")
        load_settings(config)
        lines = stack.enter_context(log.open("w", encoding="utf-8"))

        def write(name: str, line: str) -> None:
            lines.write(f"{name}: {line}\n")
            lines.flush()

        programs = (
            triton_program(model_repository, grpc_port=grpc, http_port=http, metrics_port=metrics),
            gateway_program(config),
        )
        supervisor = stack.enter_context(Supervisor(programs, write, too_many_deaths=2))
        peer = Peer("127.0.0.1", scp, CALLED, CALLING)
        yield World(peer, f"127.0.0.1:{grpc}", pacs, config, supervisor, patience)


def _settings(work: Path, scp: int, grpc: int, pacs: int) -> Mapping[str, object]:
    return {
        "dicom": {
            "scp": {
                "host": "127.0.0.1",
                "port": scp,
                "ae-titles": [
                    {"ae-title": CALLED, "pipelines": [PIPELINE], "destinations": ["pacs"]}
                ],
                "sources": [{"ae-title": CALLING}],
            },
            "scu": {
                "destinations": [
                    {"name": "pacs", "host-ip": "127.0.0.1", "port": pacs, "ae-title": _PACS}
                ]
            },
        },
        "triton": {"url": f"127.0.0.1:{grpc}"},
        "store": {"folder": str(work / "store")},
    }


def _free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in held]
    finally:
        for one in held:
            one.close()
