"""What the demo concludes: checks on the received SEG, and report.json.

In: source, received SEG, the phantom's truth where it is known. Out: checks that passed or
did not, and one JSON document with times, millilitres and checks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clients.demo.phantom_study import LUNGS
from clients.demo.reading import ReceivedSegmentation, SegmentOnSource, SourceVolume

POSITION_TOLERANCE_MM = 0.001
"""How far a frame of the SEG may lie from its source slice."""

DICE_AT_LEAST = 0.9
"""What the phantom's lungs must reach; far below it something is turned or shifted."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must be true of a result."""

    what: str
    passed: bool
    detail: str


def judge(
    received: ReceivedSegmentation,
    source: SourceVolume,
    truth: NDArray[np.uint8] | None,
) -> list[Check]:
    """All checks that make sense for this result.

    Args:
        received: Laid on its source.
        source: The study that was sent.
        truth: uint8 [K, J, I] labels of the phantom; None for a real study.
    """
    checks = [
        Check(
            "each frame lies on its source slice",
            received.worst_offset_mm <= POSITION_TOLERANCE_MM,
            f"{received.frames} frames, at most {received.worst_offset_mm:.4f} mm off",
        ),
        Check(
            "each frame refers to the slice it lies on",
            received.misreferenced_frames == 0,
            f"{received.misreferenced_frames} of {received.frames} refer to another",
        ),
        Check(
            "no segment is empty",
            all(segment.mask.any() for segment in received.segments),
            ", ".join(
                f"{s.name} {s.mask.sum() * source.voxel_ml:,.0f} ml" for s in received.segments
            ),
        ),
    ]
    sides = {s.side: _centre_x_mm(s, source) for s in received.segments if s.mask.any()}
    if "left" in sides and "right" in sides:
        apart_mm = sides["left"] - sides["right"]
        checks.append(
            Check(
                "the left lung is on the patient's left",
                apart_mm > 0,
                f"its centre is {apart_mm:+.0f} mm to the left of the right one's",
            )
        )
    if truth is not None:
        for name, dice in dice_per_lung(received.segments, truth).items():
            checks.append(
                Check(f"{name} agrees with the phantom", dice >= DICE_AT_LEAST, f"Dice {dice:.4f}")
            )
    return checks


def dice_per_lung(
    segments: Sequence[SegmentOnSource], truth: NDArray[np.uint8]
) -> dict[str, float]:
    """Dice overlap of each lung that the phantom knows, by the segment's side."""
    by_side = {segment.side: segment for segment in segments}
    found = {}
    for label, name in LUNGS.items():
        segment = by_side.get(name.split()[0].lower())
        if segment is not None:
            real = truth == label
            both = int((segment.mask & real).sum())
            found[name] = 2.0 * both / max(1, int(segment.mask.sum()) + int(real.sum()))
    return found


def write_report(
    path: Path,
    *,
    stages: Mapping[str, float],
    received: ReceivedSegmentation,
    source: SourceVolume,
    checks: Sequence[Check],
    truth: NDArray[np.uint8] | None,
    instances: int,
) -> None:
    """Writes report.json: what happened, in numbers."""
    document = {
        "study": {
            "instances_sent": instances,
            "series_instance_uid": source.series_instance_uid,
            "shape_kji": list(source.hu.shape),
        },
        "machine": {"cpu_cores": len(os.sched_getaffinity(0))},
        "seconds": dict(stages),
        "segmentation": {
            "sop_instance_uid": received.sop_instance_uid,
            "frames": received.frames,
            "segments": [
                {
                    "number": segment.number,
                    "name": segment.name,
                    "ml": float(segment.mask.sum()) * source.voxel_ml,
                    "colour_rgb": list(segment.colour_rgb),
                }
                for segment in received.segments
            ],
        },
        "dice": None if truth is None else dice_per_lung(received.segments, truth),
        "checks": [asdict(check) for check in checks],
    }
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _centre_x_mm(segment: SegmentOnSource, source: SourceVolume) -> float:
    """X of the centre of mass in LPS: greater is further to the patient's left."""
    centre_ijk = [float(index.mean()) for index in segment.mask.nonzero()[::-1]]
    return float((source.affine_lps @ [*centre_ijk, 1.0])[0])
