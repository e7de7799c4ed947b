"""Receive, step 2: how much a peer may send. Seconds, bytes and pieces of a PDU, all bounded.

pynetdicom itself has no such limits: a stranger could announce a PDU of 4 GiB and have it
all held in memory. In: a connection. Out: PDUs of bounded length, read in bounded time, and
none while there is no room for what they bring. Data, which makes up nearly all traffic, is
read without becoming pynetdicom's objects (PS3.8 9.3). Nothing survives a crash.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Protocol

from pynetdicom.association import Association
from pynetdicom.transport import AssociationSocket

from dicom_gateway.config import ScpSettings
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.receive.waiting import LOOK_AROUND_EVERY_S, Bell

REQUEST_LIMIT_BYTES = 64 * 1024
"""An A-ASSOCIATE-RQ with 128 presentation contexts takes about 20 KiB."""
PDU_LIMIT_BYTES = 1024 * 1024
"""Some peers send longer PDUs than we asked for; they get this much leeway."""
_FRAGMENTS_LIMIT = 512
"""Presentation data values in one PDU; real peers send one or two."""
_ITEMS_LIMIT = 2048
"""Items and sub-items in one A-ASSOCIATE-RQ: 128 contexts with 15 transfer syntaxes each."""
_CHUNK_BYTES = 256 * 1024
_ASSOCIATE_RQ, _P_DATA_TF = 1, 4
_PDU_HEAD_BYTES = 6

_log = get_logger(room="receive")


class Peer(Protocol):
    """Who sends, as far as it matters for how much may come."""

    host_ip: str

    @property
    def settings(self) -> ScpSettings:
        """Of the port that it came by."""

    @property
    def is_admitted(self) -> bool:
        """From then on it may send data, and more at once."""

    @property
    def deadline_s(self) -> float:
        """Until then it must have said what it wants, by the monotonic clock."""

    @property
    def has_room(self) -> bool:
        """Whether what comes next has a place."""


class LimitedSocket(AssociationSocket):
    """Reads PDUs of bounded length in bounded time."""

    def __init__(self, association: Association, peer: Peer, connection: socket.socket) -> None:
        super().__init__(association, client_socket=connection)
        self._peer = peer
        self._pdu_type = 0
        self._read_ahead = b""
        self._first = b""
        self._buffer = bytearray()
        self._sending = threading.Lock()

    @property
    def takes_both_ways(self) -> bool:
        """Whether one thread may send while another reads: not so through TLS."""
        return not isinstance(self.socket, ssl.SSLSocket)

    @property
    def ready(self) -> bool:
        """Whether there is something to read, and room for it; says so at once."""
        return self._is_readable(None, 0.0)

    def wait(self, bell: Bell) -> bool:
        """Waits until there is something to read, and room for it, or until the bell rings.

        Returns:
            Whether there is something to read, and room for it.
        """
        return self._is_readable(bell, LOOK_AROUND_EVERY_S)

    def _is_readable(self, bell: Bell | None, timeout_s: float) -> bool:
        connection = self.socket
        # A peer that sends faster than we can keep waits for us, not in our memory.
        if connection is None or not self._peer.has_room:
            if bell is not None:
                bell.wait(timeout_s)
            return False
        if self._first or (isinstance(connection, ssl.SSLSocket) and connection.pending()):
            return True
        poll = select.poll()
        try:
            poll.register(connection, select.POLLIN)
            if bell is not None:
                bell.register(poll)
            found = dict(poll.poll(timeout_s * 1000.0))
        except (OSError, ValueError):  # closed meanwhile
            self.event_queue.put("Evt17")
            return False
        if bell is not None:
            bell.heard()
        if connection.fileno() not in found:
            return False
        return not isinstance(connection, ssl.SSLSocket) or self._brings_data(connection)

    def _brings_data(self, connection: ssl.SSLSocket) -> bool:
        """Whether what has come through TLS holds a byte for us; keeps that one.

        It may be half a record, or a message of TLS's own: whoever read on would wait for the
        rest, and so would an answer that only this thread may send.
        """
        try:
            connection.settimeout(0.0)
            try:
                self._first = connection.recv(1)
            finally:
                connection.settimeout(self._peer.settings.idle_timeout_s)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError:
            pass  # whoever reads meets it again, and what follows from it
        return True

    def recv_data(self) -> memoryview | None:
        """Reads a P-DATA-TF PDU and gives what follows its head; None where it is another PDU.

        Good until the next one is read. Of another PDU the head is kept for the `recv` that
        comes next.

        Raises:
            OSError: as `recv`; or the peer closed in the middle of it.

        Source: PS3.8 9.3.1, 9.3.5.
        """
        head = self.recv(_PDU_HEAD_BYTES)
        if len(head) != _PDU_HEAD_BYTES or head[0] != _P_DATA_TF:
            self._read_ahead = bytes(head)
            return None
        length = int.from_bytes(head[2:], "big")
        deadline_s = self._deadline_s(length)
        if len(self._buffer) < length:
            self._buffer = bytearray(length)
        body = memoryview(self._buffer)[:length]
        if self._fill(body, deadline_s) != length:
            raise ConnectionResetError
        self._read_pdu(body)
        return body

    def recv(self, nr_bytes: int) -> bytearray:
        """Reads `nr_bytes`, or fewer when the peer closes.

        Raises:
            OSError: the peer announced too much or took too long; pynetdicom then treats
                the connection as lost.
        """
        if self._read_ahead:
            ahead, self._read_ahead = bytearray(self._read_ahead), b""
            return ahead
        deadline_s = self._deadline_s(nr_bytes)
        received = bytearray()
        while len(received) < nr_bytes:
            # Grown as bytes come, not by what was announced.
            piece = bytearray(min(_CHUNK_BYTES, nr_bytes - len(received)))
            came = self._fill(memoryview(piece), deadline_s)
            received += memoryview(piece)[:came]
            if came < len(piece):
                break
        self._read_pdu(received)
        return received

    def _deadline_s(self, nr_bytes: int) -> float:
        """Until when so many bytes must have come.

        Raises:
            OSError: they are too many.
        """
        settings = self._peer.settings
        if self._peer.is_admitted:
            limit_bytes = max(PDU_LIMIT_BYTES, settings.max_pdu_bytes + 1024)
            deadline_s = time.monotonic() + settings.idle_timeout_s
        else:
            limit_bytes = REQUEST_LIMIT_BYTES
            deadline_s = self._peer.deadline_s
        if nr_bytes > limit_bytes:
            _refuse_pdu(self._peer, "too long a PDU", nr_bytes)
        return deadline_s

    def _fill(self, place: memoryview, deadline_s: float) -> int:
        """Reads until `place` is full; gives how many bytes came, fewer where the peer closed.

        Raises:
            OSError: it took too long, or the connection is lost.
        """
        connection = self.socket
        assert connection is not None
        came = len(self._first)
        place[:came], self._first = self._first, b""
        while came < len(place):
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            connection.settimeout(left_s)
            count = connection.recv_into(place[came:])
            if not count:
                break
            came += count
        # For what we send: a peer that reads nothing must not hold the thread for ever.
        connection.settimeout(self._peer.settings.idle_timeout_s)
        return came

    def _read_pdu(self, received: bytearray | memoryview) -> None:
        """Notes what was read: a PDU comes in two steps, its head (PS3.8 9.3.1), then the rest."""
        if self._pdu_type == 0 and len(received) == _PDU_HEAD_BYTES:
            self._pdu_type = received[0] if any(received[2:]) else 0
        else:
            pdu_type, self._pdu_type = self._pdu_type, 0
            _check_pieces(self._peer, pdu_type, received)

    def send(self, bytestream: bytes) -> None:
        """Sends a PDU; a peer that has gone makes no difference here, the reader hears of it."""
        connection = self.socket
        if connection is None:
            return
        with self._sending:
            try:
                connection.sendall(bytestream)
            except OSError:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _shutdown_socket(self) -> None:
        """Closes the socket also where the peer has closed it first (else it would leak)."""
        if self.socket is not None:
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
            self.socket.close()


def data_values(body: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Context and fragment of each presentation data value of a P-DATA-TF PDU.

    Raises:
        struct.error, ValueError: it isn't made of them.

    Source: PS3.8 9.3.5, Table 9-23.
    """
    place = 0
    while place < len(body):
        length, context_id = struct.unpack_from(">IB", body, place)
        place += 4
        if not 1 <= length <= len(body) - place:
            msg = "a presentation data value that is longer than its PDU"
            raise ValueError(msg)
        yield context_id, body[place + 1 : place + length]
        place += length


def _check_pieces(peer: Peer, pdu_type: int, body: bytearray | memoryview) -> None:
    """Refuses a PDU of so many tiny pieces that each byte of it would become an object.

    Source: PS3.8 9.3.2 (A-ASSOCIATE-RQ: items), 9.3.5 (P-DATA-TF: presentation data values).
    """
    if pdu_type == _P_DATA_TF:
        place = pieces = 0
        while place + 4 <= len(body) and pieces <= _FRAGMENTS_LIMIT:
            place += 4 + int.from_bytes(body[place : place + 4], "big")
            pieces += 1
        if pieces > _FRAGMENTS_LIMIT:
            _refuse_pdu(peer, "a PDU of too many pieces", pieces)
    elif pdu_type == _ASSOCIATE_RQ:
        pieces = _count_items(body, 68, len(body))
        if pieces > _ITEMS_LIMIT:
            _refuse_pdu(peer, "an association request of too many items", pieces)


def _count_items(body: bytearray | memoryview, place: int, end: int) -> int:
    """Items from `place` on, and those inside presentation contexts and user information."""
    count = 0
    while place + 4 <= end and count <= _ITEMS_LIMIT:
        kind = body[place]
        after = min(place + 4 + int.from_bytes(body[place + 2 : place + 4], "big"), end)
        count += 1
        if kind == 0x20:
            count += _count_items(body, place + 8, after)
        elif kind == 0x50:
            count += _count_items(body, place + 4, after)
        place = after
    return count


def _refuse_pdu(peer: Peer, what: str, number: int) -> None:
    _log.warning(f"connection closed: {what}", host_ip=peer.host_ip, announced=number)
    raise OSError(what)
