"""Room 1, receive: objects in a multipart body, from a STOW-RS request or a WADO-RS answer.

In: the body, in pieces. Out: an `Arrival` for each part, to the same `keep` as C-STORE, and at
the end a `Reception`: what was kept and what was refused. Nothing is kept here: an object
counts as stored only when `keep` has returned, so what a crash takes, nobody was told of.

Never more than one part is under way for each body, and of that at most
`part_memory_bytes` in memory: a body of any size passes without growing the process.

Source: PS3.18 10.5 (STOW-RS), 10.4 (WADO-RS).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dicom_gateway.errors import (
    BadRequest,
    DatabaseUnavailable,
    NotADataSet,
    Refused,
    RequestTooLarge,
    UnsupportedMedia,
)
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.receive.multipart import MultipartReader, PartBegins, PartBytes
from dicom_gateway.receive.offers import TRANSFER_SYNTAXES, is_storage
from dicom_gateway.receive.part10 import FileMeta
from dicom_gateway.receive.spool import PartSpool
from dicom_gateway.records import Arrival, Instance, Reception, Refusal

OUT_OF_RESOURCES = 0xA700
CANNOT_UNDERSTAND = 0xC000
SOP_CLASS_NOT_SUPPORTED = 0x0122
TRANSFER_SYNTAX_NOT_SUPPORTED = 0xC122
"""PS3.18 Annex I: of a referenced transfer syntax."""
_PARTS_LIMIT = 100_000


class NotTaken(Refused):
    """An object of a kind that isn't taken here."""

    code = "not_taken"

    def __init__(self, message: str, status: int, code: str) -> None:
        super().__init__(message, code=code)
        self.status = status


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """How much one body may bring."""

    request_bytes: int
    part_bytes: int
    part_memory_bytes: int


class BodyIntake:
    """Where multipart bodies come in; `open` one for each.

    Args:
        folder: The store's folder for what is half there, on the store's disk.
        keep: As for the `Receiver`.
        association_ended: As for the `Receiver`: each body counts as an association.
        private_sop_classes: As for the `Receiver`.
        refused: As for the `Receiver`.
    """

    def __init__(
        self,
        folder: Path,
        keep: Callable[[Arrival], Instance],
        association_ended: Callable[[str, bool], None],
        private_sop_classes: Literal["all"] | Collection[str] = "all",
        refused: Callable[[str], None] = lambda _code: None,
    ) -> None:
        self.folder = folder
        self.private_sop_classes = private_sop_classes
        self.keep = keep
        self.association_ended = association_ended
        self.refused = refused

    def open(
        self,
        content_type: str,
        *,
        called_ae_title: str,
        calling_ae_title: str,
        limits: BodyLimits,
        study_instance_uid: str | None = None,
    ) -> Body:
        """Begins to take a body.

        Args:
            content_type: The header; multipart/related of application/dicom.
            called_ae_title: Whom its objects are for.
            calling_ae_title: Who sends them.
            limits: How much it may bring.
            study_instance_uid: All objects must be of this study, where given.

        Raises:
            UnsupportedMedia: it is another kind of body.
            BadRequest: it has no usable boundary.
        """
        return Body(
            self,
            MultipartReader(_boundary(content_type)),
            limits,
            Sender(called_ae_title, calling_ae_title, study_instance_uid, uuid.uuid4().hex),
        )


@dataclass(frozen=True, slots=True)
class Sender:
    """What the arrivals of one body have in common."""

    called_ae_title: str
    calling_ae_title: str
    study_instance_uid: str | None
    association_id: str


class Body:
    """One body under way. Call `feed` with each piece, then `finish`; or `abort`.

    All three may block (the disk, the index): call them from a thread that may.
    """

    def __init__(
        self,
        intake: BodyIntake,
        reader: MultipartReader,
        limits: BodyLimits,
        sender: Sender,
    ) -> None:
        self._intake = intake
        self._reader = reader
        self._limits = limits
        self._sender = sender
        self._log = get_logger(room="receive", association_id=sender.association_id)
        self._size_bytes = 0
        self._parts = 0
        self._part: PartSpool | None = None
        self._kept: list[Instance] = []
        self._refused: list[Refusal] = []
        self._over = False

    @property
    def reception(self) -> Reception:
        """What became of the parts so far."""
        return Reception(tuple(self._kept), tuple(self._refused))

    @property
    def counts(self) -> tuple[int, int]:
        """How many parts are kept and how many refused so far."""
        return len(self._kept), len(self._refused)

    def feed(self, piece: bytes) -> None:
        """Takes the next piece of the body; the objects that it completes are kept.

        Raises:
            RequestTooLarge: the body is longer than it may be; `abort` it.
            BadRequest: it is no multipart body; `abort` it.
        """
        self._size_bytes += len(piece)
        if self._size_bytes > self._limits.request_bytes:
            msg = f"the body is larger than {self._limits.request_bytes} bytes; send it in parts"
            raise RequestTooLarge(msg)
        for event in self._reader.feed(piece):
            if isinstance(event, PartBegins):
                self._begin(event.headers)
            elif isinstance(event, PartBytes):
                assert self._part is not None
                self._part.write(event.data)
            else:
                self._end_part()

    def finish(self) -> Reception:
        """Ends the body in order.

        Raises:
            BadRequest: it was cut off, or had no part at all; what came whole is kept.
        """
        if not self._reader.ended:
            self.abort()
            msg = (
                "the body ended before its closing boundary; "
                f"{len(self._kept)} object(s) that came whole are kept"
            )
            raise BadRequest(msg, code="cut_off")
        self._end(in_order=True)
        if not self._parts:
            msg = "the body has no part; put each DICOM file into one of its own"
            raise BadRequest(msg, code="no_parts")
        return self.reception

    def abort(self) -> None:
        """Ends it as a lost connection would be ended; what came whole is kept."""
        self._end(in_order=False)

    def _begin(self, headers: dict[str, str]) -> None:
        self._parts += 1
        if self._parts > _PARTS_LIMIT:
            msg = f"the body has more than {_PARTS_LIMIT} parts; send it in several requests"
            raise RequestTooLarge(msg)
        limits = self._limits
        self._part = PartSpool(self._intake.folder, limits.part_memory_bytes, limits.part_bytes)
        kind = headers.get("content-type", "application/dicom").partition(";")[0].strip().lower()
        if kind != "application/dicom":
            msg = "a part is no application/dicom"
            self._part.refusal = NotTaken(msg, CANNOT_UNDERSTAND, "not_dicom")

    def _end_part(self) -> None:
        part, self._part = self._part, None
        assert part is not None
        try:
            self._keep(part)
        finally:
            part.close()

    def _keep(self, part: PartSpool) -> None:
        try:
            encoded = part.encoded_dataset()
            assert part.meta is not None
            _require_taken(part.meta, self._intake.private_sop_classes)
            sender = self._sender
            instance = self._intake.keep(
                Arrival(
                    encoded_dataset=encoded,
                    sop_class_uid=part.meta.sop_class_uid,
                    sop_instance_uid=part.meta.sop_instance_uid,
                    transfer_syntax_uid=part.meta.transfer_syntax_uid,
                    calling_ae_title=sender.calling_ae_title,
                    called_ae_title=sender.called_ae_title,
                    association_id=sender.association_id,
                    study_instance_uid=sender.study_instance_uid,
                )
            )
        except Refused as refusal:
            self._refuse(part.meta, refusal.status, refusal.code, str(refusal))
        except DatabaseUnavailable as error:
            self._refuse(part.meta, OUT_OF_RESOURCES, error.code, str(error))
        except Exception:  # noqa: BLE001 - outermost edge: the peer must get an answer
            self._log.exception("instance refused: unforeseen error")
            msg = "it could not be kept; the gateway's log has the reason"
            self._refuse(part.meta, CANNOT_UNDERSTAND, "unforeseen", msg)
        else:
            self._kept.append(instance)
            self._log.debug("instance kept", sop_instance_uid=instance.sop_instance_uid)

    def _refuse(self, meta: FileMeta | None, status: int, code: str, reason: str) -> None:
        self._log.warning("instance refused", code=code, reason=reason)
        self._intake.refused(code)
        self._refused.append(
            Refusal(
                meta.sop_class_uid if meta else None,
                meta.sop_instance_uid if meta else None,
                status,
                code,
                reason,
            )
        )

    def _end(self, *, in_order: bool) -> None:
        if self._over:
            return
        self._over = True
        if self._part is not None:
            self._part.close()
            self._part = None
        if not self._kept:
            return
        try:
            self._intake.association_ended(self._sender.association_id, in_order)
        except DatabaseUnavailable as error:
            # The series then counts as still being sent, and the longer quiet time decides.
            self._log.warning("the end of a body could not be noted", reason=str(error))


def _require_taken(meta: FileMeta, private_sop_classes: Literal["all"] | Collection[str]) -> None:
    if meta.transfer_syntax_uid not in TRANSFER_SYNTAXES:
        msg = "its transfer syntax is not taken; deflated and unknown ones are left out"
        raise NotTaken(msg, TRANSFER_SYNTAX_NOT_SUPPORTED, "transfer_syntax_not_taken")
    for uid in (meta.sop_class_uid, meta.sop_instance_uid):
        if len(uid) > 64 or not uid.replace(".", "").isdecimal() or not uid.isascii():
            msg = "its file meta information has a UID that is none"
            raise NotADataSet(msg, code="bad_file_meta")
    if not is_storage(meta.sop_class_uid, private_sop_classes):
        msg = f"objects of SOP class {meta.sop_class_uid} are not for storage"
        raise NotTaken(msg, SOP_CLASS_NOT_SUPPORTED, "sop_class_not_taken")


def _boundary(content_type: str) -> str:
    """Of multipart/related with parts of application/dicom."""
    kind, parameters = parse_content_type(content_type)
    if kind != "multipart/related":
        msg = 'send multipart/related; type="application/dicom" (PS3.18 10.5)'
        raise UnsupportedMedia(msg)
    # Some peers leave the type out, though PS3.18 8.6.1.2.1 asks for it.
    if parameters.get("type", "application/dicom").lower() != "application/dicom":
        msg = "only parts of application/dicom are taken; metadata and bulk data apart are not"
        raise UnsupportedMedia(msg)
    return parameters.get("boundary", "")


def parse_content_type(text: str) -> tuple[str, dict[str, str]]:
    """The media type in small letters, and its parameters with the quotes taken off.

    Source: RFC 9110 8.3.1 and 5.6.6.
    """
    # The standard library's parser.
    from email.message import Message  # noqa: PLC0415
    from email.utils import collapse_rfc2231_value  # noqa: PLC0415

    message = Message()
    message["content-type"] = text.replace("\r", " ").replace("\n", " ")
    found = message.get_params(header="content-type") or [("", "")]
    return found[0][0].lower(), {
        name.lower(): collapse_rfc2231_value(value) for name, value in found[1:]
    }
