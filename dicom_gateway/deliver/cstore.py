"""One result to one destination by C-STORE.

In: a DICOM file and a `Destination`. Out: a note for the job's story, or an error that says
whether sending again helps. Nothing is kept here: the outbox writes what happened.

The file's own transfer syntax is proposed first, and where the peer takes that the data set
is sent as it lies on the disk: what was made and checked is what arrives. A peer that knows
only DICOM's default transfer syntax (implicit VR little endian) is offered that beside it;
for it the same elements are written anew, without their VRs.
"""

from __future__ import annotations

import socket
import struct
from io import BytesIO
from pathlib import Path

import pydicom.config
import pynetdicom
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_context, evt
from pynetdicom.association import Association
from pynetdicom.pdu import A_ASSOCIATE_RJ

from dicom_gateway.config import Destination
from dicom_gateway.errors import (
    DestinationRefused,
    DestinationUnavailable,
    EncodingFailed,
    GatewayError,
)

# pydicom's validation answers with warnings that quote the value: never a patient's name.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

# Sends the bytes of the file piece by piece instead of decoding and encoding them again.
pynetdicom._config.STORE_SEND_CHUNKED_DATASET = True

_CONNECT_TIMEOUT_S = 10.0
_ASSOCIATION_TIMEOUT_S = 30.0
_RESPONSE_TIMEOUT_S = 300.0
"""A PACS that commits a large object before it answers may take minutes."""

SUCCESS = 0x0000
DUPLICATE = 0x0111
_PASSES = frozenset(
    {
        0x0110,  # processing failure: some PACS say it when their database is busy
        0x0210,  # duplicate invocation
        0x0213,  # resource limitation
        0xFE00,  # the peer cancelled
    }
)


def send(path: Path, destination: Destination, calling_ae_title: str) -> str:
    """Sends one file and waits for the answer.

    Returns:
        What the peer said, in a few words for the job's story.

    Raises:
        DestinationUnavailable: not reachable, no association, out of resources, hung up.
        DestinationRefused: it takes neither of the two presentation contexts, or it refused
            the object.
        EncodingFailed: the file is gone or is no DICOM file.

    Source: PS3.4 B.2.3 and PS3.7 C (statuses), PS3.8 7.1.1 (association), PS3.5 10.1 (the
        default transfer syntax is proposed too).
    """
    try:
        meta = dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"]).file_meta
        sop_class_uid = UID(meta.MediaStorageSOPClassUID)
        own = UID(meta.TransferSyntaxUID)
    except (OSError, InvalidDicomError, AttributeError) as error:
        msg = f"the result file {path.name} can't be read any more; retry the job to make it again"
        raise EncodingFailed(msg, code="result_missing") from error
    # Two contexts, not one with two syntaxes: there the peer would choose, and we could not
    # say that the file's own comes first.
    syntaxes = [own, ImplicitVRLittleEndian] if own == ExplicitVRLittleEndian else [own]
    rejections: list[str] = []
    ae = AE(ae_title=calling_ae_title)
    ae.connection_timeout = _CONNECT_TIMEOUT_S
    ae.acse_timeout = _ASSOCIATION_TIMEOUT_S
    ae.network_timeout = _RESPONSE_TIMEOUT_S
    ae.dimse_timeout = _RESPONSE_TIMEOUT_S
    association = ae.associate(
        destination.host_ip,
        destination.port,
        contexts=[build_context(sop_class_uid, syntax) for syntax in syntaxes],
        ae_title=destination.ae_title,
        evt_handlers=[
            (evt.EVT_CONN_OPEN, _without_delay),
            (evt.EVT_PDU_RECV, _note_rejection, [rejections]),
        ],
    )
    try:
        if not association.is_established:
            raise _no_association(association, destination, rejections, sop_class_uid, syntaxes)
        taken = {str(context.transfer_syntax[0]) for context in association.accepted_contexts}
        what: Path | Dataset = path if own in taken else _in_implicit_vr(path)
        try:
            answer = association.send_c_store(what)
        except (RuntimeError, ValueError) as error:
            # The peer hung up between the association and the request (RuntimeError), or
            # accepted the association without our contexts (ValueError).
            raise _not_sent(association, destination, sop_class_uid, syntaxes) from error
    finally:
        if association.is_established:
            association.release()
    return read_answer(answer, destination)


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


def _note_rejection(event: evt.Event, rejections: list[str]) -> None:
    # pynetdicom forgets a rejection that comes so quickly that the connection is closed
    # again before it looks; the PDU itself is always seen here.
    if isinstance(event.pdu, A_ASSOCIATE_RJ):
        rejections.append(event.pdu.to_primitive().reason_str)


def _without_delay(event: evt.Event) -> None:
    """Small PDUs go out at once; otherwise each waits for the peer's delayed acknowledgement."""
    connection = event.assoc.dul.socket
    if connection is not None and connection.socket is not None:
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def read_answer(answer: Dataset, destination: Destination) -> str:
    """What a C-STORE response means; see `send`."""
    place = _place(destination)
    if "Status" not in answer:
        msg = f"{place} hung up or gave no answer to the object"
        raise DestinationUnavailable(msg)
    status = int(answer.Status)
    if status == SUCCESS:
        return "accepted"
    if status == DUPLICATE:
        return "accepted: it had the object already (0x0111)"
    if 0xB000 <= status <= 0xBFFF or status in {0x0001, 0x0107, 0x0116}:
        return f"accepted with warning 0x{status:04X}"
    # The peer's own comment is left out: it may quote the data set.
    if 0xA700 <= status <= 0xA7FF:
        msg = f"{place} is out of resources (0x{status:04X})"
        raise DestinationUnavailable(msg)
    if status in _PASSES:
        msg = f"{place} couldn't take the object just now (0x{status:04X})"
        raise DestinationUnavailable(msg)
    msg = (
        f"{place} refused the object with status 0x{status:04X}; look into its log, then send "
        "again with 'tritome jobs retry'"
    )
    raise DestinationRefused(msg)


def _no_association(
    association: Association,
    destination: Destination,
    rejections: list[str],
    sop_class_uid: UID,
    syntaxes: list[UID],
) -> GatewayError:
    if rejections:
        # PS3.8 9.3.4: result 1 is permanent, 2 transient. Both are tried again: what makes
        # a rejection permanent is a configuration that somebody is about to correct.
        msg = (
            f"{_place(destination)} rejected the association ({rejections[0].lower()}); check "
            "the AE titles on both sides"
        )
        return DestinationUnavailable(msg)
    return _not_sent(association, destination, sop_class_uid, syntaxes)


def _not_sent(
    association: Association, destination: Destination, sop_class_uid: UID, syntaxes: list[UID]
) -> GatewayError:
    if association.rejected_contexts and not association.accepted_contexts:
        offered = " or ".join(f"{one.name} ({one})" for one in syntaxes)
        msg = (
            f"{_place(destination)} does not take objects of SOP class {sop_class_uid.name} "
            f"({sop_class_uid}) in transfer syntax {offered}; enable them there, then send again "
            "with 'tritome jobs retry'"
        )
        return DestinationRefused(msg)
    msg = f"{_place(destination)} can't be reached or broke the association off"
    return DestinationUnavailable(msg)


def _place(destination: Destination) -> str:
    return (
        f"destination '{destination.name}' "
        f"({destination.ae_title} at {destination.host_ip}:{destination.port})"
    )
