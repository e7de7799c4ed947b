"""Results to one destination by C-STORE, many over one association.

In: DICOM files. Out: a note for the job's story, or an error that says whether sending again
helps. Nothing is kept here: the outbox writes what happened.

A file's own transfer syntax is proposed first, and where the peer takes that the data set is
sent as it lies on the disk: what was made and checked is what arrives. A peer that knows only
DICOM's default transfer syntax (implicit VR little endian) is offered that beside it; for it
the same elements are written anew, without their VRs.
"""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_context
from pynetdicom.association import Association

from dicom_gateway.config_delivery import Destination
from dicom_gateway.deliver.association import RESPONSE_TIMEOUT_S, Caller
from dicom_gateway.deliver.statuses import arrival
from dicom_gateway.errors import DestinationRefused, DestinationUnavailable, EncodingFailed

_CONTEXTS_LIMIT = 128
"""PS3.8 9.3.2.2: their ids are the odd numbers of a byte."""
_SLOWEST_BYTES_PER_S = 32 * 1024
"""Of a line that an object is sent over. pynetdicom waits for the answer from the moment when
the object lies in its queue, not from when it has gone out."""


class CStore:
    """Sends files one after the other; keeps its association open between them.

    One thread at a time. Call `close` when there is nothing to send for a while.

    Args:
        destination: Where they go.
        calling_ae_title: Who we say we are.

    Raises:
        ConfigurationError: its TLS section names files that can't be used.
    """

    def __init__(self, destination: Destination, calling_ae_title: str) -> None:
        self._destination = destination
        self._caller = Caller(destination, calling_ae_title)
        self._association: Association | None = None
        # Proposed each time: once a segmentation and a report went, both do.
        self._known: dict[UID, dict[UID, None]] = {}

    def send(self, path: Path) -> str:
        """Sends one file and waits for the answer.

        Returns:
            What the peer said, in a few words.

        Raises:
            DestinationUnreachable: no association came about.
            DestinationUnavailable: out of resources, busy, hung up.
            NotUnderstood: it can't understand the object.
            DestinationRefused: it takes neither of the two presentation contexts, or it
                refused the object.
            EncodingFailed: the file is gone or is no DICOM file.

        Source: PS3.4 B.2.3 and PS3.7 C (statuses), PS3.5 10.1 (the default transfer syntax
            is proposed too).
        """
        sop_class_uid, _, own = head_of(path)
        # Two contexts, not one with two syntaxes: there the peer would choose, and we could
        # not say that the file's own comes first.
        syntaxes = [own, ImplicitVRLittleEndian] if own == ExplicitVRLittleEndian else [own]
        association, was_open = self._ready_for(sop_class_uid, syntaxes)
        answer = self._ask(association, path, sop_class_uid, own, syntaxes)
        if was_open and "Status" not in answer:
            # It had closed the association while there was nothing to send: that is its right.
            self.close()
            association, _ = self._ready_for(sop_class_uid, syntaxes)
            answer = self._ask(association, path, sop_class_uid, own, syntaxes)
        if "Status" not in answer:
            self.close()
            msg = f"{self._destination} hung up or gave no answer to the object"
            raise DestinationUnavailable(msg)
        return arrival(int(answer.Status), self._destination)

    def close(self) -> None:
        """Releases the association, if there is one."""
        association, self._association = self._association, None
        if association is not None and association.is_established:
            association.release()

    def _ready_for(self, sop_class_uid: UID, syntaxes: list[UID]) -> tuple[Association, bool]:
        """An association that proposed these; and whether it was open before."""
        known = self._known.setdefault(sop_class_uid, {})
        is_news = not set(syntaxes) <= set(known)
        known.update(dict.fromkeys(syntaxes))
        open_one = self._association
        if open_one is not None and open_one.is_established and not is_news:
            return open_one, True
        self.close()
        proposed = [(one, syntax) for one, some in self._known.items() for syntax in some]
        if len(proposed) > _CONTEXTS_LIMIT:
            self._known = {sop_class_uid: dict.fromkeys(syntaxes)}
            proposed = [(sop_class_uid, syntax) for syntax in syntaxes]
        self._association = self._caller.open([build_context(*one) for one in proposed])
        return self._association, False

    def _ask(
        self,
        association: Association,
        path: Path,
        sop_class_uid: UID,
        own: UID,
        syntaxes: list[UID],
    ) -> Dataset:
        taken = {
            str(context.transfer_syntax[0])
            for context in association.accepted_contexts
            if context.abstract_syntax == sop_class_uid
        }
        if not taken:
            offered = " or ".join(f"{one.name} ({one})" for one in syntaxes)
            msg = (
                f"{self._destination} does not take objects of SOP class {sop_class_uid.name} "
                f"({sop_class_uid}) in transfer syntax {offered}; enable them there, or leave "
                "the kind out with 'objects' of this destination, then send again with "
                "'tritome jobs retry'"
            )
            raise DestinationRefused(msg)
        what: Path | Dataset = path if own in taken else _in_implicit_vr(path)
        try:
            association.dimse_timeout = (
                RESPONSE_TIMEOUT_S + path.stat().st_size / _SLOWEST_BYTES_PER_S
            )
            return association.send_c_store(what)
        except (RuntimeError, ValueError):
            # It hung up since we looked.
            return Dataset()
        except OSError as error:
            association.abort()  # it may have half of the object
            raise _missing(path) from error


class FileHead(NamedTuple):
    """What the meta information of a DICOM file says of its object."""

    sop_class_uid: UID
    sop_instance_uid: UID
    transfer_syntax_uid: UID


def head_of(path: Path) -> FileHead:
    """The meta information of a DICOM file.

    Raises:
        EncodingFailed: it is gone, or is none.
    """
    try:
        meta = dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"]).file_meta
        return FileHead(
            UID(meta.MediaStorageSOPClassUID),
            UID(meta.MediaStorageSOPInstanceUID),
            UID(meta.TransferSyntaxUID),
        )
    except (OSError, InvalidDicomError, AttributeError) as error:
        raise _missing(path) from error


def _missing(path: Path) -> EncodingFailed:
    msg = f"the result file {path.name} can't be read any more; retry the job to make it again"
    return EncodingFailed(msg, code="result_missing")


def _in_implicit_vr(path: Path) -> Dataset:
    """The same elements for a peer that knows only the default transfer syntax (PS3.5 A.1).

    Only for uncompressed data sets in little endian: there no value changes, also not those
    of Pixel Data, whose bits are packed from the lowest of each byte in both.
    """
    try:
        original = dcmread(path)
        original.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        anew = BytesIO()
        original.save_as(anew, implicit_vr=True, little_endian=True, enforce_file_format=True)
        anew.seek(0)
        return dcmread(anew)
    except (
        OSError,
        InvalidDicomError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        NotImplementedError,
        struct.error,
    ) as error:
        msg = (
            f"the result file {path.name} can't be written in implicit VR, and the destination "
            "takes nothing else; enable explicit VR little endian there, then send again with "
            "'tritome jobs retry'"
        )
        raise EncodingFailed(msg) from error
