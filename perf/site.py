"""A whole site on loopback: a tritonserver, a gateway in front of it, and where results go.

In: a model repository, and which called AE title leads to which pipeline. Out: studies can be
sent (by dcmtk's storescu) and waited for, and one sees which processes do what. All of it lies
in a folder that the caller removes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pydicom
import sqlalchemy as sa
import yaml
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    SegmentationStorage,
    Verification,
)

from dicom_gateway.database import jobs, open_database, reading, series
from ensemble_builder.server import TritonServer
from ensemble_builder.server.supervisor import model_of_stub
from perf.intake import program, started
from perf.procfs import family
from perf.road import RoadFailed, free_port
from perf.studies import StudyTemplate

DESTINATION = "SITE_PACS"
RESULT_TIMEOUT_S = 900.0
START_TIMEOUT_S = 300.0
"""A server that loads several networks beside it takes the cores."""
_MAX_PDU_BYTES = 131072
_PROPOSED = {JPEGLSLossless: "-xt", JPEG2000Lossless: "-xv", RLELossless: "-xr"}
"""What makes storescu propose a transfer syntax; it proposes uncompressed ones by itself."""


class Destination:
    """Takes results, and knows when the segmentation of each study was there."""

    def __init__(self) -> None:
        ae = AE(ae_title=DESTINATION)
        ae.maximum_pdu_size = _MAX_PDU_BYTES
        ae.supported_contexts = AllStoragePresentationContexts
        ae.add_supported_context(Verification)
        self._came = threading.Condition()
        self._at_s: dict[str, float] = {}
        server: Any = ae.start_server(
            ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._receive)]
        )
        self._server = server
        self.port = int(server.server_address[1])

    def _receive(self, event: Any) -> int:
        now_s = time.time()
        if event.request.AffectedSOPClassUID != SegmentationStorage:
            return 0x0000  # a report has next to nothing in it
        study = str(event.dataset.StudyInstanceUID)
        with self._came:
            self._at_s.setdefault(study, now_s)
            self._came.notify_all()
        return 0x0000

    def wait(self, study_instance_uid: str, timeout_s: float = RESULT_TIMEOUT_S) -> float:
        """When its segmentation was there, in seconds since 1970.

        Raises:
            RoadFailed: it did not come.
        """
        with self._came:
            if not self._came.wait_for(lambda: study_instance_uid in self._at_s, timeout_s):
                msg = f"no result within {timeout_s:g} s; see 'tritome jobs list'"
                raise RoadFailed(msg)
            return self._at_s[study_instance_uid]

    def close(self) -> None:
        """Ends it."""
        self._server.shutdown()


@dataclass(frozen=True)
class Site:
    """A site that runs.

    Attributes:
        home: Of the gateway; its store and its log lie there.
        temporary: Where gateway and server put temporary files.
        port: The gateway's.
    """

    home: Path
    temporary: Path
    port: int
    server: TritonServer
    gateway_pid: int
    destination: Destination
    engine: sa.Engine = field(repr=False)

    def send(self, files: Path, called_ae_title: str) -> None:
        """Sends every file of a folder in one association; each is acknowledged when it ends."""
        self._storescu(called_ae_title, files)

    def send_anew(self, files: Path, called_ae_title: str) -> None:
        """The same as a new study: storescu makes the UIDs anew on the way."""
        count = sum(1 for _ in files.iterdir())
        self._storescu(called_ae_title, files, "+IR", str(count + 1), "+IS", "2")

    def _storescu(self, called_ae_title: str, files: Path, *options: str) -> None:
        first = pydicom.dcmread(next(files.iterdir()), stop_before_pixels=True)
        proposed = _PROPOSED.get(first.file_meta.TransferSyntaxUID)
        subprocess.run(
            [
                *(program("storescu", "dcmtk"), "-aec", called_ae_title),
                *(*options, *([proposed] if proposed else []), "+sd"),
                *("127.0.0.1", str(self.port), str(files)),
            ],
            env={**os.environ, "TCP_NODELAY": "1"},
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def there_and_back(
        self, source: Path, called_ae_title: str, scratch: Path
    ) -> tuple[str, float]:
        """Sends a study under new UIDs, and waits for its segmentation.

        Args:
            source: A folder with the study.
            called_ae_title: Who is called.
            scratch: For its files, which are removed.

        Returns:
            Its Study Instance UID, and seconds from the last instance until the segmentation
            was there.

        Raises:
            RoadFailed: it did not come.
        """
        files = scratch / "files"
        study_instance_uid = renewed(source, files)
        self.send(files, called_ae_title)
        arrived_s = self.destination.wait(study_instance_uid)
        shutil.rmtree(files)
        return study_instance_uid, arrived_s - self.last_arrival_s(study_instance_uid)

    def last_arrival_s(self, study_instance_uid: str) -> float:
        """When the study's last instance was acknowledged, in seconds since 1970."""
        query = sa.select(sa.func.max(series.c.last_arrival_at_s)).where(
            series.c.study_instance_uid == study_instance_uid
        )
        with reading(self.engine) as connection:
            return float(connection.execute(query).scalar_one())

    def jobs_by_state(self) -> dict[str, int]:
        """How many jobs there are in each state."""
        query = sa.select(jobs.c.state, sa.func.count()).group_by(jobs.c.state)
        with reading(self.engine) as connection:
            return {str(state): int(count) for state, count in connection.execute(query)}

    def delivered(self, called_ae_title: str) -> int:
        """How many jobs of what came to that title have ended well.

        Raises:
            RoadFailed: one has failed.
        """
        query = (
            sa.select(jobs.c.state, sa.func.count())
            .where(jobs.c.called_ae_title == called_ae_title)
            .group_by(jobs.c.state)
        )
        with reading(self.engine) as connection:
            found = {str(state): int(count) for state, count in connection.execute(query)}
        if "failed" in found:
            msg = f"{found['failed']} job(s) failed; see 'tritome jobs list'"
            raise RoadFailed(msg)
        return found.get("delivered", 0)

    def wait_delivered(
        self, called_ae_title: str, count: int, timeout_s: float = RESULT_TIMEOUT_S
    ) -> None:
        """Until so many have ended well.

        Raises:
            RoadFailed: they don't.
        """
        deadline_s = time.monotonic() + timeout_s
        while self.delivered(called_ae_title) < count:
            if time.monotonic() > deadline_s:
                msg = f"{called_ae_title}: no result within {timeout_s:g} s"
                raise RoadFailed(msg)
            time.sleep(0.05)

    def roles(self) -> dict[str, list[int]]:
        """What each process is for; those of a side begin with the same word."""
        found: dict[str, list[int]] = {}
        for pid in family(self.gateway_pid):
            role = "gateway"
            if pid != self.gateway_pid:
                decodes = any(part.endswith("decode_child") for part in _command(pid))
                role = "gateway decoders" if decodes else "gateway others"
            found.setdefault(role, []).append(pid)
        for pid in family(self.server.pid):
            model = model_of_stub(_command(pid), self.server.model_repository)
            found.setdefault("server" if model is None else f"server {model}", []).append(pid)
        return found

    @property
    def stub_prefix(self) -> str:
        """How the names of the server's shared memory begin: its own `--id`."""
        for word in _command(self.server.pid):
            if word.startswith("--id="):
                return word.removeprefix("--id=")
        return "triton_python_backend_shm_region_"


def _command(pid: int) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).cmdline()
    return []


@contextlib.contextmanager
def site(
    folder: Path,
    model_repository: Path,
    pipelines: Mapping[str, str],
    *,
    arena_bytes: int = 1 << 30,
    workers: int = 1,
) -> Iterator[Site]:
    """Runs one while the block lasts.

    Args:
        folder: Empty; everything is written below it.
        model_repository: What is served.
        pipelines: By called AE title.
        arena_bytes: The gateway's shared memory.
        workers: Jobs that it works on at the same time.

    Raises:
        RoadFailed, RuntimeError: the gateway doesn't start.
        BuilderError: there is no tritonserver, or it does not start.
    """
    home, temporary = folder / "gateway", folder / "temporary"
    for one in (home, temporary):
        one.mkdir(parents=True)
    port = free_port()
    with contextlib.ExitStack() as open_:
        open_.enter_context(_temporary_files_in(temporary))
        server = open_.enter_context(TritonServer(model_repository, log=folder / "triton.log"))
        destination = Destination()
        open_.callback(destination.close)
        settings = _settings(port, destination.port, pipelines, server.grpc_url)
        settings["triton"]["arena-bytes"] = arena_bytes
        settings["jobs"] = {"workers": workers}
        (home / "gateway.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        command = [sys.executable, "-m", "dicom_gateway", "--config", "gateway.yaml"]
        process = open_.enter_context(started(command, port, home, START_TIMEOUT_S))
        engine = open_database(f"sqlite:///{home}/store/index.sqlite")
        open_.callback(engine.dispose)
        yield Site(home, temporary, port, server, process.pid, destination, engine)


def _settings(
    port: int, destination_port: int, pipelines: Mapping[str, str], triton_grpc_url: str
) -> dict[str, Any]:
    titles = [
        {"ae-title": title, "pipelines": [name], "destinations": ["pacs"]}
        for title, name in pipelines.items()
    ]
    pacs = {
        "name": "pacs",
        "host-ip": "127.0.0.1",
        "port": destination_port,
        "ae-title": DESTINATION,
    }
    return {
        "dicom": {
            "scp": {
                "host": "127.0.0.1",
                "port": port,
                "reject-unknown-sources": False,
                "ae-titles": titles,
            },
            "scu": {"destinations": [pacs]},
        },
        # How long to wait for more once an association has ended in order is the site's choice.
        "completeness": {"after-release-s": 0.0},
        "triton": {"url": triton_grpc_url},
        "store": {"folder": "store"},
    }


@contextlib.contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """For this process and all that it starts, so that what they leave can be counted."""
    before, known = os.environ.get("TMPDIR"), tempfile.tempdir
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = known
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


def renewed(source: Path, folder: Path) -> str:
    """Writes a study anew under UIDs of its own; returns the study's."""
    template = StudyTemplate(source)
    study_instance_uid = template.renew()
    folder.mkdir()
    for number, dataset in enumerate(template):
        dataset.save_as(folder / f"{number:05d}.dcm", enforce_file_format=True)
    return study_instance_uid
