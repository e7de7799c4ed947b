"""Room 1, receive: C-ECHO, C-STORE and storage commitment, behind limits on who and how much.

In: connections. Out: an `Arrival` for each object, to `keep`. The parts, in the order in which
a connection meets them: `listener` accepts, `admission` decides who may come in, `host` serves
in this process or, where the settings ask for several, `processes` does in children. What
survives a crash is in the rooms behind `keep`, and the pending storage commitments.
"""

from __future__ import annotations

from collections.abc import Callable

from dicom_gateway.config import ScpSettings
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.receive.admission import FrontDesk
from dicom_gateway.receive.commitment import Commitments
from dicom_gateway.receive.host import AssociationHost
from dicom_gateway.receive.incoming import Spool
from dicom_gateway.receive.listener import Listener
from dicom_gateway.receive.offers import TRANSFER_SYNTAXES
from dicom_gateway.receive.processes import Child, FromChildren, Processes
from dicom_gateway.receive.reporter import Reporter
from dicom_gateway.receive.reports import Reports
from dicom_gateway.records import Arrival, Instance

__all__ = ["TRANSFER_SYNTAXES", "Receiver"]


class Receiver:
    """The door: listens, admits, and hands what is sent to `keep`.

    Args:
        settings: `dicom.scp` of gateway.yaml.
        keep: Makes an object durable; may be called by several threads at once. What it
            raises is the answer: the status of a `Refused`, 0xA700 for a
            `DatabaseUnavailable`, 0xC000 for anything unforeseen. Where there are several
            processes, theirs is called instead.
        association_ended: Called with the association's id, exactly once for each that was
            admitted, after its last `keep`; and with True where the peer released it, False
            after an abort or a lost connection.
        spool: Where large data sets stay while they come; in memory where not given.
        commitments: Answers storage commitment; not offered where not given.
        child: What to start where `settings.processes` asks for several.
        from_children: Hears what children keep, and what is reported to them.
        reports: Takes what peers report on our own results.
        rejected: Called for each association that was turned away; see `FrontDesk`.
        refused: Told the code of why an object was not taken, by whichever process.
    """

    def __init__(
        self,
        settings: ScpSettings,
        keep: Callable[[Arrival], Instance],
        association_ended: Callable[[str, bool], None],
        *,
        spool: Spool | None = None,
        commitments: Commitments | None = None,
        child: Child | None = None,
        from_children: FromChildren | None = None,
        reports: Reports | None = None,
        rejected: Callable[[str, str, str, str], None] = lambda *_who: None,
        refused: Callable[[str], None] = lambda _code: None,
    ) -> None:
        self._settings = settings
        self._keep = keep
        self._from_children = from_children or FromChildren()
        self._refused = refused
        self._association_ended = association_ended
        self._spool = spool
        self._commitments = commitments
        self._child = child
        self._reports = reports
        self._desk = FrontDesk(settings, self._on_ended, reports=reports, rejected=rejected)
        self._log = get_logger(room="receive")
        self._host: AssociationHost | Processes | None = None
        self._listener: Listener | None = None
        self._reporter = None if commitments is None else Reporter(settings, commitments)

    @property
    def port(self) -> int:
        """The plain port, also where the settings say 0; the TLS port where there is no other."""
        listening = self._listener
        if listening is None:
            return self._settings.port
        return listening.port or listening.tls_port or 0

    @property
    def tls_port(self) -> int | None:
        """The TLS port, also where the settings say 0; None where there is none."""
        return None if self._listener is None else self._listener.tls_port

    @property
    def is_alive(self) -> bool:
        """Whether connections are accepted and served."""
        return (
            self._listener is not None
            and self._listener.is_alive
            and (not isinstance(self._host, Processes) or self._host.is_alive)
        )

    @property
    def associations(self) -> int:
        """How many are open, in whichever process."""
        return self._desk.associations

    @property
    def undecided(self) -> int:
        """Connections that have not yet become an association."""
        return self._desk.waiting.undecided

    @property
    def process_ids(self) -> tuple[int, ...]:
        """Of the receiving children; none where this process receives itself."""
        return self._host.process_ids if isinstance(self._host, Processes) else ()

    def start(self) -> None:
        """Listens from here on.

        Raises:
            ConfigurationError: an address or port can't be listened on, or TLS can't work.
        """
        host = self._make_host()
        try:
            listener = Listener(self._settings, self._desk.waiting, host.begin)
        except BaseException:
            host.stop(0.0)
            raise
        self._host, self._listener = host, listener
        if self._reporter is not None:
            self._reporter.start()
        listener.start()
        self._log.info(
            "listening", host=self._settings.host, port=listener.port, tls_port=listener.tls_port
        )

    def stop(self, timeout_s: float = 10.0) -> None:
        """Listens no more, lets the `keep`s under way finish, and ends the associations."""
        listener, self._listener = self._listener, None
        host, self._host = self._host, None
        if listener is None or host is None:
            return
        listener.stop(timeout_s)
        host.stop(timeout_s)
        if self._reporter is not None:
            self._reporter.stop(timeout_s)

    def _make_host(self) -> AssociationHost | Processes:
        if self._settings.processes > 1 and self._child is not None:
            return Processes(
                self._settings, self._desk, self._child, self._from_children, self._refused
            )
        return AssociationHost(
            self._settings,
            self._keep,
            self._desk,
            spool=self._spool,
            commitments=self._commitments,
            reports=self._reports,
            refused=self._refused,
        )

    def _on_ended(self, association_id: str, in_order: bool) -> None:
        try:
            self._association_ended(association_id, in_order)
        finally:
            if self._reporter is not None:
                self._reporter.association_ended(association_id)
