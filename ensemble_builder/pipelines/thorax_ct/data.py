"""What the thorax network learns: the structures that a phantom has beside its lungs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ensemble_builder.phantoms import ThoraxPhantom
from ensemble_builder.phantoms.thorax import STRUCTURES
from ensemble_builder.pipelines.training.examples import Target


def _structures(phantom: ThoraxPhantom) -> NDArray[np.uint8]:
    return phantom.structures


THORAX = Target(_structures, mirrored=STRUCTURES)
"""1 heart, 2 aorta, 3 trachea and main bronchi, 4 spine; each is itself in a mirror."""

NAMES = ("heart", "aorta", "airways", "spine")
"""Of labels 1 to 4."""

AIRWAYS = 1 + NAMES.index("airways")
