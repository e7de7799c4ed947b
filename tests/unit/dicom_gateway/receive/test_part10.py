"""The beginning of a DICOM file: where its data set begins, and what is none."""

from __future__ import annotations

import pytest
from pydicom.uid import ImplicitVRLittleEndian

from dicom_gateway.errors import NotADataSet
from dicom_gateway.receive.part10 import META_LIMIT_BYTES, read_file_meta
from tests.support.dicom import a_ct_series, as_file_bytes, encoded


def test_the_data_set_begins_behind_the_file_meta_information() -> None:
    """Whatever its transfer syntax; and it is found as soon as its first bytes are there."""
    (ds,) = a_ct_series(frames=1, transfer_syntax_uid=ImplicitVRLittleEndian)
    whole = as_file_bytes(ds)
    meta = read_file_meta(whole, is_all=True)
    assert meta is not None
    assert whole[meta.size_bytes :] == encoded(ds)
    assert meta.transfer_syntax_uid == ImplicitVRLittleEndian
    assert (meta.sop_class_uid, meta.sop_instance_uid) == (ds.SOPClassUID, ds.SOPInstanceUID)
    for size in range(meta.size_bytes + 8):
        assert read_file_meta(whole[:size], is_all=False) is None
    assert read_file_meta(whole[: meta.size_bytes + 8], is_all=False) == meta


def test_a_bare_data_set_is_refused_by_name() -> None:
    """Its transfer syntax can't be known."""
    (ds,) = a_ct_series(frames=1)
    for head in (encoded(ds), b"", b"DICM"):
        with pytest.raises(NotADataSet, match="no 'DICM'") as refused:
            read_file_meta(head, is_all=True)
        assert refused.value.code == "no_part10_header"


def test_broken_file_meta_information_is_refused_by_name() -> None:
    """Cut off, in implicit VR, endless, or without the UIDs that it must have."""
    whole = as_file_bytes(a_ct_series(frames=1)[0])
    preamble = whole[:132]
    broken = {
        "cut off": whole[:180],
        "not in explicit": preamble + b"\x02\x00\x02\x00\x10\x00\x00\x00" + b"1" * 16,
        "longer than": preamble + b"\x02\x00\x02\x01OB\x00\x00\xff\xff\xff\x7f",
        "no Media Storage SOP Class": preamble + whole[whole.index(b"\x08\x00") :],
    }
    for words, head in broken.items():
        with pytest.raises(NotADataSet, match=words) as refused:
            read_file_meta(head, is_all=True)
        assert refused.value.code == "bad_file_meta"
    assert META_LIMIT_BYTES < 1 << 20
