"""Who is this? - read from the bytes, of every transfer syntax, trusting no length."""

from __future__ import annotations

import dataclasses
import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset, Sequence
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from dicom_gateway.errors import BadIdentifier, IdentifierMismatch, NotADataSet, Refused
from dicom_gateway.records import Arrival
from dicom_gateway.store.identity import identify, is_uid
from tests.support.dicom import CANARY, a_ct_series, an_arrival, encoded


def an_instance(**options: object) -> Dataset:
    """One CT frame; options as for a series."""
    return a_ct_series(1, **options)[0]  # type: ignore[arg-type]


def with_value(tag: str, value: bytes, arrival: Arrival) -> Arrival:
    """The same arrival, where one UID element has been given other bytes."""
    group, element = (int(part, 16) for part in tag.split(","))
    header = struct.pack("<HH2s", group, element, b"UI")
    place = arrival.encoded_dataset.index(header)
    (length,) = struct.unpack_from("<H", arrival.encoded_dataset, place + 6)
    if len(value) % 2:
        value += b"\0"
    changed = (
        arrival.encoded_dataset[: place + 6]
        + struct.pack("<H", len(value))
        + value
        + arrival.encoded_dataset[place + 8 + length :]
    )
    return dataclasses.replace(arrival, encoded_dataset=changed)


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, JPEGLSLossless]
)
def test_the_identifiers_are_found_in_every_transfer_syntax(syntax: str) -> None:
    """Explicit, implicit and compressed data sets name themselves alike."""
    ds = an_instance(transfer_syntax_uid=syntax)

    identity = identify(an_arrival(ds))

    assert identity.sop_instance_uid == ds.SOPInstanceUID
    assert identity.series_instance_uid == ds.SeriesInstanceUID
    assert identity.study_instance_uid == ds.StudyInstanceUID
    assert identity.sop_class_uid == ds.SOPClassUID
    assert identity.modality == "CT"


def test_the_identifiers_are_found_in_big_endian() -> None:
    """The retired big endian syntax is read too."""
    ds = an_instance()
    del ds.PixelData
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = False, False
    write_dataset(buffer, ds)
    arrival = dataclasses.replace(
        an_arrival(ds),
        encoded_dataset=buffer.getvalue(),
        transfer_syntax_uid=ExplicitVRBigEndian,
    )

    assert identify(arrival).series_instance_uid == ds.SeriesInstanceUID


@pytest.mark.parametrize("undefined_length", [True, False])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_nested_sequences_before_the_identifiers_are_stepped_over(
    syntax: str, undefined_length: bool
) -> None:
    """A sequence that names other objects does not lend its UIDs."""
    ds = an_instance(transfer_syntax_uid=syntax)
    inner, outer = Dataset(), Dataset()
    inner.ReferencedSOPInstanceUID = "1.2.3"
    inner.SeriesInstanceUID = "1.2.3.4"
    inner.is_undefined_length_sequence_item = undefined_length
    outer.ReferencedImageSequence = Sequence([inner, inner])
    outer["ReferencedImageSequence"].is_undefined_length = undefined_length
    outer.is_undefined_length_sequence_item = undefined_length
    ds.ReferencedStudySequence = Sequence([outer])
    ds["ReferencedStudySequence"].is_undefined_length = undefined_length

    assert identify(an_arrival(ds)).series_instance_uid == ds.SeriesInstanceUID


def test_a_very_deep_nest_of_sequences_does_no_harm() -> None:
    """Depth is the peer's choice, so it costs neither stack nor much time."""
    opening = struct.pack("<HHI", 0x0008, 0x1140, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    arrival = an_arrival(an_instance(transfer_syntax_uid=ImplicitVRLittleEndian))

    with pytest.raises(NotADataSet):
        identify(dataclasses.replace(arrival, encoded_dataset=opening * 100_000))


@pytest.mark.parametrize(
    "value",
    [
        b"../../../../etc/cron.d/x",
        b"1.2.3/../../4",
        b"1.2.840." + b"1" * 60,
        b"1..2",
        b".1.2",
        b"1.2.",
        b"CANARY^SECRET",
        b"1.2\x003.4",
        "1.2.٣".encode(),
        b"",
    ],
)
@pytest.mark.parametrize("tag", ["0008,0018", "0020,000D", "0020,000E"])
def test_what_is_no_uid_is_refused_and_not_repeated(tag: str, value: bytes) -> None:
    """Traversals, over-long and odd UIDs are refused, and no text quotes them."""
    arrival = with_value(tag, value, an_arrival(an_instance()))

    with pytest.raises(BadIdentifier) as refusal:
        identify(arrival)

    assert CANARY not in str(refusal.value)
    assert tag in str(refusal.value)


def _as_long(arrival: Arrival, element: int, length: int) -> Arrival:
    """The same in implicit VR, where (0008,xxxx) has a value of that length."""
    place = arrival.encoded_dataset.index(struct.pack("<HH", 0x0008, element))
    (before,) = struct.unpack_from("<I", arrival.encoded_dataset, place + 4)
    changed = (
        arrival.encoded_dataset[: place + 4]
        + struct.pack("<I", length)
        + b"1" * length
        + arrival.encoded_dataset[place + 8 + before :]
    )
    return dataclasses.replace(arrival, encoded_dataset=changed)


def test_a_value_that_is_far_too_long_is_not_even_copied() -> None:
    """Its length is the peer's choice; what is kept in memory of it isn't."""
    arrival = an_arrival(an_instance(transfer_syntax_uid=ImplicitVRLittleEndian))
    with pytest.raises(BadIdentifier, match="is no UID"):
        identify(_as_long(arrival, 0x0018, 1 << 20))

    long = _as_long(arrival, 0x0060, 64 << 20)
    tracemalloc.start()
    try:
        assert identify(long).modality == ""
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_more_elements_than_any_object_has_are_not_counted_to_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Empty items of eight bytes: the thread that receives has others to serve."""
    monkeypatch.setattr("dicom_gateway.walk._ELEMENTS_LIMIT", 1000)
    opening = struct.pack("<HHI", 0x0008, 0x0012, 0xFFFFFFFF)
    items = struct.pack("<HHI", 0xFFFE, 0xE000, 0) * 2000
    closing = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    arrival = an_arrival(an_instance(transfer_syntax_uid=ImplicitVRLittleEndian))
    stuffed = opening + items + closing + arrival.encoded_dataset
    with pytest.raises(NotADataSet, match="more than 1000 elements"):
        identify(dataclasses.replace(arrival, encoded_dataset=stuffed))


def test_a_leading_zero_in_a_uid_is_tolerated() -> None:
    """Some devices write one; it can do no harm."""
    assert is_uid("1.2.840.0113619.2.5")


def test_an_object_other_than_announced_is_refused() -> None:
    """Request and data set must agree on the SOP Instance UID and the SOP Class UID."""
    arrival = an_arrival(an_instance())

    with pytest.raises(IdentifierMismatch, match="0008,0018"):
        identify(dataclasses.replace(arrival, sop_instance_uid="1.2.3"))
    with pytest.raises(IdentifierMismatch, match="0008,0016"):
        identify(dataclasses.replace(arrival, sop_class_uid="1.2.3"))


def test_a_data_set_cut_off_in_its_pixel_data_is_refused() -> None:
    """Better to say so at once than to fail the job later."""
    arrival = an_arrival(an_instance())

    with pytest.raises(NotADataSet, match="100 bytes of its pixel data are missing"):
        identify(dataclasses.replace(arrival, encoded_dataset=arrival.encoded_dataset[:-100]))


def test_a_data_set_cut_off_before_it_names_itself_is_refused() -> None:
    """Whatever the place of the cut, there is a named refusal."""
    arrival = an_arrival(an_instance())
    end = arrival.encoded_dataset.index(struct.pack("<HH2s", 0x0020, 0x000E, b"UI")) + 20

    for cut in range(end):
        with pytest.raises((NotADataSet, BadIdentifier)):
            identify(dataclasses.replace(arrival, encoded_dataset=arrival.encoded_dataset[:cut]))


def test_the_wrong_transfer_syntax_is_refused() -> None:
    """Implicit bytes in an explicit context are no data set."""
    arrival = an_arrival(an_instance(transfer_syntax_uid=ImplicitVRLittleEndian))

    with pytest.raises(NotADataSet):
        identify(dataclasses.replace(arrival, transfer_syntax_uid=ExplicitVRLittleEndian))


@given(st.binary(max_size=400), st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian]))
def test_any_bytes_are_refused_by_name(garbage: bytes, syntax: str) -> None:
    """Nothing but our own errors comes out of bytes that a stranger made up."""
    arrival = Arrival(garbage, "1.2", "1.2.3", str(syntax), "A", "B", "x")

    with pytest.raises(Refused):
        identify(arrival)


@given(st.data())
def test_a_changed_byte_never_ends_in_a_foreign_error(data: st.DataObject) -> None:
    """A real data set with damage is either still identified or refused by name."""
    whole = bytearray(_WHOLE.encoded_dataset)
    place = data.draw(st.integers(0, 900))
    whole[place] = data.draw(st.integers(0, 255))
    damaged = dataclasses.replace(_WHOLE, encoded_dataset=bytes(whole))

    try:
        assert is_uid(identify(damaged).series_instance_uid)
    except Refused as refusal:
        assert CANARY not in str(refusal)


_WHOLE = an_arrival(an_instance())


def test_an_odd_modality_is_cleaned() -> None:
    """Only capitals, digits, underscore and space pass; sixteen of them at most."""
    ds = an_instance()
    bytes_before = encoded(ds)
    place = bytes_before.index(struct.pack("<HH2s", 0x0008, 0x0060, b"CS"))
    odd = b"ct/../\x1b[31m" + b"A" * 21
    arrival = dataclasses.replace(
        an_arrival(ds),
        encoded_dataset=bytes_before[: place + 6]
        + struct.pack("<H", len(odd))
        + odd
        + bytes_before[place + 10 :],
    )

    assert identify(arrival).modality == "CT31M" + "A" * 11


def test_a_length_that_looks_like_letters_is_a_length() -> None:
    """An item of 0x4241 bytes: its length reads "AB", like a value representation."""
    ds = an_instance()
    arrival = an_arrival(ds)
    body = b"\0" * 0x4241
    item = struct.pack("<HHI", 0xFFFE, 0xE000, len(body)) + body
    sequence = (
        struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
        + item
        + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    )
    # After the group 0008 elements, before the first of a higher group.
    place = min(
        arrival.encoded_dataset.find(struct.pack("<HH", group, element))
        for group, element in ((0x0010, 0x0010), (0x0020, 0x000D))
        if arrival.encoded_dataset.find(struct.pack("<HH", group, element)) > 0
    )
    longer = arrival.encoded_dataset[:place] + sequence + arrival.encoded_dataset[place:]
    identity = identify(dataclasses.replace(arrival, encoded_dataset=longer))
    assert identity.series_instance_uid == ds.SeriesInstanceUID
