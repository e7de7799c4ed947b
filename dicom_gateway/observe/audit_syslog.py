"""The audit trail to a collector: syslog over TLS, for as long as it takes.

In: the spool. Out: RFC 5424 messages in RFC 5425 frames. Survives a crash: how far the trail
has been shipped is written beside it. Syslog has no answer, so a message counts as shipped only
when the collector's machine has acknowledged its bytes and the connection still stands a moment
later; what went out before a connection broke is sent again. Twice is better than never.

Source: RFC 5424 6 (message), RFC 5425 4.3 (framing), PS3.15 A.6.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import ssl
import termios
import threading
import time
from datetime import UTC, datetime

from dicom_gateway.config_delivery import SyslogSettings
from dicom_gateway.errors import ConfigurationError
from dicom_gateway.observe.audit_spool import AuditSpool, Mark
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.tls import client_context

POLL_S = 1.0
_TIMEOUT_S = 30.0
_RETRY_FIRST_S = 1.0
_SETTLE_S = 0.5
"""How long a connection must stand after its last byte was acknowledged."""
_PRIORITY = 10 * 8 + 5
"""Facility 10 (security), severity 5 (notice), as PS3.15 A.6 recommends."""


class _Broken(Exception):
    """The connection to the collector came to an end."""


class AuditShipper:
    """The loop that ships; `run` returns when `stop` was called.

    Args:
        spool: What is shipped.
        settings: `audit.syslog` of gateway.yaml.

    Raises:
        ConfigurationError: a certificate can't be used.
    """

    def __init__(self, spool: AuditSpool, settings: SyslogSettings) -> None:
        self._spool = spool
        self._settings = settings
        self._context()  # now rather than at the first message
        self._connection: ssl.SSLSocket | None = None
        self._stopping = threading.Event()
        self._news = threading.Event()
        self._failed_in_a_row = 0
        self._log = get_logger(room="observe")

    def run(self) -> None:
        """Ships until `stop`; never ends because the collector is away."""
        mark = self._spool.shipped()
        while not self._stopping.is_set():
            self._news.clear()
            try:
                some = self._spool.unshipped(mark)
            except OSError as error:  # the trail waits on its disk, and the gateway for nothing
                self._log.error("audit_trail_unreadable", reason=error.strerror)
                self._stopping.wait(self._settings.retry_max_s)
                continue
            if not some:
                if self._connection is not None and _has_ended(self._connection):
                    self._close()
                self._news.wait(POLL_S)
                continue
            try:
                self._ship([message for _, message in some])
            except (_Broken, OSError, ConfigurationError) as error:
                self._close()
                self._wait(error)
                continue
            self._failed_in_a_row = 0
            mark = some[-1][0]
            self._note(mark)
        self._close()

    def notify(self) -> None:
        """Wakes it: a message was appended."""
        self._news.set()

    def stop(self) -> None:
        """Asks it to end after the messages in hand."""
        self._stopping.set()
        self._news.set()

    def _ship(self, messages: list[bytes]) -> None:
        """Sends some messages; returns when the collector's machine has them.

        Raises:
            _Broken, OSError: it may have none or some of them.
        """
        connection = self._connection
        if connection is None:
            connection = self._connection = self._connect()
        elif _has_ended(connection):
            raise _Broken("it closed the connection")
        connection.sendall(b"".join(map(_frame, messages)))
        until_s = time.monotonic() + _TIMEOUT_S
        while _unacknowledged_bytes(connection):
            if time.monotonic() > until_s:
                raise _Broken("it doesn't acknowledge what it is sent")
            time.sleep(0.01)
        self._stopping.wait(_SETTLE_S)
        if _has_ended(connection):
            raise _Broken("it closed the connection")

    def _note(self, mark: Mark) -> None:
        try:
            self._spool.mark_shipped(mark)
        except OSError as error:  # they will be sent twice after a restart
            self._log.warning("audit_mark_not_written", reason=error.strerror)

    def _wait(self, error: Exception) -> None:
        full_s = _RETRY_FIRST_S * 2.0 ** min(self._failed_in_a_row, 16)
        self._failed_in_a_row += 1
        wait_s = min(full_s, self._settings.retry_max_s)
        reason = getattr(error, "verify_message", None) or getattr(error, "strerror", None)
        self._log.warning(
            "audit_collector_away",
            host=self._settings.host,
            port=self._settings.port,
            reason=reason or str(error),
            retry_in_s=round(wait_s, 1),
        )
        self._stopping.wait(wait_s)

    def _connect(self) -> ssl.SSLSocket:
        place = (self._settings.host, self._settings.port)
        plain = socket.create_connection(place, timeout=_TIMEOUT_S)
        try:
            return self._context().wrap_socket(plain, server_hostname=self._settings.host)
        except BaseException:
            plain.close()
            raise

    def _context(self) -> ssl.SSLContext:
        tls = self._settings
        return client_context(
            tls.ca_file, tls.certificate_file, tls.key_file, check_hostname=tls.check_hostname
        )

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _frame(message: bytes) -> bytes:
    """One RFC 5424 message in its RFC 5425 frame: length, space, message."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    host = socket.gethostname() or "-"
    header = f"<{_PRIORITY}>1 {at} {host} tritome {os.getpid()} DICOM+RFC3881 - \ufeff"
    whole = header.encode() + message
    return f"{len(whole)} ".encode() + whole


def _unacknowledged_bytes(connection: ssl.SSLSocket) -> int:
    """What the peer's TCP has not acknowledged yet (SIOCOUTQ of Linux)."""
    count = array.array("i", [0])
    fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, count)
    return count[0]


def _has_ended(connection: ssl.SSLSocket) -> bool:
    """Whether the collector has closed or reset the connection; it never says anything else."""
    connection.settimeout(0.0)
    try:
        return connection.recv(1) == b""
    except (ssl.SSLWantReadError, BlockingIOError):
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(_TIMEOUT_S)
