"""What the rules may ask about a series.

In: a series, a glance at each of its instances, and the header of the one that speaks for it.
Out: `SeriesFacts`. The order in which its instances came makes no difference. Nothing is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import uid
from pydicom.dataset import Dataset

from dicom_gateway.config_routing import Plane
from dicom_gateway.records import Series
from dicom_gateway.route.tags import read_header, text_at, values_at

_ORIENTATION = 0x00200037
_THICKNESS = 0x00180050
_KERNEL = 0x00181210
_KERNEL_IN_GROUPS = 0x00189316
"""CT Reconstruction Sequence holds the kernel of enhanced CT."""

OBLIQUE_FROM_DEGREES = 25.0
"""A normal further than this from every axis is oblique. Head CTs along the orbitomeatal line
lean by up to 20 degrees and are called axial."""

_CROSS_SECTIONS = frozenset(
    (
        uid.CTImageStorage,
        uid.EnhancedCTImageStorage,
        uid.LegacyConvertedEnhancedCTImageStorage,
        uid.MRImageStorage,
        uid.EnhancedMRImageStorage,
        uid.LegacyConvertedEnhancedMRImageStorage,
        uid.PositronEmissionTomographyImageStorage,
        uid.EnhancedPETImageStorage,
        uid.LegacyConvertedEnhancedPETImageStorage,
        uid.NuclearMedicineImageStorage,
        uid.XRay3DAngiographicImageStorage,
        uid.XRay3DCraniofacialImageStorage,
        uid.BreastTomosynthesisImageStorage,
    )
)
"""Objects whose frames are cross-sections of one body (PS3.3 A): what a volume is made of."""

_PROJECTIONS = frozenset(
    (
        uid.ComputedRadiographyImageStorage,
        uid.DigitalXRayImageStorageForPresentation,
        uid.DigitalMammographyXRayImageStorageForPresentation,
    )
)
"""Objects that are one picture: for pipelines of the kind `image`."""

KINDS = {"volume": _CROSS_SECTIONS, "image": _PROJECTIONS}

ALIKE = {"DX": ("DX", "CR"), "CR": ("CR", "DX")}
"""Modalities of one kind of image: a radiograph, by detector or by storage plate."""


@dataclass(frozen=True, slots=True)
class Glance:
    """The little of one instance's header that is asked of every instance.

    Attributes:
        is_localizer: By Image Type.
        instance_number: 0 where there is none.
        frames: 1 for a single-frame instance.
    """

    is_localizer: bool = False
    instance_number: int = 0
    frames: int = 1


@dataclass(frozen=True, slots=True)
class SeriesFacts:
    """A series as the rules see it.

    Attributes:
        slices: Frames of all instances that are no localizers.
        localizers_only: Every instance is one.
        plane: None where the orientation is unknown.
        slice_thickness_mm: None where it isn't stated.
        kernel: Several values with backslashes between; "" for none.
        header: Of the instance that speaks for the series: the first by Instance Number and
            SOP Instance UID that is no localizer.
    """

    series: Series
    slices: int
    localizers_only: bool
    plane: Plane | None
    slice_thickness_mm: float | None
    kernel: str
    header: Dataset

    @property
    def classes(self) -> set[uid.UID]:
        """SOP Class UIDs of its instances."""
        return {uid.UID(instance.sop_class_uid) for instance in self.series.instances}

    @property
    def series_instance_uid(self) -> str:
        """Of the series."""
        return self.series.series_instance_uid


def gather_facts(
    series: Series,
    glance: Callable[[Path], Glance],
    read: Callable[[Path], Dataset] = read_header,
) -> SeriesFacts:
    """Looks at a series for the rules.

    Args:
        series: What has come of it.
        glance: At the header of one instance; of one that can't be read, an empty glance.
        read: A whole header without pixels; a caller that asks often passes a cached one.
    """
    looks = [(glance(instance.path), instance) for instance in series.instances]
    images = [look for look in looks if not look[0].is_localizer]
    ordered = sorted(
        images or looks, key=lambda look: (look[0].instance_number, look[1].sop_instance_uid)
    )
    header = Dataset()
    for _, instance in ordered:
        header = read(instance.path)
        if len(header):
            break
    return SeriesFacts(
        series=series,
        slices=sum(max(1, look.frames) for look, _ in images),
        localizers_only=bool(looks) and not images,
        plane=plane_of(_numbers(header, _ORIENTATION)),
        slice_thickness_mm=next(
            (mm for mm in _numbers(header, _THICKNESS) if math.isfinite(mm) and mm > 0), None
        ),
        kernel=text_at(header, _KERNEL) or text_at(header, _KERNEL_IN_GROUPS),
        header=header,
    )


def plane_of(orientation: Sequence[float]) -> Plane | None:
    """The plane of Image Orientation (Patient): by the axis its normal is nearest to.

    Source: PS3.3 C.7.6.2.1.1; the axes are LPS, so x is sagittal, y coronal, z axial.
    """
    if len(orientation) != 6 or not all(abs(cosine) <= 2 for cosine in orientation):
        return None
    (a, b, c), (d, e, f) = orientation[:3], orientation[3:]
    normal = (b * f - c * e, c * d - a * f, a * e - b * d)
    length = math.sqrt(sum(part * part for part in normal))
    if not 0.5 <= length <= 2:
        return None
    nearest = max(range(3), key=lambda axis: abs(normal[axis]))
    if abs(normal[nearest]) / length < math.cos(math.radians(OBLIQUE_FROM_DEGREES)):
        return Plane.OBLIQUE
    return (Plane.SAGITTAL, Plane.CORONAL, Plane.AXIAL)[nearest]


def _numbers(header: Dataset, tag: int) -> list[float]:
    found = []
    for value in values_at(header, (tag,)):
        try:
            found.append(float(value.text))
        except ValueError:
            return []
    return found
