"""Bundles of many shapes as Triton serves them against MONAI in one process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from ensemble_builder.bundle import Bundle, Options, read_bundle
from ensemble_builder.errors import ParityError
from ensemble_builder.plan import plan
from ensemble_builder.repository import write
from ensemble_builder.samples import sample
from ensemble_builder.server import TritonServer
from ensemble_builder.server.heartbeat import LOOPBACK_CHANNEL
from ensemble_builder.verify import Source, StageParity, compare_stages, monai_stages, served_stages
from ensemble_builder.verify.triton import ask
from tests.support import zoo

pytestmark = [
    pytest.mark.system,
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
    pytest.mark.filterwarnings("ignore::UserWarning:monai"),
]

MADE: tuple[Callable[[Path], Path], ...] = (
    zoo.a_photograph_bundle,
    zoo.a_radiograph_classifier,
    zoo.a_bundle_with_scripts,
    zoo.a_clicked_bundle,
    zoo.a_bundle_that_crops,
)
LARGEST_SCORE_DIFFERENCE = 1e-5


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Each of them read with random weights."""
    folder = tmp_path_factory.mktemp("bundles")
    options = Options(random_weights=0, runtime="torch", instances=1)
    return {make.__name__: read_bundle(make(folder / make.__name__), options) for make in MADE}


@pytest.fixture(scope="module")
def server(
    bundles: dict[str, Bundle], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """All of them in one repository."""
    repository = tmp_path_factory.mktemp("repository")
    for bundle in bundles.values():
        list(write(plan(bundle), repository))
    log = tmp_path_factory.mktemp("log") / "triton.log"
    with TritonServer(repository, log=log, watch=False) as found:
        yield found


def _parity(server: TritonServer, bundle: Bundle, seed: int) -> tuple[StageParity, ...]:
    request = sample(bundle.recipe.inputs, seed=seed)
    actual = served_stages(server.grpc_url, bundle.name, bundle.recipe, request)
    return compare_stages(monai_stages(Source.of(bundle), request), actual)


@pytest.mark.parametrize("made", [make.__name__ for make in MADE])
def test_what_is_served_is_what_monai_computes(
    server: TritonServer, bundles: dict[str, Bundle], made: str
) -> None:
    """Labels bit for bit, scores within 1e-5, the affine exactly, after each step."""
    stages = _parity(server, bundles[made], seed=int(os.environ.get("TRITOME_SEED", "1")))
    assert stages[0].affine_difference_mm in (0.0, None)
    for stage in stages:
        if stage.worst_dice is not None:
            assert stage.different == 0
            assert len(stage.labels) > 1, "a mask of one label proves nothing"
        else:
            assert stage.largest_difference <= LARGEST_SCORE_DIFFERENCE


def test_a_click_elsewhere_is_the_request_s_fault(
    server: TritonServer, bundles: dict[str, Bundle]
) -> None:
    """A point outside the volume is refused by name, and the next request goes through."""
    bundle = bundles["a_clicked_bundle"]
    request = sample(bundle.recipe.inputs)
    far = {**request, "CLICKS": np.array([[999, 0, 0]], dtype=np.int64)}

    with pytest.raises(ParityError, match="can't take this input"):
        ask(server.grpc_url, bundle.name, far)
    assert ask(server.grpc_url, bundle.name, request)["MASK"].shape == request["IMAGE"].shape


def test_the_same_bundle_gives_the_same_bytes(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    """Nothing that depends on the moment is written."""
    for name, bundle in bundles.items():
        again = read_bundle(bundle.folder, Options(random_weights=0, runtime="torch", instances=1))
        assert [one.files for one in plan(replace(again, name=bundle.name))] == [
            one.files for one in plan(bundle)
        ], name


EXAMPLES = int(os.environ.get("TRITOME_EXAMPLES", "2"))
"""How many drawn bundles; each loads three models of its own."""

_drawn = st.fixed_dictionaries(
    {
        "channels": st.integers(1, 3),
        "classes": st.integers(2, 6),
        "roi_size": st.lists(st.sampled_from([16, 24, 32]), min_size=3, max_size=3),
        "overlap": st.sampled_from([0.0, 0.25, 0.5, 0.7]),
        "mode": st.sampled_from(["constant", "gaussian"]),
        "axcodes": st.sampled_from(["RAS", "LPS", "PIR", "SAL", "ARI", "LIP"]),
        "spacing": st.lists(st.sampled_from([1.1, 1.5, 2.0, 3.3]), min_size=3, max_size=3),
        "resampling": st.sampled_from(["bilinear", "nearest"]),
        "geometry_first": st.booleans(),
        "activation_first": st.booleans(),
        "nearest": st.booleans(),
    }
)


@pytest.mark.timeout(450 * EXAMPLES)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],  # making a failure smaller would load models for an hour
)
@given(drawn=_drawn)
def test_whatever_is_changed_it_stays_equal(
    server: TritonServer, tmp_path_factory: pytest.TempPathFactory, drawn: dict[str, object]
) -> None:
    """Window, spacing, axes, order of transforms and channels drawn: labels bit-identical."""
    folder = zoo.a_variation(tmp_path_factory.mktemp("drawn") / "drawn", drawn)
    seed = int(drawn["classes"])  # type: ignore[call-overload]
    options = Options(random_weights=seed, runtime="torch", instances=1)
    bundle = read_bundle(folder, options)
    client = triton.InferenceServerClient(server.grpc_url, channel_args=LOOPBACK_CHANNEL)
    models = [model.name for model, _ in write(plan(bundle), server.model_repository, replace=True)]
    try:
        for model in models:
            client.load_model(model)
        stages = _parity(server, bundle, seed=3)
        for model in reversed(models):
            client.unload_model(model)
    finally:
        client.close()
    assert [stage.different for stage in stages if stage.stage != "inferer"] == [0, 0]
    assert stages[0].affine_difference_mm == 0.0
