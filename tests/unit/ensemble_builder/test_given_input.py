"""What a person gives to `tritome verify`, and what a pipeline takes."""

from __future__ import annotations

import numpy as np
import pytest

from ensemble_builder.bundle import Options
from ensemble_builder.errors import BundleError, ParityError
from ensemble_builder.runtime.inputs import Input
from ensemble_builder.verify.run import verify_bundle
from ensemble_builder.verify.source import fitting
from tests.support.volumes import an_oblique_volume

REQUEST = an_oblique_volume((4, 5, 6)).request()


def test_a_volume_is_given_in_the_datatype_that_is_taken() -> None:
    """One that also takes floating point pixels takes integers as such."""
    floats = fitting(REQUEST, (Input("image", "IMAGE", "volume", datatype="FP32"),), "p")
    assert floats["IMAGE"].dtype == np.float32
    assert np.array_equal(floats["IMAGE"], REQUEST["IMAGE"])
    assert fitting(REQUEST, (Input("image", "IMAGE", "volume"),), "p")["IMAGE"].dtype == np.int16


@pytest.mark.parametrize(
    ("inputs", "takes"),
    [
        ((Input("image", "IMAGE", "gray"),), r"image \(gray\)"),
        ((Input("image", "IMAGE", "channels", 4),), r"image \(channels\)"),
        ((Input("t1", "T1", "volume"), Input("t2", "T2", "volume")), r"t1 \(volume\), t2 "),
    ],
)
def test_what_a_pipeline_doesn_t_take_is_refused(inputs: tuple[Input, ...], takes: str) -> None:
    """One volume is none of several images, and no radiograph."""
    with pytest.raises(ParityError, match=rf"'p' takes {takes}.*leave --input away"):
        fitting(REQUEST, inputs, "p")


def test_a_runtime_that_is_none_is_refused_before_a_server_starts() -> None:
    """A model that doesn't load would be all that is seen of it."""
    with pytest.raises(BundleError, match="runtime 'openvinoo' is not one of"):
        verify_bundle("lung_ct", Options(), ["openvinoo"])
