"""Sends DICOM files by C-STORE, as they are: nothing is decoded, transcoded or changed.

In: files and folders. Out: one status per object. Nothing is kept here; an object counts
as sent only when the peer answered it with success or a warning.

Source: PS3.4 Annex B (Storage Service Class), PS3.8 9.3.4 (A-ASSOCIATE-RJ).
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients.errors import ClientError, NotAccepted

MAX_CONTEXTS = 128
"""Presentation contexts of one association: ids are the odd numbers of a byte (PS3.8 9.3.2.2)."""

_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
_PREAMBLE_BYTES = 128
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
class Found:
    """One DICOM file (PS3.10) and what must be proposed to send it."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    size_bytes: int

    @property
    def context(self) -> tuple[str, str]:
        """(SOP class, transfer syntax): what one presentation context must offer."""
        return self.sop_class_uid, self.transfer_syntax_uid


@dataclass(frozen=True, slots=True)
class Search:
    """What lay under the given paths."""

    instances: tuple[Found, ...]
    skipped: tuple[Path, ...]
    """Files that are no DICOM files, and DICOMDIRs."""

    @property
    def size_bytes(self) -> int:
        """Of all instances together."""
        return sum(found.size_bytes for found in self.instances)


@dataclass(frozen=True, slots=True)
class Peer:
    """Whom we call, and under which names."""

    host: str
    port: int
    called_ae_title: str
    calling_ae_title: str

    @classmethod
    def parse(cls, address: str, called_ae_title: str, calling_ae_title: str) -> Peer:
        """Reads `HOST:PORT`.

        Raises:
            ClientError: it is not of that form, or a name is no AE title.
        """
        from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415 - --help stays quick

        from dicom_gateway.config import AETitle  # noqa: PLC0415

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
        return cls(host.strip("[]"), int(port), called_ae_title, calling_ae_title)


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


def find_instances(paths: Iterable[Path]) -> Search:
    """Finds the DICOM files under files and folders, in the order of their names.

    Only the file meta information is read. Files without it can't be sent as they are,
    since their transfer syntax is unknown; they count as skipped.

    Raises:
        ClientError: a path doesn't exist.
    """
    from pydicom.errors import InvalidDicomError  # noqa: PLC0415 - --help stays quick
    from pydicom.filereader import read_file_meta_info  # noqa: PLC0415

    instances: list[Found] = []
    skipped: list[Path] = []
    for path in _files(paths):
        try:
            if not _has_preamble(path):
                skipped.append(path)
                continue
            meta = read_file_meta_info(path)
            found = Found(
                path=path,
                sop_class_uid=str(meta.MediaStorageSOPClassUID),
                sop_instance_uid=str(meta.MediaStorageSOPInstanceUID),
                transfer_syntax_uid=str(meta.TransferSyntaxUID),
                size_bytes=path.stat().st_size,
            )
        except (InvalidDicomError, AttributeError, EOFError, ValueError):
            skipped.append(path)
            continue
        except OSError as error:
            msg = f"{path} can't be read ({error.strerror})"
            raise ClientError(msg) from error
        if found.sop_class_uid == _MEDIA_DIRECTORY:
            skipped.append(path)
        else:
            instances.append(found)
    return Search(tuple(instances), tuple(skipped))


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
        (str(cx.abstract_syntax), str(cx.transfer_syntax[0]))
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
                outcome = _store(association, found, message_id=number % 65535 + 1)
                # pynetdicom may go on calling a dead association established for a moment,
                # and would then wait for the next answer until the timeout.
                lost = outcome.note == _NO_ANSWER
                note(outcome)
    finally:
        if association.is_established:
            association.release()


def _associate(peer: Peer, contexts: list[Any], timeout_s: float) -> Any:
    from pynetdicom import AE, _config, evt  # noqa: PLC0415

    # Sends the file's bytes as they lie on the disk. Otherwise pynetdicom would parse and
    # encode each object again, which not every real object survives.
    _config.STORE_SEND_CHUNKED_DATASET = True
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
        evt_handlers=[
            (evt.EVT_CONN_OPEN, _without_delay),
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
    else:
        msg = (
            f"nobody answered at {where}. Is the receiver running there, and does a firewall "
            "let this port through?"
        )
    raise NotAccepted(msg)


def _without_delay(event: Any) -> None:
    """Small PDUs go out at once; otherwise each waits for the peer's delayed acknowledgement."""
    connection = event.assoc.dul.socket
    if connection is not None and connection.socket is not None:
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _note_rejection(event: Any, rejections: list[Any]) -> None:
    # pynetdicom forgets a rejection that comes so quickly that the connection is closed
    # again before it looks; the PDU itself is always seen here.
    from pynetdicom.pdu import A_ASSOCIATE_RJ  # noqa: PLC0415

    if isinstance(event.pdu, A_ASSOCIATE_RJ):
        rejections.append(event.pdu.to_primitive())


def _store(association: Any, found: Found, message_id: int) -> Outcome:
    try:
        status = association.send_c_store(found.path, msg_id=message_id)
    except (ValueError, RuntimeError, AttributeError, OSError) as error:
        return Outcome(found, None, f"the object could not be sent ({type(error).__name__})")
    if "Status" not in status:
        return Outcome(found, None, _NO_ANSWER)
    code = int(status.Status)
    if code == 0:
        return Outcome(found, code)
    comment = str(status.get("ErrorComment", "")).strip()
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


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(child for child in path.rglob("*") if child.is_file())
        elif path.is_file():
            yield path
        else:
            msg = f"{path} doesn't exist"
            raise ClientError(msg)


def _has_preamble(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(_PREAMBLE_BYTES)
        return file.read(4) == b"DICM"
