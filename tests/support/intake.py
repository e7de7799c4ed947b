"""A door with a real store behind it, in a process that may be killed, and senders with a ledger.

Comes in: a folder and a database URL. Goes out: `Intake`, whose process is forked from one
that has imported everything already, so that a test can kill it a hundred times; and `Sender`,
which notes exactly what was answered with 0x0000.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pynetdicom import AE, build_context, evt

from tests.support.dicom import a_ct_series, encoded
from tests.support.processes import free_port

ROOT = Path(__file__).resolve().parents[2]

_NURSERY = """
import json, os, signal, sys, threading
from pathlib import Path
from dicom_gateway.config import ScpSettings
from dicom_gateway.database import open_database
from dicom_gateway.observe import set_up_logging
from dicom_gateway.receive import Receiver
from dicom_gateway.store import InstanceStore, SeriesIndex
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
set_up_logging("json")
folder, url, port = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
limits = json.loads(sys.argv[4])

def live():
    engine = open_database(url, 16)
    store = InstanceStore(folder, engine, **limits)
    index = SeriesIndex(engine, folder)
    store.clean()
    index.close_orphaned_associations()
    settings = ScpSettings(
        host="127.0.0.1", port=port, reject_unknown_sources=False,
        ae_titles=[{"ae-title": title, "pipelines": ["lung_ct"]} for title in ("LUNG", "LIVER")],
    )
    def ended(association_id, in_order):
        index.association_ended(association_id, in_order=in_order)
    receiver = Receiver(settings, store.keep, ended)
    receiver.start()
    print(os.getpid(), flush=True)
    threading.Event().wait()

if len(sys.argv) > 5:
    live()
for _ in sys.stdin:
    if os.fork() == 0:
        live()
"""


@dataclass
class Intake:
    """One door on one folder; `start` and `kill` as often as a test wants."""

    folder: Path
    url: str
    port: int
    nursery: subprocess.Popen[str]
    pid: int = 0

    def start(self) -> None:
        """Begins a new life on what the last one left."""
        assert self.nursery.stdin is not None
        assert self.nursery.stdout is not None
        self.nursery.stdin.write("\n")
        self.nursery.stdin.flush()
        said = self.nursery.stdout.readline()
        assert said.strip(), "the door did not open; see the output of the test"
        self.pid = int(said)

    def kill(self) -> None:
        """`kill -9`, in the middle of whatever it does."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            self.pid = 0


@contextmanager
def an_intake(
    folder: Path, url: str, *, prefix: tuple[str, ...] = (), **limits: int
) -> Iterator[Intake]:
    """Prepares a door; nothing listens before its `start`.

    Args:
        folder: Of the store.
        url: Of the index.
        prefix: A program that runs it, such as strace; it then has one life only.
        **limits: Of `InstanceStore`; nothing is held back where not given.
    """
    port = free_port()
    said = json.dumps({"min_free_bytes": 0, **limits})
    arguments = [str(folder), url, str(port), said, *(["once"] if prefix else [])]
    nursery = subprocess.Popen(
        [*prefix, sys.executable, "-c", _NURSERY, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    intake = Intake(folder, url, port, nursery)
    try:
        yield intake
    finally:
        intake.kill()
        nursery.kill()
        nursery.communicate()


@dataclass(frozen=True)
class Entry:
    """One line of a sender's ledger: 0x0000 was answered."""

    sop_instance_uid: str
    sha256: str
    called_ae_title: str
    calling_ae_title: str


@dataclass
class Sender:
    """Sends ever new instances of one series, one association after the other.

    Attributes:
        ledger: What was answered with 0x0000, in this order.
        unanswered: What was sent when the connection broke.
        refused: Any other status that was answered.
    """

    number: int
    port: int
    called_ae_title: str = "LUNG"
    rows: int = 64
    ledger: list[Entry] = field(default_factory=list)
    unanswered: list[Dataset] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Makes the instance that all others are copies of."""
        self._template = a_ct_series(
            1,
            rows=self.rows,
            columns=self.rows,
            study_instance_uid=f"1.2.{self.number}",
            series_instance_uid=f"1.2.{self.number}.1",
        )[0]
        self._sent = 0

    @property
    def calling_ae_title(self) -> str:
        """Each sender has its own."""
        return f"SCANNER{self.number}"

    def next_instance(self) -> Dataset:
        """One that was never sent before."""
        self._sent += 1
        uid = f"1.2.{self.number}.1.{self._sent}"
        self._template.SOPInstanceUID = uid
        self._template.file_meta.MediaStorageSOPInstanceUID = uid
        self._template.InstanceNumber = self._sent
        return self._template

    def send_until(self, stop: Callable[[], bool]) -> None:
        """Sends in one association until `stop` or until the other side is gone."""
        self.send_some(iter(lambda: None if stop() else self.next_instance(), None))

    def send_some(self, instances: Iterator[Dataset] | list[Dataset]) -> None:
        """Sends in one association; ends early when the other side is gone."""
        ae = AE(self.calling_ae_title)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
        context = build_context(
            self._template.SOPClassUID, self._template.file_meta.TransferSyntaxUID
        )
        # pynetdicom forgets to close a socket whose other side has died.
        opened: list[Any] = []
        association = ae.associate(
            "127.0.0.1",
            self.port,
            contexts=[context],
            ae_title=self.called_ae_title,
            evt_handlers=[(evt.EVT_CONN_OPEN, lambda e: opened.append(e.assoc.dul.socket.socket))],
        )
        try:
            if not association.is_established:
                return
            for ds in instances:
                if not self._send_one(association, ds):
                    return
            association.release()
        finally:
            association.join(20)
            for one in opened:
                one.close()

    def send_unanswered(self) -> None:
        """Sends again what got no answer, until each has one: now nobody is killed."""
        for _ in range(5):
            again, self.unanswered = self.unanswered, []
            while again:
                self.send_some(again[:1])
                again = again[1:]
        assert (self.unanswered, self.refused) == ([], [])

    def _send_one(self, association: Any, ds: Dataset) -> bool:
        copy = deepcopy(ds)
        try:
            answer = association.send_c_store(copy)
        except (RuntimeError, ValueError, OSError):
            answer = Dataset()  # the association broke before it could be sent
        status = answer.get("Status")
        if status is None:
            self.unanswered.append(copy)
            return False
        if status == 0x0000:
            self.ledger.append(
                Entry(
                    str(copy.SOPInstanceUID),
                    hashlib.sha256(encoded(copy)).hexdigest(),
                    self.called_ae_title,
                    self.calling_ae_title,
                )
            )
        else:
            self.refused.append(status)
        return True


@contextmanager
def sending(senders: list[Sender]) -> Iterator[None]:
    """Lets all of them send at once while the block lasts."""
    enough = threading.Event()
    threads = [
        threading.Thread(target=sender.send_until, args=(enough.is_set,), daemon=True)
        for sender in senders
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        enough.set()
        for thread in threads:
            thread.join(60)
