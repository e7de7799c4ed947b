"""The network as a Triton model of its own, on a real server, against the network in process."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import rmtree

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from numpy.typing import NDArray

from ensemble_builder.build import build
from ensemble_builder.bundle import Options, read_bundle
from ensemble_builder.runtime.weights import network_with_weights
from ensemble_builder.server import TritonServer
from tests.support.bundles import a_segmentation_bundle
from tests.support.patience import until

pytestmark = [
    pytest.mark.system,
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
]
WINDOWS_OF_ONE_STUDY = 6
"""A study of 64x48x32 voxels under windows of 32 that overlap by half."""
INFERER = {
    "_target_": "SlidingWindowInferer",
    "roi_size": [32, 32, 32],
    "sw_batch_size": WINDOWS_OF_ONE_STUDY,
    "overlap": 0.5,
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose inferer gives all windows of a study at once."""
    folder = tmp_path_factory.mktemp("bundles")
    return a_segmentation_bundle(folder / "bundle", changed={"inferer": INFERER})


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """Only the two models that this is about; the ensemble around them is another test's."""
    folder = tmp_path_factory.mktemp("network_model")
    repository = folder / "repository"
    list(build(bundle, repository, Options(runtime="torch", network_backend="python", name="own")))
    for model in ("own", "own_preprocess", "own_postprocess"):
        rmtree(repository / model)
    with TritonServer(repository, log=folder / "triton.log", watch=False) as found:
        yield found


def _a_study(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(1, 64, 48, 32)).astype(np.float32)


def _in_process(bundle: Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """What MONAI's inferer and the eager network give in this process."""
    recipe = read_bundle(bundle).recipe
    parsed = recipe.open(bundle, torch.device("cpu"))
    network = network_with_weights(parsed, recipe.network_id, recipe.weights, bundle)
    with torch.inference_mode():
        y: NDArray[np.float32] = parsed.inferer()(torch.from_numpy(x)[None], network)[0].numpy()
    return y


def _served(server: TritonServer, x: NDArray[np.float32]) -> NDArray[np.float32]:
    client = triton.InferenceServerClient(server.grpc_url)
    try:
        tensor = triton.InferInput("X", x.shape, "FP32")
        tensor.set_data_from_numpy(x)
        y: NDArray[np.float32] = client.infer("own_inferer", [tensor]).as_numpy("Y")
    finally:
        client.close()
    return y


def _batches(server: TritonServer) -> dict[int, int]:
    """Size of a batch of the network's model -> how often it ran."""
    client = triton.InferenceServerClient(server.grpc_url)
    try:
        (found,) = client.get_inference_statistics("own_network").model_stats
    finally:
        client.close()
    return {int(one.batch_size): int(one.compute_infer.count) for one in found.batch_stats}


def _windows(batches: dict[int, int]) -> int:
    return sum(size * count for size, count in batches.items())


def test_it_gives_what_the_network_gives_in_process(server: TritonServer, bundle: Path) -> None:
    """To the last digits of float32, and each window is asked for once."""
    before = _windows(_batches(server))
    served, expected = _served(server, _a_study(1)), _in_process(bundle, _a_study(1))
    np.testing.assert_allclose(served, expected, atol=1e-5)
    np.testing.assert_array_equal(served.argmax(0), expected.argmax(0))
    assert _windows(_batches(server)) - before == WINDOWS_OF_ONE_STUDY


def test_windows_of_two_studies_merge_into_one_batch(server: TritonServer, bundle: Path) -> None:
    """Triton counts batches with more windows than one study has; the results stay apart."""
    expected = {seed: _in_process(bundle, _a_study(seed)) for seed in (1, 2)}

    def both_at_once() -> bool:
        with ThreadPoolExecutor(2) as pool:
            found = pool.map(lambda seed: _served(server, _a_study(seed)), (1, 2))
            for seed, y in zip((1, 2), found, strict=True):
                np.testing.assert_allclose(y, expected[seed], atol=1e-5)
        return max(_batches(server)) > WINDOWS_OF_ONE_STUDY

    until(both_at_once, timeout_s=120)
    batches = _batches(server)
    assert sum(batches.values()) < _windows(batches)
