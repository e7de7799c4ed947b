"""Which volumes a series holds, and how each comes to be; nothing is decoded yet.

In: the headers of a series, and what may be done to it. Out: a `VolumePlan` for each volume,
the same ones in the same order however the instances came, or a refusal by name. Nothing is
written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicom_gateway.assemble.frames import Frame, frames_of
from dicom_gateway.assemble.geometry import Stack, irregularity, regular, stack_frames
from dicom_gateway.assemble.headers import Header, read_header
from dicom_gateway.assemble.pixels import PixelTask, plan_pixels
from dicom_gateway.assemble.policy import Allowance
from dicom_gateway.assemble.resample import Grid, plan_grid
from dicom_gateway.assemble.split import (
    has_several_stacks,
    interleaved_by,
    localizers_among,
    split,
)
from dicom_gateway.errors import UnusableSeries
from dicom_gateway.records import Series

NOTHING_ALLOWED = Allowance()

_SEVERAL = frozenset({"several_orientations", "duplicate_positions", "mixed_geometry"})
"""What splitting can mend."""

LARGEST_FRAMES = 200_000
"""More frames in one series are a damaged or hostile one."""


@dataclass(frozen=True, slots=True)
class VolumePlan:
    """One volume to be.

    Attributes:
        name: Which of its series' volumes; "" where that has one.
        frames: Source frames, sorted along the normal.
        tasks: How each is decoded.
        affine_lps: float64 [4, 4] of the volume: (i, j, k, 1) -> LPS millimetres.
        grid: Where the frames are no regular volume: the grid they are put onto.
        invert: The smallest stored value is shown white and the pipeline wants black.
        notes: What a person should know.
    """

    name: str
    frames: tuple[Frame, ...]
    tasks: tuple[PixelTask, ...]
    affine_lps: NDArray[np.float64]
    grid: Grid | None = None
    invert: bool = False
    notes: tuple[str, ...] = ()

    @property
    def shape_kji(self) -> tuple[int, int, int]:
        """Of the volume."""
        if self.grid is not None:
            return self.grid.shape_kji
        return len(self.tasks), self.tasks[0].rows, self.tasks[0].columns

    @property
    def is_floating(self) -> bool:
        """Its values are floating point numbers."""
        return self.tasks[0].floating

    @property
    def voxels(self) -> int:
        """K * J * I."""
        slices, rows, columns = self.shape_kji
        return slices * rows * columns


def plan_volumes(
    series: Series,
    allowed: Allowance = NOTHING_ALLOWED,
    read: Callable[[Path], Header] = read_header,
) -> tuple[VolumePlan, ...]:
    """Finds the volumes of a series.

    Args:
        series: Complete, as far as `completeness` can tell.
        allowed: What may be done to one that is not one regular volume.
        read: Gives a header by path; a caller that has read them already passes its cache.

    Raises:
        UnusableSeries: no volume, or none that is allowed; the code says in what way, and
            the sentence which volume it is, where there are several.
    """
    frames = [frame for header in _headers(series, read) for frame in frames_of(header)]
    if len(frames) > LARGEST_FRAMES:
        msg = f"the series has {len(frames)} frames, more than any true one; send it in parts"
        raise UnusableSeries(msg, code="unsupported_object")
    try:
        _refuse_localizers(frames)
        stack = stack_frames(frames)
        is_regular = irregularity(stack) is None
        by_stack = not is_regular and has_several_stacks(frames)
        told = "" if is_regular else interleaved_by(frames)
        if not (by_stack or told):
            return (_plan("", stack, allowed, ()),)
        msg = (
            "the series has several stacks (Stack ID) that lie apart; send each as its own series"
            if by_stack
            else f"slices of several volumes ({told}) lie between each other; send each volume as "
            "its own series"
        )
        several = UnusableSeries(msg, code="mixed_geometry")
    except UnusableSeries as error:
        if error.code not in _SEVERAL:
            raise
        by_stack, several = False, error
    if not allowed.split:
        msg = (
            f"{several}, or let the pipeline take such series apart (its contract, or "
            "assembly.irregular in gateway.yaml)"
        )
        raise UnusableSeries(msg, code=several.code) from several
    parts, notes = split(frames, by_stack=by_stack)
    return tuple(
        _named(part.name, part.frames, allowed, notes, several=len(parts) > 1) for part in parts
    )


def plan_images(
    series: Series, read: Callable[[Path], Header] = read_header
) -> tuple[VolumePlan, ...]:
    """Takes every frame of a series as a picture of its own, for pipelines of the kind `image`.

    A picture that is to be shown inverted (MONOCHROME1, or by its Presentation LUT Shape) is
    inverted, as a person would see it.

    Raises:
        UnusableSeries: as `plan_pixels` does.
    """
    headers = sorted(
        _headers(series, read), key=lambda one: (one.instance_number, one.sop_instance_uid)
    )
    frames = [frame for header in headers for frame in frames_of(header)]
    plans = []
    for number, frame in enumerate(frames, start=1):
        header = frame.header
        spacing = frame.pixel_spacing_mm or header.imager_pixel_spacing_mm
        if spacing is None or min(spacing) <= 0:
            spacing = (1.0, 1.0)
        affine = np.diag([spacing[1], spacing[0], 1.0, 1.0])
        view = f" ({header.view_position})" if header.view_position.isalnum() else ""
        name = f"image {number} of {len(frames)}{view}" if len(frames) > 1 else ""
        invert = header.is_inverted and not header.float_bits
        notes = ("small values are to be shown white (MONOCHROME1), so it was inverted",)
        plans.append(
            VolumePlan(
                name=name,
                frames=(frame,),
                tasks=(plan_pixels(frame),),
                affine_lps=affine,
                invert=invert,
                notes=notes if invert else (),
            )
        )
    return tuple(plans)


def _headers(series: Series, read: Callable[[Path], Header]) -> list[Header]:
    usable = [instance for instance in series.instances if not instance.conflicts]
    if not usable:
        msg = "the series has no usable instance; send it again"
        raise UnusableSeries(msg, code="no_pixel_data")
    headers = [read(instance.path) for instance in usable]
    _refuse_several_patients(headers)
    return headers


def _refuse_several_patients(headers: Sequence[Header]) -> None:
    whose = Counter((header.study_instance_uid, header.patient_id) for header in headers)
    if len(whose) > 1:
        counts = " and ".join(str(count) for count in sorted(whose.values(), reverse=True)[:4])
        what = "patients" if len({patient for _, patient in whose}) > 1 else "studies"
        msg = (
            f"images of {len(whose)} {what} came under one Series Instance UID ({counts} images); "
            "whoever sent them must correct the UIDs or the Patient ID, and send the series again"
        )
        raise UnusableSeries(msg, code="mixed_identity")


def _refuse_localizers(frames: Sequence[Frame]) -> None:
    """One that lies in a row with the slices would be taken for one."""
    found = localizers_among(frames)
    if found:
        msg = (
            f"the series has {len(found)} localizer image(s) among its cross-sections; send "
            "localizers as a series of their own"
        )
        raise UnusableSeries(msg, code="several_orientations")


def _named(
    name: str,
    frames: Sequence[Frame],
    allowed: Allowance,
    notes: tuple[str, ...],
    *,
    several: bool,
) -> VolumePlan:
    try:
        return _plan(name, stack_frames(frames), allowed, notes)
    except UnusableSeries as error:
        if not several:
            raise
        msg = f"of its volumes, '{name}' can't be used: {error}"
        raise UnusableSeries(msg, code=error.code) from error


def _plan(name: str, stack: Stack, allowed: Allowance, notes: tuple[str, ...]) -> VolumePlan:
    grid = None
    affine = regular(stack).affine_lps
    irregular = irregularity(stack)
    if irregular is not None:
        if not allowed.resample:
            raise irregular
        grid = plan_grid(stack, allowed, irregular)
        affine, notes = grid.affine_lps, (*notes, grid.resampling.method)
    return VolumePlan(
        name=name,
        frames=stack.frames,
        tasks=tuple(plan_pixels(frame) for frame in stack.frames),
        affine_lps=affine,
        grid=grid,
        notes=notes,
    )
