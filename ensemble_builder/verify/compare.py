"""How far two results agree: counted, never judged by eye."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_builder.errors import ParityError
from ensemble_builder.verify.monai import Stages


@dataclass(frozen=True, slots=True)
class Parity:
    """How far two label maps agree.

    Attributes:
        voxels: How many voxels were compared.
        different: How many of them differ.
        dice: Label -> Dice coefficient, for each label that either side has.
    """

    voxels: int
    different: int
    dice: dict[int, float]

    @property
    def agreement(self) -> float:
        """Part of the voxels that are equal, 0..1."""
        return 1.0 - self.different / self.voxels


@dataclass(frozen=True, slots=True)
class StageParity:
    """One tensor of one stage, MONAI's beside Triton's.

    Attributes:
        shape: Of both.
        largest_difference: Of any two elements.
        different: How many elements differ.
        affine_difference_mm: Largest of any two elements of the affine; None without one.
        labels: Labels that MONAI gave; empty for anything but label maps.
        worst_dice: Of any label; None for anything but label maps.
    """

    stage: str
    tensor: str
    shape: tuple[int, ...]
    elements: int
    different: int
    largest_difference: float
    affine_difference_mm: float | None = None
    labels: tuple[int, ...] = ()
    worst_dice: float | None = None

    @property
    def agreement(self) -> float:
        """Part of the elements that are equal, 0..1."""
        return 1.0 - self.different / max(self.elements, 1)


def compare(expected: NDArray[Any], actual: NDArray[Any]) -> Parity:
    """Counts the voxels that differ.

    Raises:
        ParityError: the two masks don't even have the same shape.
    """
    if expected.shape != actual.shape:
        msg = f"served {list(actual.shape)}, MONAI gives {list(expected.shape)}"
        raise ParityError(msg)
    labels = sorted((set(np.unique(expected)) | set(np.unique(actual))) - {0})
    return Parity(
        voxels=expected.size,
        different=int(np.count_nonzero(expected != actual)),
        dice={int(label): dice(expected == label, actual == label) for label in labels},
    )


def compare_stages(expected: Stages, actual: Stages) -> tuple[StageParity, ...]:
    """Every stage's tensors, in the order of the steps.

    Where the inferer step already does a part of the postprocessing (its Y is labels), Y is
    left out: the outputs say the same.

    Raises:
        ParityError: two tensors don't have the same shape.
    """
    affine = None
    if expected.x_affine is not None and actual.x_affine is not None:
        affine = float(np.abs(expected.x_affine - actual.x_affine).max())
    found = [compare_tensor("preprocess", "X", expected.x, actual.x, affine)]
    if (expected.y.shape, expected.y.dtype.kind) == (actual.y.shape, actual.y.dtype.kind):
        found.append(compare_tensor("inferer", "Y", expected.y, actual.y))
    for name, value in expected.outputs.items():
        found.append(compare_tensor("postprocess", name, value, actual.outputs[name]))
    return tuple(found)


def compare_tensor(
    stage: str,
    tensor: str,
    expected: NDArray[Any],
    actual: NDArray[Any],
    affine: float | None = None,
) -> StageParity:
    """One tensor's figures.

    Raises:
        ParityError: the two don't have the same shape.
    """
    if expected.shape != actual.shape:
        msg = f"{stage}: {tensor} is {list(actual.shape)}, MONAI gives {list(expected.shape)}"
        raise ParityError(msg)
    unequal = expected != actual
    if expected.dtype.kind == "f":
        unequal &= ~(np.isnan(expected) & np.isnan(actual))  # the same nothing
    different = int(np.count_nonzero(unequal))
    largest = 0.0
    if different:
        distances = np.abs(expected[unequal].astype(np.float64) - actual[unequal])
        largest = float(np.where(np.isnan(distances), np.inf, distances).max())
    labels: tuple[int, ...] = ()
    worst = None
    if expected.dtype.kind == "u":
        parity = compare(expected, actual)
        labels = tuple(int(one) for one in np.unique(expected))
        worst = min(parity.dice.values(), default=1.0)
    return StageParity(
        stage, tensor, expected.shape, expected.size, different, largest, affine, labels, worst
    )


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Dice's coefficient of two masks; 1 when both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2.0 * int((a & b).sum()) / total if total else 1.0
