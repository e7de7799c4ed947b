"""A name comes out as it was read, whatever character set its source claims to be in."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pydicom
import pytest
from pydicom import Dataset
from pydicom.dataelem import DataElement

from dicom_gateway.encode.texts import UTF_8, in_unicode, settled
from dicom_gateway.records import ObjectKind, Volume
from tests.support.dicom import a_ct_series
from tests.support.results import a_volume, pixels_of, results_of
from tests.support.series import LEFT_LUNG, LUNGS, RIGHT_LUNG, two_boxes

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, of what it can't decode

CLAIM = "ISO_IR 1000000000000000000000000"
KANJI = b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B"
KATAKANA = "ﾔﾏﾀﾞ^ﾀﾛｳ".encode("shift_jis")


def claiming(folder: Path, character_set: str, name: bytes, study_id: bytes = b"1") -> Volume:
    """A volume whose files have these very bytes as Patient's Name."""
    name += b" " * (len(name) % 2)
    study_id += b" " * (len(study_id) % 2)
    series = a_ct_series(5, rows=23, columns=29, patient_name="Q" * len(name))
    for ds in series:
        ds.SpecificCharacterSet = CLAIM
        ds.StudyID = "Z" * len(study_id)
    volume = a_volume(folder, series)
    for path in volume.headers:
        data = path.read_bytes()
        for placeholder, value in (
            (b"Q" * len(name), name),
            (b"Z" * len(study_id), study_id),
            (CLAIM.encode(), character_set.encode().ljust(len(CLAIM))),
        ):
            assert data.count(placeholder) == 1
            data = data.replace(placeholder, value)
        path.write_bytes(data)
    return volume


def made_of(volume: Volume, folder: Path, name: str = "Left lung") -> dict[ObjectKind, Dataset]:
    """Objects of all kinds, after the gate, with a segment of this name."""
    segments = (dataclasses.replace(LEFT_LUNG, name=name), RIGHT_LUNG)
    output = dataclasses.replace(LUNGS, segments=segments)
    made = results_of(two_boxes(volume), volume, folder, output=output, pixels=pixels_of(volume))
    assert set(made) == set(ObjectKind)
    return {kind: pydicom.dcmread(one.path) for kind, one in made.items()}


@pytest.mark.parametrize(
    ("character_set", "name", "text"),
    [
        ("ISO 2022 IR 87", KANJI, "Yamada^Tarou=山田^太郎"),
        ("ISO_IR 13", "山田^太郎".encode("shift_jis"), "山田^太郎"),
        ("ISO_IR 127", b"\xa1\xa2^A", "\ufffd\ufffd^A"),
        ("ISO_IR 166", b"\xff\xfe\xdb^A", "\ufffd\ufffd\ufffd^A"),
        ("ISO_IR 999", "Müller^Jörg".encode("latin-1"), "Müller^Jörg"),
        ("UTF_16", b"MUELLER^", "啍䱅䕌幒"),  # the library knows it; DICOM doesn't
    ],
)
def test_a_name_that_its_set_does_not_have_is_in_unicode(
    tmp_path: Path, character_set: str, name: bytes, text: str
) -> None:
    """As the source was read, and nothing is held for it."""
    for kind, ds in made_of(claiming(tmp_path, character_set, name), tmp_path).items():
        assert ds.SpecificCharacterSet == UTF_8, kind
        assert ds.PatientName == text, kind


@pytest.mark.parametrize(
    ("character_set", "name", "text"),
    [
        ("\\ISO 2022 IR 87", KANJI, "Yamada^Tarou=山田^太郎"),
        ("ISO 2022 IR 13\\ISO 2022 IR 87", KATAKANA, "ﾔﾏﾀﾞ^ﾀﾛｳ"),
        ("ISO_IR 13", KATAKANA, "ﾔﾏﾀﾞ^ﾀﾛｳ"),
        ("ISO_IR 100", "Müller^Jörg".encode("latin-1"), "Müller^Jörg"),
        ("ISO 2022 IR 87", b"YAMADA^TAROU", "YAMADA^TAROU"),
        ("GB18030", "王^小东".encode("gb18030"), "王^小东"),
    ],
)
def test_a_name_that_its_set_has_stays_in_it(
    tmp_path: Path, character_set: str, name: bytes, text: str
) -> None:
    """Peers that know the source's set know the result's."""
    for kind, ds in made_of(claiming(tmp_path, character_set, name), tmp_path).items():
        stated = ds.SpecificCharacterSet
        whole = stated if isinstance(stated, str) else "\\".join(stated)
        assert whole == character_set, kind
        assert ds.PatientName == text, kind


def test_other_texts_count_too(tmp_path: Path) -> None:
    """A name may be in its set while the study's id isn't."""
    volume = claiming(tmp_path, "ISO_IR 127", b"PLAIN^NAME", b"No \xa1\xa2")
    for ds in made_of(volume, tmp_path).values():
        assert (ds.SpecificCharacterSet, ds.StudyID) == (UTF_8, "No \ufffd\ufffd")
        assert ds.PatientName == "PLAIN^NAME"


def test_a_contract_beyond_ascii_takes_the_names_along(tmp_path: Path) -> None:
    """Out of the source's set, whichever it is."""
    volume = claiming(tmp_path, "\\ISO 2022 IR 87", KANJI)
    for ds in made_of(volume, tmp_path, "Lungenflügel links").values():
        assert ds.SpecificCharacterSet == UTF_8
        assert ds.PatientName == "Yamada^Tarou=山田^太郎"


def test_several_values_stay_several() -> None:
    """Two referring physicians are two."""
    physicians = DataElement("ReferringPhysicianName", "PN", ["Müller^J", "Weiß^K"])
    (one,) = in_unicode([physicians])
    assert [str(name) for name in one.value] == ["Müller^J", "Weiß^K"]
    elements, character_set = settled([physicians], None)
    assert character_set is None
    assert list(elements) == [physicians]
    elements, character_set = settled([physicians], "ISO_IR 144")  # Cyrillic
    assert character_set == UTF_8
    assert [str(name) for name in elements[0].value] == ["Müller^J", "Weiß^K"]
