"""Sends DICOM files by C-STORE, as they are: nothing is decoded, transcoded or changed.

In: files and folders. Out: one status per object. Nothing is kept here; an object counts
as sent only when the peer answered it with success or a warning.

Source: PS3.4 Annex B (Storage Service Class), PS3.8 9.3.4 (A-ASSOCIATE-RJ).
"""

from __future__ import annotations

import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients.errors import ClientError, NotAccepted
from clients.found import Found, Search, find_instances

__all__ = [
    "MAX_CONTEXTS",
    "Found",
    "Outcome",
    "Peer",
    "Report",
    "Search",
    "Tls",
    "batches",
    "explain_status",
    "find_instances",
    "send",
]

MAX_CONTEXTS = 128
"""Presentation contexts of one association: ids are the odd numbers of a byte (PS3.8 9.3.2.2)."""

_LOW_PRIORITY = 2
_NO_ANSWER = "the connection was lost before the peer answered"

_REJECTIONS = {
    (1, 1): "it gave no reason",
    (1, 2): "it doesn't know the DICOM application context",
    (1, 3): "it doesn't know our name '{calling}' (calling AE title not recognised). "
    "Pass the title it expects with --calling, or add '{calling}' to its list of sources",
    (1, 7): "it isn't called '{called}' (called AE title not recognised). "
    "Pass one of the titles it answers to with --called",
    (2, 1): "it gave no reason",
    (2, 2): "it speaks another version of the DICOM protocol",
    (3, 1): "it is busy just now (temporary congestion). Try again in a moment",
    (3, 2): "it holds as many associations as it allows (local limit exceeded). "
    "Try again when other senders have finished, or raise its limit",
}


@dataclass(frozen=True, slots=True)
class Tls:
    """How a peer is called by DICOM TLS.

    Attributes:
        ca_file: PEM of those who sign the peer's certificate; the system's where not given.
        certificate_file: PEM of ours, where the peer asks for one.
        key_file: Its key; in `certificate_file` where not given.
        check_hostname: Whether the peer's certificate must name the host that we call.
    """

    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    check_hostname: bool = True

    def context(self) -> ssl.SSLContext:
        """The context to call with.

        Raises:
            ConfigurationError: a file is missing or wrong.
        """
        from dicom_gateway.tls import client_context  # noqa: PLC0415 - --help stays quick

        return client_context(
            self.ca_file,
            self.certificate_file,
            self.key_file,
            check_hostname=self.check_hostname,
        )


@dataclass(frozen=True, slots=True)
class Peer:
    """Whom we call, and under which names."""

    host: str
    port: int
    called_ae_title: str
    calling_ae_title: str
    tls: Tls | None = None

    @classmethod
    def parse(
        cls, address: str, called_ae_title: str, calling_ae_title: str, tls: Tls | None = None
    ) -> Peer:
        """Reads `HOST:PORT`.

        Raises:
            ClientError: it is not of that form, or a name is no AE title.
        """
        from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415 - --help stays quick

        from dicom_gateway.config_base import AETitle  # noqa: PLC0415

        for title in (called_ae_title, calling_ae_title):
            try:
                TypeAdapter(AETitle).validate_python(title)
            except ValidationError as error:
                reason = error.errors()[0]["msg"].removeprefix("Value error, ")
                msg = f"'{title}' is no AE title: {reason}"
                raise ClientError(msg) from error
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or not 1 <= int(port) <= 65535:
            msg = f"'{address}' is no HOST:PORT; write for example 127.0.0.1:11112"
            raise ClientError(msg)
        return cls(host.strip("[]"), int(port), called_ae_title, calling_ae_title, tls)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one object.

    Attributes:
        status: The peer's C-STORE status; None when the object was never answered.
        note: Why it was not accepted, or the peer's warning; empty on plain success.
    """

    found: Found
    status: int | None
    note: str = ""

    @property
    def accepted(self) -> bool:
        """True for success and for warnings: the peer keeps the object (PS3.4 B.2.3)."""
        return self.status is not None and (self.status == 0 or 0xB000 <= self.status <= 0xBFFF)


@dataclass(frozen=True, slots=True)
class Report:
    """All outcomes of one sending."""

    outcomes: tuple[Outcome, ...]

    @property
    def accepted(self) -> int:
        """How many objects the peer keeps now."""
        return sum(outcome.accepted for outcome in self.outcomes)

    @property
    def complete(self) -> bool:
        """True when every object was accepted."""
        return self.accepted == len(self.outcomes)

    def troubles(self) -> list[tuple[str, int]]:
        """(reason, how many) for everything but plain success, the commonest first."""
        notes = Counter(outcome.note for outcome in self.outcomes if outcome.note)
        return notes.most_common()


def send(
    instances: Sequence[Found],
    peer: Peer,
    *,
    on_outcome: Callable[[Outcome], None] | None = None,
    timeout_s: float = 60.0,
) -> Report:
    """Sends the instances over as many associations as their presentation contexts need.

    Args:
        instances: From `find_instances`.
        peer: Whom to call.
        on_outcome: Called after each object, for a progress bar.
        timeout_s: How long to wait for a connection, an answer, or the network.

    Raises:
        NotAccepted: no association came about: nobody listens, or the peer rejects it.
    """
    outcomes: list[Outcome] = []

    def note(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if on_outcome is not None:
            on_outcome(outcome)

    for batch in batches(instances):
        _send_batch(batch, peer, timeout_s, note)
    return Report(tuple(outcomes))


def batches(instances: Sequence[Found]) -> list[list[Found]]:
    """Groups instances so that each group needs at most `MAX_CONTEXTS` presentation contexts.

    The order of the instances is kept within each group.
    """
    pairs = list(dict.fromkeys(found.context for found in instances))
    group_of = {pair: index // MAX_CONTEXTS for index, pair in enumerate(pairs)}
    groups: list[list[Found]] = [[] for _ in range(-(-len(pairs) // MAX_CONTEXTS))]
    for found in instances:
        groups[group_of[found.context]].append(found)
    return groups


def _send_batch(
    batch: Sequence[Found], peer: Peer, timeout_s: float, note: Callable[[Outcome], None]
) -> None:
    from pynetdicom import build_context  # noqa: PLC0415

    pairs = list(dict.fromkeys(found.context for found in batch))
    contexts = [build_context(sop_class, syntax) for sop_class, syntax in pairs]
    association = _associate(peer, contexts, timeout_s)
    taken = {
        (str(cx.abstract_syntax), str(cx.transfer_syntax[0])): int(cx.context_id)
        for cx in association.accepted_contexts
    }
    lost = False
    try:
        for number, found in enumerate(batch):
            if found.context not in taken:
                note(Outcome(found, None, _not_negotiated(found)))
            elif lost or not association.is_established:
                note(Outcome(found, None, "the connection was lost before this object was sent"))
            else:
                # A message id is 16 bits and must be unique only among those in flight.
                outcome = _store(
                    association, found, taken[found.context], message_id=number % 65535 + 1
                )
                # pynetdicom may go on calling a dead association established for a moment,
                # and would then wait for the next answer until the timeout.
                lost = outcome.note == _NO_ANSWER
                note(outcome)
    finally:
        if association.is_established:
            association.release()


def _associate(peer: Peer, contexts: list[Any], timeout_s: float) -> Any:
    from pynetdicom import AE, evt  # noqa: PLC0415

    from dicom_gateway.calling import on_connected  # noqa: PLC0415

    ae = AE(ae_title=peer.calling_ae_title)
    ae.connection_timeout = timeout_s
    ae.acse_timeout = timeout_s
    ae.dimse_timeout = timeout_s
    ae.network_timeout = timeout_s
    rejections: list[Any] = []
    association = ae.associate(
        peer.host,
        peer.port,
        contexts=contexts,
        ae_title=peer.called_ae_title,
        tls_args=None if peer.tls is None else (peer.tls.context(), peer.host),
        evt_handlers=[
            (evt.EVT_CONN_OPEN, on_connected),
            (evt.EVT_PDU_RECV, _note_rejection, [rejections]),
        ],
    )
    if association.is_established:
        return association
    where = f"{peer.host}:{peer.port}"
    if rejections:
        answer = rejections[0]
        reason = _REJECTIONS.get(
            (answer.result_source, answer.diagnostic), f"reason {answer.diagnostic}"
        )
        reason = reason.format(calling=peer.calling_ae_title, called=peer.called_ae_title)
        msg = f"{where} rejected the association: {reason}."
    elif association.acceptor.primitive is not None and not association.accepted_contexts:
        names = ", ".join(sorted({_name(cx.abstract_syntax) for cx in contexts}))
        msg = f"{where} takes none of these kinds of object: {names}."
    elif peer.tls is not None and (trouble := _tls_trouble(peer, peer.tls, timeout_s)):
        msg = f"{where}: no TLS connection: {trouble}."
    else:
        msg = (
            f"nobody answered at {where}. Is the receiver running there, and does a firewall "
            "let this port through?"
        )
    raise NotAccepted(msg)


def _note_rejection(event: Any, rejections: list[Any]) -> None:
    # pynetdicom forgets a rejection that comes so quickly that the connection is closed
    # again before it looks; the PDU itself is always seen here.
    from pynetdicom.pdu import A_ASSOCIATE_RJ  # noqa: PLC0415

    if isinstance(event.pdu, A_ASSOCIATE_RJ):
        rejections.append(event.pdu.to_primitive())


def _tls_trouble(peer: Peer, tls: Tls, timeout_s: float) -> str:
    """Why the TLS handshake fails, asked for once more; empty where that isn't it."""
    try:
        with (
            socket.create_connection((peer.host, peer.port), min(timeout_s, 10.0)) as raw,
            tls.context().wrap_socket(raw, server_hostname=peer.host) as secured,
        ):
            # With TLS 1.3 a refused client certificate shows only when something is read.
            secured.settimeout(1.0)
            secured.recv(1)
    except ssl.SSLCertVerificationError as error:
        return (
            f"its certificate is not trusted ({error.verify_message}); name who signed it with "
            "--tls-ca"
        )
    except ssl.SSLError as error:
        reason = (error.reason or "unknown").replace("_", " ").lower()
        if "certificate" in reason:
            return f"it refuses ours ({reason}); pass one that it knows with --tls-certificate"
        return f"{reason}; is this its TLS port"
    except OSError:
        return ""
    return ""


def _store(association: Any, found: Found, context_id: int, message_id: int) -> Outcome:
    """Sends one file's data set as its bytes lie on the disk, under its own UIDs.

    Otherwise pynetdicom would parse and encode each object again, which not every real object
    survives, or announce it by the UIDs of the file meta information.
    """
    from pydicom.uid import UID  # noqa: PLC0415
    from pynetdicom.dimse_primitives import C_STORE  # noqa: PLC0415
    from pynetdicom.dsutils import split_dataset  # noqa: PLC0415

    try:
        _, offset = split_dataset(found.path)
        request = C_STORE()
        request.MessageID = message_id
        request.Priority = _LOW_PRIORITY
        request.AffectedSOPClassUID = UID(found.sop_class_uid)
        request.AffectedSOPInstanceUID = UID(found.sop_instance_uid)
        request._dataset_path = (found.path, offset)
        # As `Association.send_c_store` does: its own thread must not take the answer.
        association._reactor_checkpoint.clear()
        while not association._is_paused:
            time.sleep(0.0001)
        try:
            if not association.is_established:  # the peer went while the file was read
                return Outcome(found, None, _NO_ANSWER)
            association.dimse.send_msg(request, context_id)
            _, answer = association.dimse.get_msg(block=True)
        finally:
            association._reactor_checkpoint.set()
    except (ValueError, RuntimeError, AttributeError, OSError) as error:
        return Outcome(found, None, f"the object could not be sent ({type(error).__name__})")
    if answer is None:
        association.abort()
        return Outcome(found, None, _NO_ANSWER)
    if not isinstance(answer, C_STORE) or answer.Status is None:
        association.abort()
        return Outcome(found, None, "the peer answered with something else")
    code = int(answer.Status)
    if code == 0:
        return Outcome(found, code)
    comment = str(answer.ErrorComment or "").strip()
    return Outcome(found, code, explain_status(code) + (f": {comment}" if comment else ""))


def explain_status(code: int) -> str:
    """One plain phrase for a C-STORE status.

    Source: PS3.4 Table B.2-1, PS3.7 Annex C.
    """
    ranges = (
        (0xA700, 0xA7FF, "refused, the peer is out of resources; send again later"),
        (0xA900, 0xA9FF, "refused, the data set is not what its SOP class promises"),
        (0xC000, 0xCFFF, "refused, the peer can't understand the data set"),
        (0xB000, 0xBFFF, "accepted with a warning"),
        (0x0122, 0x0122, "refused, the peer doesn't support this SOP class"),
        (0x0124, 0x0124, "refused, the peer doesn't allow us to store"),
        (0x0117, 0x0117, "refused, the peer says the SOP Instance UID is not valid"),
        (0x0111, 0x0111, "refused, the peer has this SOP Instance UID already"),
    )
    for first, last, text in ranges:
        if first <= code <= last:
            return f"0x{code:04X}, {text}"
    return f"0x{code:04X}, refused"


def _not_negotiated(found: Found) -> str:
    return (
        f"the peer doesn't take {_name(found.sop_class_uid)} in {_name(found.transfer_syntax_uid)}"
    )


def _name(uid: str | None) -> str:
    from pydicom.uid import UID  # noqa: PLC0415

    return UID(uid or "").name
