"""Whether images that a pipeline takes together show the same place, voxel by voxel.

In: planned volumes of several series. Out: nothing, or a refusal by name. Networks of several
images (MR contrasts, say) add voxel to voxel: on different grids they would compare different
tissue, and nobody would see it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dicom_gateway.assemble.plan import VolumePlan
from dicom_gateway.errors import UnusableSeries

TOLERANCE_VOXELS = 0.1
"""How far apart, in voxels of the first, the corners of two grids may lie: what rounding in the
headers of one scanner's series comes to, and far less than what a network could notice."""

_REMEDY = (
    "send series that were registered and resampled onto one grid, or let the rule's conditions "
    "choose others"
)


def check_same_grid(plans: Mapping[str, VolumePlan]) -> None:
    """Checks that all lie on the first one's grid.

    Args:
        plans: Role -> its volume.

    Raises:
        UnusableSeries: (different_grids) one has another shape, frame of reference or place;
            (mixed_identity) is another patient's.
    """
    (first_role, first), *others = plans.items()
    for role, other in others:
        if first.frames[0].header.patient_id != other.frames[0].header.patient_id:
            msg = (
                f"the series of the roles {first_role} and {role} have different Patient IDs in "
                "one study; whoever sent them must correct that, and send them again"
            )
            raise UnusableSeries(msg, code="mixed_identity")
        if other.shape_kji != first.shape_kji:
            sizes = [" x ".join(str(n) for n in one.shape_kji) for one in (first, other)]
            _refuse(first_role, role, f"{sizes[0]} and {sizes[1]} voxels")
        frames = [one.frames[0].header.frame_of_reference_uid for one in (first, other)]
        if None not in frames and frames[0] != frames[1]:
            _refuse(first_role, role, "different Frame of Reference UIDs")
        apart = _corners_apart(first, other)
        if apart > TOLERANCE_VOXELS:
            _refuse(first_role, role, f"corners that lie {apart:.1f} voxels apart")


def _corners_apart(first: VolumePlan, other: VolumePlan) -> float:
    k, j, i = first.shape_kji
    ends = np.array(np.meshgrid([0, i - 1], [0, j - 1], [0, k - 1], [1], indexing="ij"))
    corners = ends.reshape(4, -1)
    between = np.linalg.inv(first.affine_lps) @ (other.affine_lps @ corners)
    return float(np.abs(between[:3] - corners[:3]).max())


def _refuse(first: str, role: str, what: str) -> None:
    msg = f"the series of the roles {first} and {role} lie on different grids ({what}); {_REMEDY}"
    raise UnusableSeries(msg, code="different_grids")
