"""What may be done to a series that is not one regular volume.

In: what the pipeline's contract allows, and what the site's settings allow. Out: an
`Allowance`. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from dicom_gateway.config import AssemblySettings
from dicom_gateway.records import Contract


@dataclass(frozen=True, slots=True)
class Allowance:
    """The default allows nothing: such a series is refused by name.

    Attributes:
        resample: Tilted or unevenly spaced stacks may be put onto a regular grid.
        split: A series of several volumes may be taken apart.
        max_gap_mm: A wider gap is never filled.
        max_tilt_degrees: A stack that leans by more isn't straightened.
    """

    resample: bool = False
    split: bool = False
    max_gap_mm: float = 10.0
    max_tilt_degrees: float = 35.0


def allowance(contract: Contract, settings: AssemblySettings) -> Allowance:
    """What both allow; where the contract says nothing, what the site says."""
    site = settings.irregular.get(contract.pipeline)
    if contract.irregular is None:
        allowed = set(site or ())
    else:
        allowed = set(contract.irregular)
        if site is not None:
            allowed &= set(site)
    return Allowance(
        resample="resample" in allowed,
        split="split" in allowed,
        max_gap_mm=settings.max_gap_mm,
        max_tilt_degrees=settings.max_tilt_degrees,
    )
