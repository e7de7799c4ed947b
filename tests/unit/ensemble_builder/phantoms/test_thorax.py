import numpy as np
import pytest

from ensemble_builder.phantoms import Acquisition, Patient, random_phantom, thorax_phantom
from ensemble_builder.phantoms.canvas import Structure

SMALL = {"shape_kji": (40, 96, 96), "spacing_mm": (8.0, 4.0, 4.0)}


@pytest.fixture(scope="module")
def phantom():
    """A coarse phantom of a standard adult."""
    return thorax_phantom(3, **SMALL)


def centroid_lps(phantom, label):
    """Centre of one label in LPS mm."""
    k, j, i = (axis.mean() for axis in np.nonzero(phantom.labels == label))
    return (phantom.affine_lps @ (i, j, k, 1.0))[:3]


def test_same_seed_gives_the_same_phantom(phantom):
    """The same seed gives the same voxels, labels and geometry."""
    again = thorax_phantom(3, **SMALL)
    assert np.array_equal(phantom.hu, again.hu)
    assert np.array_equal(phantom.labels, again.labels)
    assert np.array_equal(phantom.affine_lps, again.affine_lps)


def test_another_seed_gives_another_phantom(phantom):
    """Another seed gives other voxels."""
    assert not np.array_equal(phantom.hu, thorax_phantom(4, **SMALL).hu)


def test_types_and_shapes_are_as_promised(phantom):
    """HU are int16, labels uint8 with both lungs, both on the grid asked for."""
    assert (40, 96, 96) == phantom.hu.shape == phantom.labels.shape
    assert (np.int16, np.uint8, np.float64) == (
        phantom.hu.dtype,
        phantom.labels.dtype,
        phantom.affine_lps.dtype,
    )
    assert sorted(np.unique(phantom.labels)) == [0, 1, 2]
    assert pytest.approx(phantom.spacing_mm) == (8.0, 4.0, 4.0)


@pytest.mark.parametrize("flips", [(False, False, False), (True, False, True), (True, True, True)])
def test_left_lung_is_on_the_patients_left(flips):
    """However the axes run, the left lung's centre has the larger LPS x."""
    phantom = thorax_phantom(5, flip_kji=flips, **SMALL)
    assert centroid_lps(phantom, 1)[0] > 20
    assert centroid_lps(phantom, 2)[0] < -20


def test_flipping_moves_no_anatomy():
    """A flipped phantom has every voxel at the same place in the patient."""
    plain, flipped = (thorax_phantom(6, flip_kji=(f, f, f), **SMALL) for f in (False, True))
    assert np.array_equal(plain.hu, flipped.hu[::-1, ::-1, ::-1])
    first = plain.affine_lps @ (0, 0, 0, 1)
    assert np.allclose(first, flipped.affine_lps @ (95, 95, 39, 1))


def test_lungs_are_air_and_the_rest_has_other_air(phantom):
    """Lung tissue is dark, of a plausible size, and there is air that is no lung."""
    lung = phantom.labels > 0
    voxel_ml = 8.0 * 4.0 * 4.0 / 1000
    assert np.median(phantom.hu[lung]) < -700
    assert 1500 < lung.sum() * voxel_ml < 8000
    assert (phantom.hu[~lung] < -900).sum() > lung.sum()


def test_the_windpipe_is_no_lung(phantom):
    """Above the carina there is enclosed air near the midline that has no label."""
    middle = phantom.hu[28, 40:64, 44:52]
    assert (middle[phantom.labels[28, 40:64, 44:52] == 0] < -500).any()


def test_structures_are_made_of_what_they_should_be(phantom):
    """Airways are air, the spine is dense, heart and aorta are soft; none of them is lung."""
    hu = {s: phantom.hu[phantom.structures == s] for s in Structure if s is not Structure.NONE}
    assert np.median(hu[Structure.AIRWAYS]) < -700
    assert np.median(hu[Structure.SPINE]) > 130
    assert all(0 < np.median(hu[s]) < 250 for s in (Structure.HEART, Structure.AORTA))
    # A thick slice may be half heart and half lung, and is both then.
    both = (phantom.structures > 0) & (phantom.labels > 0)
    assert both.sum() < 0.01 * (phantom.structures > 0).sum()


def test_flipping_keeps_structures_with_their_voxels():
    """Image, lung labels and structures are stored in the same order."""
    plain, flipped = (thorax_phantom(6, flip_kji=(f, f, f), **SMALL) for f in (False, True))
    assert np.array_equal(plain.structures, flipped.structures[::-1, ::-1, ::-1])


def test_padding_fills_the_corners():
    """Outside a circular field of view every voxel has the padding value."""
    phantom = thorax_phantom(7, acquisition=Acquisition(pad_hu=-3024), **SMALL)
    assert {-3024} == set(phantom.hu[:, 0, 0])
    assert phantom.hu[:, 48, 48].min() > -1100


def test_effusion_takes_lung_away():
    """Fluid on the left makes the left lung's label smaller and leaves the right one."""
    dry = thorax_phantom(8, **SMALL)
    wet = thorax_phantom(8, patient=Patient(effusion=(100.0, 0.0)), **SMALL)
    assert (wet.labels == 1).sum() < 0.9 * (dry.labels == 1).sum()
    assert (wet.labels == 2).sum() == (dry.labels == 2).sum()


def test_random_phantoms_differ_in_grid():
    """Random phantoms draw their own slice spacing and field of view."""
    grids = {random_phantom(seed, voxel_mm=6.0).spacing_mm for seed in range(4)}
    assert len(grids) == 4


@pytest.mark.parametrize("shape, spacing", [((0, 8, 8), (1, 1, 1)), ((8, 8, 8), (1, -1, 1))])
def test_impossible_grids_are_refused(shape, spacing):
    """A grid without voxels or with a negative spacing is refused."""
    with pytest.raises(ValueError, match="positive"):
        thorax_phantom(1, shape_kji=shape, spacing_mm=spacing)
