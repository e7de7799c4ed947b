"""A peer made of bytes: sends whatever a test says, on the wire, without a library's good manners.

Comes in: what to say. Goes out: PDUs (PS3.8 9.3), and what was answered. Nothing is kept.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
VERIFICATION = "1.2.840.10008.1.1"
ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
C_STORE_RQ, C_ECHO_RQ = 0x0001, 0x0030


def item(kind: int, value: bytes, length: int | None = None) -> bytes:
    """An item of an association request; `length` claims another one than it has."""
    return struct.pack(">BBH", kind, 0, len(value) if length is None else length) + value


def pdu(kind: int, value: bytes, length: int | None = None) -> bytes:
    """A PDU; `length` claims another one than it has."""
    return struct.pack(">BBL", kind, 0, len(value) if length is None else length) + value


def a_context(number: int, abstract_syntax: str, syntaxes: Sequence[str]) -> bytes:
    """A proposed presentation context."""
    inside = item(0x30, abstract_syntax.encode())
    inside += b"".join(item(0x40, syntax.encode()) for syntax in syntaxes)
    return item(0x20, bytes((number, 0, 0, 0)) + inside)


def an_association_request(
    contexts: Sequence[bytes],
    *,
    called: str = "LUNG",
    calling: str = "SCANNER",
    more: bytes = b"",
    maximum_length: int | None = 131072,
) -> bytes:
    """A whole A-ASSOCIATE-RQ; `more` are further items of user information."""
    titles = called.encode().ljust(16) + calling.encode().ljust(16)
    user = b"" if maximum_length is None else item(0x51, struct.pack(">L", maximum_length))
    user += item(0x52, b"1.2.3.4") + more
    value = struct.pack(">HH", 1, 0) + titles + b"\0" * 32
    value += item(0x10, APPLICATION_CONTEXT.encode()) + b"".join(contexts) + item(0x50, user)
    return pdu(ASSOCIATE_RQ, value)


def a_fragment(context: int, data: bytes, *, command: bool, last: bool) -> bytes:
    """One presentation data value."""
    return struct.pack(">LBB", len(data) + 2, context, command | last << 1) + data


def a_command(elements: Sequence[tuple[int, bytes]]) -> bytes:
    """A command set (PS3.7 E) with its group length."""
    encoded = b"".join(
        struct.pack("<HHL", 0, number, len(value)) + value for number, value in sorted(elements)
    )
    return struct.pack("<HHLL", 0, 0, 4, len(encoded)) + encoded


def a_c_store(
    sop_instance_uid: str, *, message_id: int = 1, sop_class: str = CTImageStorage
) -> bytes:
    """The command set of a C-STORE request."""
    return a_command(
        [
            (0x0002, _even(sop_class)),
            (0x0100, struct.pack("<H", C_STORE_RQ)),
            (0x0110, struct.pack("<H", message_id)),
            (0x0700, struct.pack("<H", 2)),
            (0x0800, struct.pack("<H", 1)),
            (0x1000, _even(sop_instance_uid)),
        ]
    )


def a_store(data_set: bytes, sop_instance_uid: str) -> bytes:
    """A whole C-STORE in one PDU."""
    command = a_fragment(3, a_c_store(sop_instance_uid), command=True, last=True)
    return pdu(P_DATA, command + a_fragment(3, data_set, command=False, last=True))


def an_echo() -> bytes:
    """A whole C-ECHO in one PDU."""
    return pdu(P_DATA, a_fragment(1, a_c_echo(), command=True, last=True))


def a_c_echo(message_id: int = 1) -> bytes:
    """The command set of a C-ECHO request."""
    return a_command(
        [
            (0x0002, _even(VERIFICATION)),
            (0x0100, struct.pack("<H", C_ECHO_RQ)),
            (0x0110, struct.pack("<H", message_id)),
            (0x0800, struct.pack("<H", 0x0101)),
        ]
    )


@dataclass
class RawPeer:
    """A connection on which anything may be said."""

    socket: socket.socket

    def say(self, data: bytes) -> None:
        """Sends bytes as they are.

        Raises:
            ConnectionError: nobody takes them any more.
        """
        self.socket.sendall(data)

    def hear(self) -> tuple[int, bytes]:
        """The next PDU, (0, b"") when the connection has ended."""
        try:
            head = self._exactly(6)
            kind, _, length = struct.unpack(">BBL", head)
            return int(kind), self._exactly(length)
        except (ConnectionError, EOFError):
            return 0, b""

    def associate(self, contexts: Sequence[bytes] | None = None, **titles: str) -> int:
        """Asks for an association; gives the kind of the answer."""
        self.say(an_association_request(contexts or usual_contexts(), **titles))
        return self.hear()[0]

    def store(self, data_set: bytes, sop_instance_uid: str, *, message_id: int = 1) -> int | None:
        """Stores bytes under a UID; gives the status, None where the connection ended."""
        command = a_c_store(sop_instance_uid, message_id=message_id)
        self.say(pdu(P_DATA, a_fragment(3, command, command=True, last=True)))
        for first in range(0, max(1, len(data_set)), 100_000):
            piece = data_set[first : first + 100_000]
            last = first + 100_000 >= len(data_set)
            self.say(pdu(P_DATA, a_fragment(3, piece, command=False, last=last)))
        return self._status()

    def echo(self) -> int | None:
        """A C-ECHO; gives the status."""
        self.say(an_echo())
        return self._status()

    def until_shown_out(self) -> None:
        """Returns when the other side has closed the connection."""
        while self.hear() != (0, b""):
            pass

    def _status(self) -> int | None:
        kind, value = self.hear()
        if kind != P_DATA:
            return None
        found = value.find(struct.pack("<HHL", 0, 0x0900, 2))
        assert found > 0
        return int.from_bytes(value[found + 8 : found + 10], "little")

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data


def usual_contexts() -> list[bytes]:
    """1: echo; 3: CT."""
    return [
        a_context(1, VERIFICATION, [ImplicitVRLittleEndian]),
        a_context(3, CTImageStorage, [ExplicitVRLittleEndian]),
    ]


@contextmanager
def a_raw_peer(
    port: int, *, own_host: str = "127.0.0.1", timeout_s: float = 60.0
) -> Iterator[RawPeer]:
    """Connects from one of loopback's many addresses."""
    with socket.create_connection(
        ("127.0.0.1", port), timeout=timeout_s, source_address=(own_host, 0)
    ) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield RawPeer(connection)


def _even(text: str) -> bytes:
    encoded = text.encode()
    return encoded + b"\0" * (len(encoded) % 2)
