"""Receive, who may come in: called and calling AE titles, addresses, number of guests.

In: an association request. Out: yes, or the reason that the peer is told. Nothing is kept
beyond the associations that are open just now.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from dicom_gateway.config import ScpSettings


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


class GuestList:
    """Decides on association requests and counts the associations that are open.

    Only admitted associations count: a peer that connects and stays silent takes no place
    from those that have something to say.
    """

    def __init__(self, settings: ScpSettings) -> None:
        self._settings = settings
        self._called = {title.ae_title for title in settings.ae_titles}
        self._guests: set[str] = set()
        self._lock = threading.Lock()

    def admit(
        self, association_id: str, *, called_ae_title: str, calling_ae_title: str, host_ip: str
    ) -> Rejection | None:
        """Admits an association, which then counts until `leave`, or says why not."""
        if called_ae_title not in self._called:
            return CALLED_NOT_RECOGNISED
        if not self._knows(calling_ae_title, host_ip):
            return CALLING_NOT_RECOGNISED
        with self._lock:
            if len(self._guests) >= self._settings.max_associations:
                return LOCAL_LIMIT_EXCEEDED
            self._guests.add(association_id)
        return None

    def leave(self, association_id: str) -> bool:
        """Frees the place; False where the association had none, or has left before."""
        with self._lock:
            admitted = association_id in self._guests
            self._guests.discard(association_id)
        return admitted

    def _knows(self, calling_ae_title: str, host_ip: str) -> bool:
        named = [s for s in self._settings.sources if s.ae_title == calling_ae_title]
        if not named:
            return not self._settings.reject_unknown_sources
        # A title that is listed with addresses is good from these only, also where
        # unknown titles may come in.
        return any(s.host_ip is None or _same_address(s.host_ip, host_ip) for s in named)


def _same_address(expected: str, actual: str) -> bool:
    return _plain(expected) == _plain(actual)


def _plain(text: str) -> object:
    address = ip_address(text.partition("%")[0])
    # A dual-stack socket shows IPv4 peers as ::ffff:10.0.0.1.
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
