"""Stored pixel values as the header promises them, or a refusal before anything is decoded."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLSLossless,
    RLELossless,
)

from dicom_gateway.assemble.frames import frames_of
from dicom_gateway.assemble.headers import read_header
from dicom_gateway.assemble.pixels import PixelReader, plan_pixels, read_pixels
from dicom_gateway.errors import BrokenPixelData, UnusableSeries
from tests.support.dicom import a_ct_series, write_series
from tests.support.series import a_real_series

ROWS, COLUMNS = 33, 34
"""No smaller: JPEG 2000 has six levels of resolution."""


def a_slice(**how: Any) -> Dataset:
    """One small CT instance."""
    return a_ct_series(frames=1, **{"rows": ROWS, "columns": COLUMNS} | how)[0]


def pixels_of(folder: Path, ds: Dataset) -> NDArray[np.int16]:
    """What is read from a data set once it is a file."""
    return pixels_in(write_series(folder, [ds])[0])


def pixels_in(path: Path) -> NDArray[np.int16]:
    """What is read from a file, [J, I]."""
    task = plan_pixels(read_header(path))
    out = np.full((task.rows, task.columns), -1, dtype=np.int16)
    read_pixels(task, out)
    return out


def values(low: int, high: int) -> NDArray[np.int64]:
    """All the range there is, ends included, [1, J, I]."""
    return np.linspace(low, high, ROWS * COLUMNS).astype(np.int64).reshape(1, ROWS, COLUMNS)


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        JPEGLSLossless,
        JPEG2000Lossless,
        RLELossless,
    ],
)
@pytest.mark.parametrize(
    ("signed", "bits_stored", "low", "high"),
    [(True, 16, -32768, 32767), (True, 12, -2048, 2047), (False, 12, 0, 4095)],
)
def test_stored_values_come_out_as_they_went_in(
    tmp_path: Path, syntax: str, signed: bool, bits_stored: int, low: int, high: int
) -> None:
    """Every lossless syntax, signed and unsigned, 16 bits and 12 in 16."""
    stored = values(low, high)
    ds = a_slice(pixels=stored, signed=signed, bits_stored=bits_stored, transfer_syntax_uid=syntax)
    np.testing.assert_array_equal(pixels_of(tmp_path, ds), stored[0])


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless])
def test_unsigned_16_bits_are_shifted_into_int16(tmp_path: Path, syntax: str) -> None:
    """By 32768, decided from the header: also where the values would have fitted."""
    stored = values(0, 65535)
    ds = a_slice(pixels=stored, signed=False, transfer_syntax_uid=syntax)
    path = write_series(tmp_path, [ds])[0]
    assert plan_pixels(read_header(path)).shift == 32768
    np.testing.assert_array_equal(pixels_of(tmp_path, ds), stored[0] - 32768)


def test_jpeg_lossless_is_understood(tmp_path: Path) -> None:
    """Process 14 (.70), which old scanners write; the codec comes from dcmtk here."""
    if shutil.which("dcmcjpeg") is None:
        pytest.skip("dcmtk is not installed")
    stored = values(0, 4095)
    plain = write_series(tmp_path, [a_slice(pixels=stored, signed=False, bits_stored=12)])[0]
    packed = tmp_path / "packed.dcm"
    subprocess.run(["dcmcjpeg", "+e1", plain, packed], check=True)
    assert dcmread(packed).file_meta.TransferSyntaxUID.is_compressed
    np.testing.assert_array_equal(pixels_in(packed), stored[0])


def test_big_endian_is_understood(tmp_path: Path) -> None:
    """Retired, but archives have it."""
    stored = values(-1024, 3000)
    ds = a_slice(pixels=stored)
    ds.PixelData = stored[0].astype(">i2").tobytes()
    ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    np.testing.assert_array_equal(pixels_of(tmp_path, ds), stored[0])


@pytest.mark.parametrize("signed", [True, False])
def test_rubbish_above_the_high_bit_is_cut_off(tmp_path: Path, signed: bool) -> None:
    """Overlays lived there once; the sign is extended all the same."""
    stored = values(-2048, 2047) if signed else values(0, 4095)
    ds = a_slice(pixels=stored, signed=signed, bits_stored=12)
    rubbish = np.arange(ROWS * COLUMNS, dtype=np.uint16).reshape(ROWS, COLUMNS) << 12
    ds.PixelData = ((stored[0] & 0x0FFF).astype("<u2") | rubbish).tobytes()
    np.testing.assert_array_equal(pixels_of(tmp_path, ds), stored[0])


def test_pixels_at_the_top_of_their_cells_are_understood(tmp_path: Path) -> None:
    """12 bits stored with High Bit 15 are shifted down."""
    stored = values(-2048, 2047)
    ds = a_slice(pixels=stored, bits_stored=12)
    ds.HighBit = 15
    ds.PixelData = (stored[0] << 4).astype("<i2").tobytes()
    np.testing.assert_array_equal(pixels_of(tmp_path, ds), stored[0])


@pytest.mark.parametrize("columns", [COLUMNS, COLUMNS + 1])
def test_8_bits_are_understood(tmp_path: Path, columns: int) -> None:
    """Also with the padding byte of an odd length."""
    stored = (np.arange(ROWS * columns) % 251).astype(np.uint8).reshape(1, ROWS, columns)
    ds = a_slice(pixels=stored, signed=False, columns=columns)
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.PixelData = stored.tobytes() + b"\0" * (stored.size % 2)
    ds["PixelData"].VR = "OB"
    np.testing.assert_array_equal(pixels_of(tmp_path, ds), stored[0])


def test_monochrome1_is_not_inverted(tmp_path: Path) -> None:
    """What is stored is stored; showing it is another matter."""
    ds = a_slice(pixels=values(0, 3000), bits_stored=12, signed=False)
    ds.PhotometricInterpretation = "MONOCHROME1"
    np.testing.assert_array_equal(pixels_of(tmp_path, ds), values(0, 3000)[0])


@pytest.mark.parametrize("length", [0, 2, ROWS * COLUMNS, 2 * ROWS * COLUMNS + 2, 10_000])
def test_native_data_of_the_wrong_length_is_broken(tmp_path: Path, length: int) -> None:
    """Too short and too long alike: 10,000 bytes are no 4 x 4 image."""
    ds = a_slice()
    ds.PixelData = b"\0" * length
    with pytest.raises(BrokenPixelData, match=rf"promises 2244 bytes .* there are {length}"):
        pixels_of(tmp_path, ds)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless])
def test_a_codestream_of_another_size_is_not_decoded(tmp_path: Path, syntax: str) -> None:
    """The size that the compressed data claims is compared first."""
    ds = a_slice(transfer_syntax_uid=syntax)
    ds.Rows = 32
    with pytest.raises(BrokenPixelData, match="is 33 x 34 and the header promises 32 x 34"):
        pixels_of(tmp_path, ds)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, RLELossless])
def test_truncated_frames_are_broken(tmp_path: Path, syntax: str) -> None:
    """Half a frame is never filled up in silence, as some codecs would."""
    rows = 64
    noise = np.random.default_rng(1).integers(0, 4000, (1, rows, rows))
    ds = a_slice(transfer_syntax_uid=syntax, rows=rows, columns=rows, pixels=noise)
    frame = next(generate_frames(ds.PixelData, number_of_frames=1))
    ds.PixelData = encapsulate([frame[: len(frame) // 4 * 2]])
    with pytest.raises((BrokenPixelData, RuntimeError, ValueError)):
        pixels_of(tmp_path, ds)


def test_a_68_byte_rle_frame_can_t_claim_800_mb(tmp_path: Path) -> None:
    """More than any run can give is refused before memory is taken."""
    ds = a_slice(transfer_syntax_uid=RLELossless)
    ds.Rows = ds.Columns = 20_000
    ds.PixelData = encapsulate([struct.pack("<16L", 2, 64, 66, *[0] * 13) + b"\x81\0\x81\0"])
    path = write_series(tmp_path, [ds])[0]
    task = plan_pixels(read_header(path))
    with pytest.raises(BrokenPixelData, match="can't hold the 800000000 bytes"):
        read_pixels(task, np.empty((0, 0), np.int16))


@pytest.mark.parametrize(
    "header",
    [(1, 64), (2, 64, 64), (2, 80, 64), (2, 3, 70), (16, 64, 70)],
)
def test_an_rle_header_out_of_order_is_broken(tmp_path: Path, header: tuple[int, ...]) -> None:
    """Segments are counted and in order, or nothing is decoded."""
    ds = a_slice(transfer_syntax_uid=RLELossless)
    padded = [*header, *[0] * (16 - len(header))]
    ds.PixelData = encapsulate([struct.pack("<16L", *padded) + b"\0" * 200])
    with pytest.raises(BrokenPixelData, match="RLE header"):
        pixels_of(tmp_path, ds)


def test_bytes_of_another_codec_are_broken(tmp_path: Path) -> None:
    """What doesn't begin as its syntax says isn't given to the codec."""
    ds = a_slice(transfer_syntax_uid=JPEG2000Lossless)
    ds.PixelData = encapsulate([b"\xff\xd8 not at all a JPEG 2000 codestream"])
    with pytest.raises(BrokenPixelData, match="don't begin"):
        pixels_of(tmp_path, ds)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour"),
        ({"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31}, "32 bits"),
        ({"BitsStored": 12, "HighBit": 7}, "contradict"),
        ({"ModalityLUTSequence": [Dataset()]}, "Modality LUT"),
        ({"RescaleSlope": 0}, "slope is 0"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    """Each with what was found and what to do."""
    ds = a_slice()
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    with pytest.raises(UnusableSeries, match=words) as caught:
        pixels_of(tmp_path, ds)
    assert caught.value.code == "unsupported_object"


def test_deflated_is_left_out(tmp_path: Path) -> None:
    """A small deflated file can become a gigabyte."""
    ds = a_slice()
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    with pytest.raises(UnusableSeries, match="no decoder for Deflated"):
        pixels_of(tmp_path, ds)


def test_an_image_without_pixel_data_has_its_name(tmp_path: Path) -> None:
    """A header alone is no image."""
    ds = a_slice()
    del ds.PixelData
    with pytest.raises(UnusableSeries) as caught:
        pixels_of(tmp_path, ds)
    assert caught.value.code == "no_pixel_data"


@pytest.mark.parametrize("double", [False, True])
def test_floating_point_pixels_come_out_as_float32(tmp_path: Path, double: bool) -> None:
    """Float and Double Float Pixel Data, as parametric maps and some MR have them."""
    stored = np.linspace(-1.5, 2.5, ROWS * COLUMNS).astype(np.float64 if double else np.float32)
    task = plan_pixels(read_header(write_series(tmp_path, [a_float_slice(stored)])[0]))
    assert (task.floating, task.shift, task.dtype) == (True, 0, np.dtype(np.float32))
    out = np.zeros((ROWS, COLUMNS), dtype=np.float32)
    read_pixels(task, out)
    np.testing.assert_array_equal(out.ravel(), stored.astype(np.float32))


def test_too_few_floats_are_broken(tmp_path: Path) -> None:
    """Lengths are compared for them too."""
    stored = np.zeros(ROWS * COLUMNS - 2, dtype=np.float32)
    task = plan_pixels(read_header(write_series(tmp_path, [a_float_slice(stored)])[0]))
    with pytest.raises(BrokenPixelData, match="promises 4488 bytes"):
        read_pixels(task, np.zeros((ROWS, COLUMNS), dtype=np.float32))


def a_float_slice(stored: NDArray[np.float32] | NDArray[np.float64]) -> Dataset:
    """One instance with floating point pixels."""
    ds = a_slice()
    for keyword in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(ds, keyword)
    ds.BitsAllocated = 8 * stored.dtype.itemsize
    setattr(
        ds,
        "FloatPixelData" if stored.dtype == np.float32 else "DoubleFloatPixelData",
        stored.tobytes(),
    )
    return ds


def test_12_bit_jpeg_extended_is_understood_where_dcmtk_is(tmp_path: Path) -> None:
    """Lossy, so nearly the same; no other decoder here can do it. dcmcjpeg moves the rescale."""
    if shutil.which("dcmcjpeg") is None or shutil.which("dcmdjpeg") is None:
        pytest.skip("dcmtk is not installed; the refusal is tested below")
    j, i = np.indices((ROWS, COLUMNS))
    stored = (2000 + 600 * np.sin(i / 9) + 500 * np.cos(j / 7)).astype(np.uint16)[None]
    plain = write_series(tmp_path, [a_slice(pixels=stored, signed=False, bits_stored=12)])[0]
    packed = tmp_path / "packed.dcm"
    subprocess.run(["dcmcjpeg", "+ee", "+q", "98", plain, packed], check=True)
    assert dcmread(packed).file_meta.TransferSyntaxUID == JPEGExtended12Bit
    moved = read_header(packed).rescale
    assert moved is not None
    found_hu = pixels_in(packed) * moved[0] + moved[1]
    assert np.abs(found_hu - (stored[0] - 1024.0)).max() <= 8


def test_12_bit_jpeg_extended_is_refused_by_name_where_dcmtk_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is decoded."""
    monkeypatch.setenv("PATH", str(tmp_path))
    ds = a_slice()
    ds.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    ds.file_meta.TransferSyntaxUID = JPEGExtended12Bit
    with pytest.raises(UnusableSeries, match="no decoder for JPEG Extended"):
        pixels_of(tmp_path, ds)


@pytest.mark.parametrize("name", ["v13", "v19"])
def test_real_files_in_all_their_syntaxes_have_the_same_pixels(name: str) -> None:
    """One image in six or eight files: every frame of each is equal.

    One of v19 has 128 bytes too many: two rows of zeros, or an image of other columns? Nobody
    can tell, so it is broken. One of v13 lacks only the mark of its end, and nothing else.
    """
    (series,) = a_real_series(name)[0]
    broken, first = [], None
    for instance in series.instances:
        header = read_header(instance.path)
        frames = [plan_pixels(frame) for frame in frames_of(header)]
        out = np.zeros((len(frames), frames[0].rows, frames[0].columns), dtype=np.int16)
        reader = PixelReader()
        try:
            for number, task in enumerate(frames):
                reader.read(task, out[number])
        except BrokenPixelData:
            broken.append(instance.path.name)
            continue
        finally:
            reader.close()
        first = out if first is None else first
        np.testing.assert_array_equal(out, first)
    assert broken == ([] if name == "v13" else ["MR_small_padded.dcm"])
