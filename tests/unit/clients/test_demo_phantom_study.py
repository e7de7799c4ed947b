"""The phantom as a DICOM study."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from clients.demo.phantom_study import PhantomStudy, write_phantom_study
from clients.demo.reading import read_source
from dicom_gateway.assemble.geometry import arrange
from dicom_gateway.assemble.headers import read_header
from tests.support.peers import dciodvfy

SHAPE = (12, 96, 96)
SPACING_MM = (24.0, 4.0, 4.0)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> PhantomStudy:
    """A coarse phantom: quick to make, and lungs all the same."""
    folder = tmp_path_factory.mktemp("phantom")
    return write_phantom_study(folder, shape_kji=SHAPE, spacing_mm=SPACING_MM)


def test_every_instance_is_a_valid_ct_image(phantom: PhantomStudy) -> None:
    """Dciodvfy finds no error in the first, a middle and the last one."""
    assert len(phantom.files) == SHAPE[0]
    for path in (phantom.files[0], phantom.files[5], phantom.files[-1]):
        assert dciodvfy(path) == []


def test_nobody_is_named(phantom: PhantomStudy) -> None:
    """The patient is a phantom, and says so."""
    ds = dcmread(phantom.files[0])
    assert ds.PatientName == "PHANTOM^CHEST"
    assert ds.PatientIdentityRemoved == "YES"


def test_it_is_a_regular_volume_to_the_gateway(phantom: PhantomStudy) -> None:
    """The gateway's own geometry finds the phantom's affine in the headers."""
    geometry = arrange([read_header(path) for path in phantom.files])
    np.testing.assert_allclose(geometry.affine_lps, phantom.affine_lps, atol=1e-6)


def test_the_left_lung_is_on_the_patients_left(phantom: PhantomStudy) -> None:
    """In LPS, x grows to the patient's left; both lungs are dark where the truth says lung."""
    source = read_source(phantom.files, phantom.series_instance_uid)
    centres_mm = {}
    for label in (1, 2):
        where = phantom.labels == label
        assert source.hu[where].mean() < -600
        ijk = [index.mean() for index in where.nonzero()[::-1]]
        centres_mm[label] = float((source.affine_lps @ [*ijk, 1.0])[0])
    assert centres_mm[1] > 30.0
    assert centres_mm[2] < -30.0


def test_the_same_seed_gives_the_same_bytes(phantom: PhantomStudy, tmp_path: Path) -> None:
    """A second run writes the same objects; another seed writes others."""
    again = write_phantom_study(tmp_path / "again", shape_kji=SHAPE, spacing_mm=SPACING_MM)
    assert [p.read_bytes() for p in again.files] == [p.read_bytes() for p in phantom.files]
    other = write_phantom_study(tmp_path / "other", seed=8, shape_kji=SHAPE, spacing_mm=SPACING_MM)
    assert other.series_instance_uid != phantom.series_instance_uid
