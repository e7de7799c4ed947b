"""lung_ct as Triton serves it against MONAI in one process, on what it is made for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from ensemble_builder.build import build
from ensemble_builder.bundle import Options, find_bundle
from ensemble_builder.phantoms.thorax import thorax_phantom
from ensemble_builder.server import TritonServer
from ensemble_builder.verify import StoredVolume, compare, reference, served

pytestmark = [
    pytest.mark.system,
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
]
LEAST_AGREEMENT_OF_OPENVINO = 0.999


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """Both runtimes of the same bundle beside each other."""
    folder = tmp_path_factory.mktemp("repository")
    list(build("lung_ct", folder, Options(runtime="torch", instances=1, name="lung_ct_torch")))
    list(
        build("lung_ct", folder, Options(runtime="openvino", instances=1, name="lung_ct_openvino"))
    )
    log = tmp_path_factory.mktemp("log") / "triton.log"
    with TritonServer(folder, log=log, watch=False) as found:
        yield found


@pytest.fixture(scope="module")
def chest() -> StoredVolume:
    """A phantom that no training has seen."""
    phantom = thorax_phantom(9001, shape_kji=(60, 192, 192), spacing_mm=(5.0, 2.0, 2.0))
    rescale = np.tile([1.0, 0.0], (phantom.hu.shape[0], 1))
    return StoredVolume(phantom.hu, rescale, phantom.affine_lps)


@pytest.fixture(scope="module")
def expected(chest: StoredVolume) -> NDArray[np.uint8]:
    """What MONAI computes in this process."""
    mask = reference(find_bundle("lung_ct"), chest)
    assert set(np.unique(mask)) == {0, 1, 2}
    return mask


def test_torch_is_identical(
    server: TritonServer,
    chest: StoredVolume,
    expected: NDArray[np.uint8],
) -> None:
    """Voxel for voxel the same mask."""
    assert compare(expected, served(server.grpc_url, "lung_ct_torch", chest)).different == 0


def test_openvino_agrees(
    server: TritonServer,
    chest: StoredVolume,
    expected: NDArray[np.uint8],
) -> None:
    """At least 99.9 % of the voxels."""
    parity = compare(expected, served(server.grpc_url, "lung_ct_openvino", chest))
    assert parity.agreement >= LEAST_AGREEMENT_OF_OPENVINO
