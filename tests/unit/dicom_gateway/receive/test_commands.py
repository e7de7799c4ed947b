"""Command sets by hand: the same as pynetdicom reads and writes, and no bytes that crash."""

from __future__ import annotations

from io import BytesIO

from hypothesis import given
from hypothesis import strategies as st
from pynetdicom.dimse_messages import C_ECHO_RQ, C_STORE_RQ, C_STORE_RSP, DIMSEMessage
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from pynetdicom.pdu_primitives import P_DATA

from dicom_gateway.receive.commands import (
    StoreCommand,
    read_store_command,
    write_store_response,
)

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
UIDS = st.from_regex(r"[1-9][0-9]{0,9}(\.[1-9][0-9]{0,9}){1,4}", fullmatch=True)


def a_request(message_id: int, sop_instance_uid: str) -> bytes:
    """The command of a C-STORE request, as pynetdicom writes it."""
    request = C_STORE()
    request.MessageID, request.Priority = message_id, 2
    request.AffectedSOPClassUID = CT_IMAGE_STORAGE
    request.AffectedSOPInstanceUID = sop_instance_uid
    request.DataSet = BytesIO(b"\0\0")
    return _command(C_STORE_RQ(), request)


def _command(message: DIMSEMessage, primitive: C_STORE | C_ECHO) -> bytes:
    message.primitive_to_message(primitive)
    ((_, fragment),) = next(message.encode_msg(1, 0)).presentation_data_value_list
    return bytes(fragment[1:])


@given(message_id=st.integers(0, 65535), uid=UIDS)
def test_a_request_is_read_as_pynetdicom_wrote_it(message_id: int, uid: str) -> None:
    """Padding is not part of a UID."""
    assert read_store_command(a_request(message_id, uid)) == StoreCommand(
        message_id, CT_IMAGE_STORAGE, uid, has_data_set=True
    )


@given(
    message_id=st.integers(0, 65535),
    uid=UIDS,
    status=st.sampled_from((0x0000, 0xA700, 0xA900, 0xC000)),
    comment=st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=64),
)
def test_a_response_is_what_pynetdicom_reads(
    message_id: int, uid: str, status: int, comment: str
) -> None:
    """Group length included: pydicom would stumble over a wrong one."""
    written = write_store_response(
        StoreCommand(message_id, CT_IMAGE_STORAGE, uid, has_data_set=True), status, comment
    )
    piece = P_DATA()
    piece.presentation_data_value_list.append((1, b"\3" + written))
    message = DIMSEMessage()
    assert message.decode_msg(piece)
    assert isinstance(message, C_STORE_RSP)
    said = message.command_set
    assert said.CommandGroupLength == len(written) - 12
    assert (said.MessageIDBeingRespondedTo, said.Status) == (message_id, status)
    assert (said.AffectedSOPClassUID, said.AffectedSOPInstanceUID) == (CT_IMAGE_STORAGE, uid)
    # A backslash would part two values; `host` lets none through.
    if "\\" not in comment:
        assert said.get("ErrorComment", "") == comment


def test_another_command_is_somebody_elses() -> None:
    """C-ECHO has no SOP instance."""
    request = C_ECHO()
    request.MessageID, request.AffectedSOPClassUID = 1, "1.2.840.10008.1.1"
    assert read_store_command(_command(C_ECHO_RQ(), request)) is None


@given(cut=st.integers(1, 200), odd=st.binary(max_size=40))
def test_bytes_that_are_no_command_are_none(cut: int, odd: bytes) -> None:
    """Whatever a peer sends: read, or not, but never an error."""
    whole = a_request(1, "1.2.3")
    short = whole[: max(0, len(whole) - cut)]
    assert read_store_command(short) is None
    read_store_command(short + odd)
    read_store_command(odd)


def test_a_uid_longer_than_one_can_be_is_none() -> None:
    """It would have to be repeated in the answer, and there it doesn't fit."""
    whole = a_request(1, "1.2.3")
    field = whole.index(b"1.2.3\0")
    long = b"1." * 40
    spoilt = whole[: field - 4] + len(long).to_bytes(4, "little") + long
    assert read_store_command(spoilt) is None
