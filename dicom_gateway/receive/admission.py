"""Receive, who may come in: titles, addresses, certificates, and how many at once.

In: connections, and association requests. Out: yes, or the reason that the peer is told.
Nothing is kept beyond what is open just now.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Protocol

from dicom_gateway.config import ScpSettings, Source
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.receive.reports import Reports
from dicom_gateway.tls import PeerCertificate

_TELL_EVERY_S = 1.0

_log = get_logger(room="receive")


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why an association is turned away.

    Source: PS3.8 9.3.4 (A-ASSOCIATE-RJ: result, source, reason).
    """

    result: int
    source: int
    reason: int
    words: str


CALLED_NOT_RECOGNISED = Rejection(1, 1, 7, "called AE title not recognised")
CALLING_NOT_RECOGNISED = Rejection(1, 1, 3, "calling AE title not recognised")
LOCAL_LIMIT_EXCEEDED = Rejection(2, 3, 2, "local limit exceeded")
TEMPORARY_CONGESTION = Rejection(2, 3, 1, "temporary congestion")


class Desk(Protocol):
    """Whom an association asks whether it may come in, and tells that it has ended."""

    def admit(
        self,
        association_id: str,
        *,
        called_ae_title: str,
        calling_ae_title: str,
        host_ip: str,
        certificate: PeerCertificate | None,
    ) -> Rejection | None:
        """Decides on an association request; an admitted one counts until `ended`."""

    def ended(self, association_id: str, *, in_order: bool) -> None:
        """The connection is closed, whatever it had become; told once for each."""


class GuestList:
    """Decides on association requests and counts the associations that are open.

    Only admitted associations count: a peer that connects and stays silent takes no place
    from those that have something to say.
    """

    def __init__(self, settings: ScpSettings, reports: Reports | None = None) -> None:
        self._settings = settings
        self._reports = reports
        self._called = {title.ae_title for title in settings.ae_titles}
        self._guests: dict[str, tuple[str, str]] = {}  # association -> calling title, address
        self._lock = threading.Lock()

    def admit(
        self,
        association_id: str,
        *,
        called_ae_title: str,
        calling_ae_title: str,
        host_ip: str,
        certificate: PeerCertificate | None = None,
    ) -> Rejection | None:
        """Admits an association, which then counts until `leave`, or says why not."""
        # A PACS that we asked for storage commitment calls the title that had asked. Whoever
        # calls himself so may come in to report; what else he may, the host asks `knows`.
        is_report = self._reports is not None and self._reports.expects(
            called_ae_title, calling_ae_title
        )
        if called_ae_title not in self._called and not is_report:
            return CALLED_NOT_RECOGNISED
        if not is_report and not knows(self._settings, calling_ae_title, host_ip, certificate):
            return CALLING_NOT_RECOGNISED
        address = str(_plain(host_ip))
        with self._lock:
            if self._is_full_for(calling_ae_title, address):
                return LOCAL_LIMIT_EXCEEDED
            self._guests[association_id] = (calling_ae_title, address)
        return None

    @property
    def count(self) -> int:
        """How many associations are open."""
        with self._lock:
            return len(self._guests)

    def leave(self, association_id: str) -> bool:
        """Frees the place; False where the association had none, or has left before."""
        with self._lock:
            return self._guests.pop(association_id, None) is not None

    def _is_full_for(self, calling_ae_title: str, address: str) -> bool:
        limits = self._settings
        same_title = sum(title == calling_ae_title for title, _ in self._guests.values())
        same_address = sum(other == address for _, other in self._guests.values())
        return (
            len(self._guests) >= limits.max_associations
            or same_title >= (limits.max_associations_per_ae_title or limits.max_associations)
            or same_address >= (limits.max_associations_per_address or limits.max_associations)
        )


def knows(
    settings: ScpSettings,
    calling_ae_title: str,
    host_ip: str,
    certificate: PeerCertificate | None,
) -> bool:
    """Whether the sources let this peer send to us."""
    named = [s for s in settings.sources if s.ae_title == calling_ae_title]
    if not named:
        return not settings.reject_unknown_sources
    # A title that is listed with addresses or certificates is good with these only,
    # also where unknown titles may come in.
    return any(_fits(source, host_ip, certificate) for source in named)


def _fits(source: Source, host_ip: str, certificate: PeerCertificate | None) -> bool:
    if source.host_ip is not None and _plain(source.host_ip) != _plain(host_ip):
        return False
    if not source.certificates:
        return True
    return certificate is not None and any(map(certificate.is_called, source.certificates))


def _plain(text: str) -> object:
    address = ip_address(text.partition("%")[0])
    # A dual-stack socket shows IPv4 peers as ::ffff:10.0.0.1.
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


class WaitingRoom:
    """Connections of which it is not known yet what they want.

    The newest always comes in. Where there are too many, the one that waits longest is shown
    out: an honest peer says at once what it wants, so it isn't the one.
    """

    def __init__(self, limit: int, limit_per_address: int) -> None:
        self._limit = limit
        self._limit_per_address = limit_per_address
        self._waiting: dict[str, tuple[str, socket.socket]] = {}  # oldest first
        self._lock = threading.Lock()
        self._shown_out = 0
        self._told_at_s = -_TELL_EVERY_S

    @property
    def undecided(self) -> int:
        """How many there are just now."""
        with self._lock:
            return len(self._waiting)

    def enter(
        self, association_id: str, host_ip: str, connection: socket.socket
    ) -> tuple[str, socket.socket] | None:
        """Lets one in, and holds its connection until it leaves.

        Returns:
            Who has to leave for it, taken off the list; the caller closes that connection.
        """
        with self._lock:
            crowd = Counter(host for host, _ in self._waiting.values())
            crowded: str | None = None
            if crowd[host_ip] >= self._limit_per_address:
                crowded = host_ip
            elif len(self._waiting) >= self._limit:
                crowded = crowd.most_common(1)[0][0]
            leaver = next((one for one, (h, _) in self._waiting.items() if h == crowded), None)
            leaving = None if leaver is None else (leaver, self._waiting.pop(leaver)[1])
            self._waiting[association_id] = (host_ip, connection)
        if leaving is not None:
            self._tell(crowded)
        return leaving

    def leave(self, association_id: str) -> None:
        """It is decided or gone."""
        with self._lock:
            left = self._waiting.pop(association_id, None)
        if left is not None:
            left[1].close()

    def _tell(self, host_ip: str | None) -> None:
        # A stranger decides how often this happens, not how long the log gets.
        self._shown_out += 1
        if time.monotonic() - self._told_at_s >= _TELL_EVERY_S:
            self._told_at_s = time.monotonic()
            _log.warning(
                "connections closed: too many undecided ones",
                host_ip=host_ip,
                so_far=self._shown_out,
            )


class FrontDesk:
    """The desk of the process that accepts the connections.

    Args:
        settings: `dicom.scp` of gateway.yaml.
        association_ended: Called once for each association that had been admitted, with its
            id and whether it was released.
        reports: Who else may come in, to report on storage commitment only.
        rejected: Called with calling title, called title, address and reason of each
            association that was turned away.
    """

    def __init__(
        self,
        settings: ScpSettings,
        association_ended: Callable[[str, bool], None],
        *,
        reports: Reports | None = None,
        rejected: Callable[[str, str, str, str], None] = lambda *_who: None,
    ) -> None:
        self.waiting = WaitingRoom(
            settings.max_pending_connections, settings.max_pending_per_address
        )
        self._guests = GuestList(settings, reports)
        self._rejected = rejected
        self._association_ended = association_ended

    @property
    def associations(self) -> int:
        """How many are open."""
        return self._guests.count

    def admit(
        self,
        association_id: str,
        *,
        called_ae_title: str,
        calling_ae_title: str,
        host_ip: str,
        certificate: PeerCertificate | None,
    ) -> Rejection | None:
        """Decides, and says in the log why somebody was turned away."""
        rejection = self._guests.admit(
            association_id,
            called_ae_title=called_ae_title,
            calling_ae_title=calling_ae_title,
            host_ip=host_ip,
            certificate=certificate,
        )
        told = _log.bind(
            called_ae_title=called_ae_title, calling_ae_title=calling_ae_title, host_ip=host_ip
        )
        if rejection is not None:
            # It stays in the waiting room until the peer has heard it and is gone.
            told.warning("association rejected", reason=rejection.words)
            self._rejected(calling_ae_title, called_ae_title, host_ip, rejection.words)
            return rejection
        self.waiting.leave(association_id)
        told.info("association accepted", association_id=association_id)
        return None

    def ended(self, association_id: str, *, in_order: bool) -> None:
        """Frees its place, and tells of its end if it had been admitted."""
        if self.left(association_id):
            self.tell_end(association_id, in_order=in_order)

    def left(self, association_id: str) -> bool:
        """Frees its place at once; True where it had been admitted, so that its end matters."""
        self.waiting.leave(association_id)
        return self._guests.leave(association_id)

    def tell_end(self, association_id: str, *, in_order: bool) -> None:
        """Tells of the end of one that had been admitted; may wait for the database."""
        how = "released" if in_order else "aborted or lost"
        _log.info("association ended", association_id=association_id, how=how)
        try:
            self._association_ended(association_id, in_order)
        except Exception:  # noqa: BLE001 - outermost edge of the association's thread
            # The series then counts as still being sent, and the longer quiet time decides.
            _log.exception("the end of an association could not be noted")
