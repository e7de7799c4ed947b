"""One result to one destination by C-STORE.

In: a DICOM file and a `Destination`. Out: a note for the job's story, or an error that says
whether sending again helps. Nothing is kept here: the outbox writes what happened.

Exactly the file's SOP class and transfer syntax are proposed, and its data set is sent as
it lies on the disk: what was made and checked is what arrives.
"""

from __future__ import annotations

import socket
from pathlib import Path

import pynetdicom
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pynetdicom import AE, evt
from pynetdicom.association import Association

from dicom_gateway.config import Destination
from dicom_gateway.errors import (
    DestinationRefused,
    DestinationUnavailable,
    EncodingFailed,
    GatewayError,
)

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
        DestinationRefused: it doesn't take the SOP class, or it refused the object.
        EncodingFailed: the file is gone or is no DICOM file.

    Source: PS3.4 B.2.3 and PS3.7 C (statuses), PS3.8 7.1.1 (association).
    """
    try:
        meta = dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"]).file_meta
        sop_class_uid = meta.MediaStorageSOPClassUID
        transfer_syntax_uid = meta.TransferSyntaxUID
    except (OSError, InvalidDicomError, AttributeError) as error:
        msg = f"the result file {path.name} can't be read any more; retry the job to make it again"
        raise EncodingFailed(msg, code="result_missing") from error
    ae = AE(ae_title=calling_ae_title)
    ae.connection_timeout = _CONNECT_TIMEOUT_S
    ae.acse_timeout = _ASSOCIATION_TIMEOUT_S
    ae.network_timeout = _RESPONSE_TIMEOUT_S
    ae.dimse_timeout = _RESPONSE_TIMEOUT_S
    ae.add_requested_context(sop_class_uid, transfer_syntax_uid)
    association = ae.associate(
        destination.host_ip,
        destination.port,
        ae_title=destination.ae_title,
        evt_handlers=[(evt.EVT_CONN_OPEN, _without_delay)],
    )
    try:
        if not association.is_established:
            raise _no_association(association, destination, str(sop_class_uid))
        try:
            answer = association.send_c_store(path)
        except (RuntimeError, ValueError) as error:
            # The peer hung up between the association and the request (RuntimeError), or
            # accepted the association without our one context (ValueError).
            raise _not_sent(association, destination, str(sop_class_uid)) from error
    finally:
        if association.is_established:
            association.release()
    return read_answer(answer, destination)


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
    association: Association, destination: Destination, sop_class_uid: str
) -> GatewayError:
    if association.is_rejected:
        answer = association.acceptor.primitive
        # PS3.8 9.3.4: result 1 is permanent, 2 transient. Both are tried again: what makes
        # a rejection permanent is a configuration that somebody is about to correct.
        reason = getattr(answer, "reason_str", "no reason") if answer is not None else "no reason"
        msg = (
            f"{_place(destination)} rejected the association ({str(reason).lower()}); check the "
            "AE titles on both sides"
        )
        return DestinationUnavailable(msg)
    return _not_sent(association, destination, sop_class_uid)


def _not_sent(
    association: Association, destination: Destination, sop_class_uid: str
) -> GatewayError:
    if association.rejected_contexts and not association.accepted_contexts:
        msg = (
            f"{_place(destination)} does not take objects of SOP class {sop_class_uid}; enable "
            "the class there, then send again with 'tritome jobs retry'"
        )
        return DestinationRefused(msg)
    msg = f"{_place(destination)} can't be reached or broke the association off"
    return DestinationUnavailable(msg)


def _place(destination: Destination) -> str:
    return (
        f"destination '{destination.name}' "
        f"({destination.ae_title} at {destination.host_ip}:{destination.port})"
    )
