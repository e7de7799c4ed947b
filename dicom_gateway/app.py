"""The gateway: the module that knows every room, starts them, and takes up what was left.

In: settings. Out: a running gateway. Everything that survives a crash is in the store's folder and
the index; `Gateway.start` takes it up again.
"""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO

import sqlalchemy as sa

from dicom_gateway.assemble.ahead import Ahead
from dicom_gateway.assemble.arena import Arena, remove_leftovers
from dicom_gateway.assemble.decoders import DecoderPool
from dicom_gateway.assemble.header_cache import HeaderCache
from dicom_gateway.assemble.headers import Header
from dicom_gateway.auditing import Audit
from dicom_gateway.config import GatewaySettings
from dicom_gateway.config_delivery import Addressee
from dicom_gateway.database import open_database
from dicom_gateway.deliver import Caretaker, CommitmentReports, Entries, Outbox, Prover
from dicom_gateway.errors import ConfigurationError
from dicom_gateway.hearing import Hearing
from dicom_gateway.infer import TritonClient
from dicom_gateway.infer.turns import Turns, remove_turns
from dicom_gateway.jobs import Admission, JobQueue, Worker, admission
from dicom_gateway.judge import Judge
from dicom_gateway.metering import Meter, Parts
from dicom_gateway.observe import get_logger
from dicom_gateway.observe.memory import give_back
from dicom_gateway.processing import Processing
from dicom_gateway.receive.processes import FromChildren
from dicom_gateway.receive.scp import Receiver
from dicom_gateway.receiving import commitments_of, receiving_child, reports_of, spool_of
from dicom_gateway.records import Arrival, Instance, Job
from dicom_gateway.store import InstanceStore, Retention, SeriesIndex, require_its_folder
from dicom_gateway.webside import WebSide

GRACE_S = 10.0
"""How long a stop waits for each thread; what isn't done then is taken up at the next start."""


class Gateway:
    """All rooms of one gateway process.

    Args:
        settings: From `load_settings`.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._log = get_logger(room="app")
        self._open = ExitStack()
        self._threads: list[threading.Thread] = []
        self._stops: list[Callable[[], None]] = []
        self._receiver: Receiver | None = None
        self._web: WebSide | None = None
        self._arena: Arena | None = None
        self._triton: TritonClient | None = None
        self._stopping = threading.Event()
        self._audit: Audit | None = None

    @property
    def port(self) -> int:
        """Where DICOM is received, also where the settings say 0."""
        assert self._receiver is not None, "the gateway is not started"
        return self._receiver.port

    @property
    def web_port(self) -> int | None:
        """Where HTTP is answered, also where the settings say 0; None where it isn't."""
        return None if self._web is None else self._web.port

    def start(self) -> None:
        """Takes up what an earlier life left, then opens the door.

        Raises:
            ConfigurationError: a folder, port or shared memory can't be had, another gateway
                runs on the same folder, or the index is another folder's.
            DatabaseUnavailable: the index can't be opened.
        """
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        settings = self._settings
        folder = settings.store.folder.resolve()
        self._open.enter_context(_only_gateway(folder))
        engine = open_database(settings.database_url, _connections(settings))
        self._open.callback(engine.dispose)
        require_its_folder(engine, folder)
        store = InstanceStore(
            folder, engine, settings.store.min_free_bytes, settings.store.resume_free_bytes
        )
        index = SeriesIndex(engine, folder)
        queue = JobQueue(
            engine,
            folder,
            lease_s=settings.jobs.lease_s,
            retry_first_s=settings.jobs.retry_first_s,
            retry_max_s=settings.jobs.retry_max_s,
            addressee=Addressee(settings.results, settings.dicom.scu.destinations),
        )
        audit = self._audit = Audit(settings, engine)
        meter = Meter(settings, engine)
        hearing = Hearing(audit, meter)
        entries = Entries(engine, folder, settings.dicom.scu, hearing.delivery_ended)

        # What a killed gateway left, before anything new begins.
        caretaker = Caretaker(entries, [one.name for one in settings.dicom.scu.destinations])
        self._log.info(
            "recovered",
            half_written=store.clean(),
            associations=index.close_orphaned_associations(),
            jobs=queue.release_own(),
            arenas=len(remove_leftovers()),
            turns=len(remove_turns()),
            deliveries_without_destination=caretaker.tidy(),
        )

        arena = self._arena = self._open.enter_context(Arena(settings.triton.arena_bytes))
        decoders = self._open.enter_context(DecoderPool(settings.jobs.decoders))
        turns = Turns()
        self._open.callback(turns.close)
        triton = self._triton = TritonClient(settings.triton, folder / "contracts", turns)
        self._open.callback(triton.close)  # first of all: Triton lets go, then the arena goes
        triton.use_arena(arena)
        read = HeaderCache()

        ahead = self._ahead(decoders, read)
        kept: Callable[[Path], None] = (lambda _path: None) if ahead is None else ahead.arrived
        process = Processing(
            index=index,
            triton=triton,
            arena=arena,
            decoders=decoders,
            settings=settings.assembly,
            results=folder / "results",
            read_header=read,
            admission=admission(settings.jobs.memory_bytes, settings.triton.arena_bytes),
            arena_admission=Admission(
                settings.triton.arena_bytes,
                settings.triton.arena_bytes,
                what="shared memory",
                setting="triton.arena-bytes",
            ),
            ahead=ahead,
            objects=settings.results,
        )
        outboxes = self._outboxes(entries, audit, meter)
        judge = Judge(
            settings,
            engine,
            index,
            queue=queue,
            triton=triton,
            read_header=read,
            ended=meter.series_ended,
        )
        self._start_workers(queue, process, partial(_wake, [*outboxes, caretaker]), hearing)
        self._run_in_thread("caretaker", caretaker.run, caretaker.stop)
        if not settings.store.retention.is_off:
            retention = Retention(engine, folder, settings.store.retention, audit.going)
            self._run_in_thread("retention", retention.run, retention.stop)
        self._run_in_thread("judge", judge.run, judge.stop)

        def keep(arrival: Arrival) -> Instance:
            instance = store.keep(arrival)
            kept(instance.path)
            return instance

        def association_ended(association_id: str, in_order: bool) -> None:
            index.association_ended(association_id, in_order=in_order)
            judge.notify()
            audit.received(association_id)

        self._receiver = self._receive(engine, keep, association_ended, hearing, kept)
        meter.watch(
            Parts(
                receiver=self._receiver,
                arena=arena,
                triton=triton,
                decoders=decoders,
                judge=judge,
                admissions={"memory": process.admission, "arena": process.arena_admission},
            )
        )

        web = WebSide(
            settings,
            engine,
            keep=keep,
            association_ended=association_ended,
            health=lambda: dict.fromkeys(self.dead_parts(), "has died"),
            metrics=meter.text,
            heard=audit.heard,
            kept=meter.kept,
            refused=meter.refused,
        )
        if settings.pacs:
            self._log.info("recovered", fetches=web.recover())
        web.start()
        self._web = web
        audit.started()
        for name, loop, stop in web.loops:
            self._run_in_thread(name, loop, stop)

    def _ahead(self, decoders: DecoderPool, read: Callable[[Path], Header]) -> Ahead | None:
        if not self._settings.jobs.ahead_bytes:
            return None
        try:
            room = self._open.enter_context(
                Arena(self._settings.jobs.ahead_bytes, setting="jobs.ahead-bytes")
            )
        except ConfigurationError as error:  # everything works without it, a little later
            self._log.warning("no_decoding_ahead", reason=str(error))
            return None
        ahead = Ahead(room, decoders, read)
        self._run_in_thread("ahead", ahead.run, ahead.stop)
        return ahead

    def _receive(
        self,
        engine: sa.Engine,
        keep: Callable[[Arrival], Instance],
        association_ended: Callable[[str, bool], None],
        hearing: Hearing,
        kept: Callable[[Path], None],
    ) -> Receiver:
        """Opens the DICOM door; `kept` is told what children keep, `keep` tells it itself."""
        settings, meter = self._settings, hearing.meter

        def keep_here(arrival: Arrival) -> Instance:
            instance = keep(arrival)
            meter.kept("cstore", arrival.called_ae_title, instance.size_bytes)
            return instance

        def kept_by_a_child(path: Path, called_ae_title: str, size_bytes: int) -> None:
            kept(path)
            meter.kept("cstore", called_ae_title, size_bytes)

        def ended(association_id: str, in_order: bool) -> None:
            meter.association_ended(in_order=in_order)
            association_ended(association_id, in_order)

        receiver = Receiver(
            settings.dicom.scp,
            keep_here,
            ended,
            spool=spool_of(settings),
            commitments=commitments_of(settings, engine),
            child=receiving_child(settings),
            from_children=FromChildren(kept_by_a_child, meter.delivery_ended),
            reports=reports_of(settings, engine, hearing.delivery_ended),
            rejected=hearing.turned_away,
            refused=partial(meter.refused, "cstore"),
        )
        receiver.start()
        return receiver

    def _outboxes(self, entries: Entries, audit: Audit, meter: Meter) -> list[Outbox]:
        """Starts an outbox and a prover for each destination, and what ships the audit trail."""
        scu = self._settings.dicom.scu
        reports = CommitmentReports(entries, scu.destinations)
        outboxes = []
        for one in scu.destinations:
            prover = Prover(entries, one, scu, reports)
            outbox = Outbox(
                entries, one, scu.ae_title, prover.notify, audit.sending, sent=meter.sent
            )
            for number in range(1, one.associations + 1):
                self._run_in_thread(f"outbox-{one.name}-{number}", outbox.run, outbox.stop)
            self._run_in_thread(f"proof-{one.name}", prover.run, prover.stop)
            outboxes.append(outbox)
        if audit.shipper is not None:
            self._run_in_thread("audit", audit.shipper.run, audit.shipper.stop)
        return outboxes

    def stop(self) -> None:
        """Closes the door, lets each thread end what it has in hand, and cleans up.

        A job that isn't done within `GRACE_S` is taken up at the next start.
        """
        self._stopping.set()
        if self._receiver is not None:
            self._receiver.stop()
        if self._web is not None:
            self._web.stop()
        for stop in self._stops:
            stop()
        for thread in self._threads:
            thread.join(GRACE_S)
        if self._web is not None and self._audit is not None:  # it had started
            self._audit.stopped()
        self._open.close()

    def dead_parts(self) -> list[str]:
        """Names of threads that ended although nobody asked them to, and of shared memory lost.

        It is lost where somebody removed the file (systemd does when its user logs out, unless
        RemoveIPC=no), or where Triton has another /dev/shm than before, as its container has
        after a restart. A new start of the gateway makes it anew.
        """
        if self._stopping.is_set():
            return []
        dead = [thread.name for thread in self._threads if not thread.is_alive()]
        if self._receiver is not None and not self._receiver.is_alive:
            dead.append("receive")
        if self._web is not None and self._web.is_dead:
            dead.append("web")
        if self._arena is not None and not self._arena.path.exists():
            dead.append("the shared memory (its file was removed)")
        if self._triton is not None and self._triton.has_lost_an_arena:
            dead.append("the shared memory (Triton has another /dev/shm now)")
        return dead

    def _start_workers(
        self,
        queue: JobQueue,
        process: Processing,
        finished: Callable[[], None],
        hearing: Hearing,
    ) -> None:
        def ended(job: Job, failure: str | None) -> None:
            hearing.job_ended(job, failure)
            give_back()  # a volume's worth of it, after a large one

        make = partial(
            Worker, queue, process, finished=finished, ended=ended, measured=hearing.meter.stage
        )
        names = [f"worker-{number}" for number in range(1, self._settings.jobs.workers + 1)]
        workers = {name: make(name=name) for name in names}
        # A study that can't wait never waits for a worker that is busy with one that can.
        workers["express"] = make(name="express", only_immediate=True)
        for name, worker in workers.items():
            self._run_in_thread(name, worker.run, worker.stop)
        listener = queue.listener()
        if listener is not None:
            self._run_in_thread("listener", listener.run, listener.stop)

    def _run_in_thread(self, name: str, loop: Callable[[], None], stop: Callable[[], None]) -> None:
        def outermost() -> None:
            try:
                loop()
            except Exception:  # noqa: BLE001 - a thread's outermost edge
                self._log.error("thread_died", thread=name, exc_info=True)

        thread = threading.Thread(target=outermost, name=name, daemon=True)
        self._stops.append(stop)
        self._threads.append(thread)
        thread.start()


def _wake(senders: Sequence[Outbox | Caretaker]) -> None:
    for one in senders:
        one.notify()


def _connections(settings: GatewaySettings) -> int:
    """How many threads may ask the index at the same time."""
    receivers = settings.dicom.scp.max_associations
    jobs = 2 * (settings.jobs.workers + 1)  # each with the thread that keeps its lease
    outboxes = sum(1 + one.associations for one in settings.dicom.scu.destinations)
    web = settings.web.stow.max_requests + 8 if settings.web.enabled else 0
    # judge, caretaker, start and stop, fetcher, catalogue, listener, metrics
    return receivers + jobs + outboxes + web + 8


def _only_gateway(folder: Path) -> IO[str]:
    """Locks the folder for this process; the kernel drops the lock when the process dies."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (folder / "gateway.lock").open("a", encoding="ascii")
    except OSError as error:
        msg = f"store.folder {folder} can't be used: {error.strerror}"
        raise ConfigurationError(msg) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        msg = (
            f"another gateway already runs on store.folder {folder}; stop it first, or give "
            "this one a folder of its own"
        )
        raise ConfigurationError(msg) from error
    return lock
