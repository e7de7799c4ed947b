"""A real gateway process on loopback: `with a_gateway(folder, triton=..., pacs=[...]) as gateway`.

The process is the one an operator runs (`python -m dicom_gateway`), so that it can be killed
as one; its jobs are read from its index, as `tritome jobs` does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml

from dicom_gateway.database import open_database
from dicom_gateway.jobs.desk import JobDesk
from dicom_gateway.records import OBJECT_KIND_OF_SOP_CLASS, Job, JobState, ObjectKind
from dicom_gateway.store import SeriesIndex
from tests.support.patience import until
from tests.support.peers import Sent, storescu

PATIENCE_S = 240.0
ENDED = (JobState.DELIVERED, JobState.FAILED, JobState.CANCELLED, JobState.SUPERSEDED)


@dataclass(frozen=True)
class Pacs:
    """Where results go."""

    name: str
    host: str
    port: int
    ae_title: str


@dataclass
class GatewayProcess:
    """One gateway that a test may kill and start again on the same folder."""

    folder: Path
    settings: dict[str, Any]
    process: subprocess.Popen[bytes] | None = None
    port: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    _log: list[IO[bytes]] = field(default_factory=list)

    def start(self) -> None:
        """Starts it and waits for its door."""
        ready = self.folder / "ready.json"
        ready.unlink(missing_ok=True)
        config = self.folder / "gateway.yaml"
        config.write_text(yaml.safe_dump(self.settings), encoding="utf-8")
        log = (self.folder / "gateway.log").open("ab")
        self._log.append(log)
        environment = os.environ | self.environment
        command = [sys.executable, "-m", "dicom_gateway", "--config", str(config)]
        self.process = subprocess.Popen(
            [*command, "--ready-file", str(ready)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        until(lambda: ready.exists() or self._ended(), timeout_s=PATIENCE_S)
        assert not self._ended(), self.log()
        found = json.loads(ready.read_text(encoding="ascii"))
        self.port = int(found["port"])
        # A scanner knows one port: it stays the same when the gateway comes back.
        self.settings["dicom"]["scp"]["port"] = self.port

    def kill(self) -> None:
        """`kill -9`."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; gives the exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        status = self.process.wait(60)
        for log in self._log:
            log.close()
        return status

    def send(
        self, files: Sequence[Path], *, calling: str = "SCANNER", called: str = "LUNG"
    ) -> Sent:
        """Sends files with dcmtk's storescu."""
        return storescu(files, "127.0.0.1", self.port, calling, called)

    def jobs(self) -> list[Job]:
        """All jobs, oldest first."""
        with self._desk() as desk:
            return sorted(desk.list_jobs(limit=1000), key=lambda job: job.created_at_s)

    def story(self, job: Job) -> list[str]:
        """What happened to a job: `stage: note` per event."""
        with self._desk() as desk:
            return [f"{event.stage}: {event.note}" for event in desk.events(job.job_id)]

    def results(self, job: Job, kind: ObjectKind | None = None) -> list[str]:
        """SOP Instance UIDs of a job's results, of one kind or of all."""
        with self._desk() as desk:
            return [
                result.sop_instance_uid
                for result in desk.results(job.job_id)
                if kind in (None, OBJECT_KIND_OF_SOP_CLASS[result.sop_class_uid])
            ]

    def ignored(self) -> dict[str, str]:
        """Series Instance UID -> why no pipeline wants it."""
        engine = open_database(self._database_url)
        try:
            found = SeriesIndex(engine, self.folder / "data").ignored_series()
        finally:
            engine.dispose()
        return {one.series_instance_uid: one.reasons for one in found}

    def wait_for_jobs(self, count: int, *, timeout_s: float = PATIENCE_S) -> list[Job]:
        """The jobs, once there are `count` and all have ended."""

        def ended() -> bool:
            assert not self._ended(), self.log()
            jobs = self.jobs()
            return len(jobs) >= count and all(job.state in ENDED for job in jobs)

        try:
            until(ended, timeout_s=timeout_s)
        except AssertionError as error:
            msg = f"{self.jobs()}\n{self.log()}"
            raise AssertionError(msg) from error
        return self.jobs()

    def log(self) -> str:
        """The end of what it said."""
        path = self.folder / "gateway.log"
        return path.read_text(encoding="utf-8", errors="replace")[-6000:]

    @property
    def _database_url(self) -> str:
        default = f"sqlite:///{self.folder}/data/index.sqlite"
        return str(self.settings["store"].get("database-url", default))

    @contextmanager
    def _desk(self) -> Iterator[JobDesk]:
        engine = open_database(self._database_url)
        try:
            yield JobDesk(engine, self.folder / "data")
        finally:
            engine.dispose()

    def _ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None


@contextmanager
def a_gateway(
    folder: Path,
    *,
    triton: str,
    pacs: Sequence[Pacs] = (),
    peers: Sequence[Mapping[str, Any]] = (),
    environment: Mapping[str, str] | None = None,
    **sections: Any,
) -> Iterator[GatewayProcess]:
    """Runs a gateway that sends chest CTs for LUNG through lung_ct while the block lasts.

    Args:
        folder: For its settings, log, store and index.
        triton: host:port of the gRPC service.
        pacs: Where results go.
        peers: Whom it fetches from (`pacs` of gateway.yaml).
        environment: More of its environment.
        sections: More of gateway.yaml, such as `completeness={...}`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "dicom": {
            "scp": {
                "host": "127.0.0.1",
                "port": 0,
                "ae-titles": [
                    {
                        "ae-title": "LUNG",
                        "pipelines": ["lung_ct"],
                        "destinations": [one.name for one in pacs],
                    }
                ],
                "sources": [{"ae-title": "SCANNER"}],
            },
            "scu": {
                "ae-title": "TRITOME",
                "retry-first-s": 0.5,
                "retry-max-s": 2.0,
                "destinations": [
                    {
                        "name": one.name,
                        "host-ip": one.host,
                        "port": one.port,
                        "ae-title": one.ae_title,
                    }
                    for one in pacs
                ],
            },
        },
        "triton": {"url": triton, "arena-bytes": 256 * 1024 * 1024},
        "store": {"folder": "data", "min-free-bytes": 0},
        "completeness": {"after-release-s": 0.3, "quiet-s": 5.0, "give-up-s": 2.0},
        "jobs": {"retry-first-s": 0.5, "retry-max-s": 2.0},
        "pacs": [dict(peer) for peer in peers],
    } | sections
    gateway = GatewayProcess(folder, settings, environment=dict(environment or {}))
    try:
        gateway.start()
        yield gateway
    finally:
        if gateway.process is not None:
            gateway.stop()
