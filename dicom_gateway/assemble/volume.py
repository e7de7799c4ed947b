"""A series becomes a `Volume` in the arena.

Stage: third of a job's. In: a complete `Series`. Out: a `Volume` whose voxels lie in shared
memory as Triton wants them: stored values, int16 [K, J, I]. What survives a crash: nothing;
the job is claimed again and assembles again.

All or nothing: whatever goes wrong, the span goes back and no half-written volume is left.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from dicom_gateway.assemble.arena import Arena
from dicom_gateway.assemble.decoders import DecoderPool
from dicom_gateway.assemble.geometry import arrange
from dicom_gateway.assemble.headers import Header, read_header
from dicom_gateway.assemble.pixels import plan_pixels
from dicom_gateway.errors import UnusableSeries
from dicom_gateway.records import Series, Slice, Volume


def assemble_volume(
    series: Series,
    arena: Arena,
    decoders: DecoderPool,
    read: Callable[[Path], Header] = read_header,
    check_room: Callable[[int], None] = lambda _voxels: None,
) -> Volume:
    """Sorts, checks and decodes a series into the arena.

    The caller owns `volume.image` and gives it back with `arena.free`.

    Args:
        series: Complete, as far as `completeness` can tell.
        arena: Where the voxels go.
        decoders: Who puts them there.
        read: Gives a header by path; a caller that has read them already passes its cache.
        check_room: Asked with the number of voxels before anything is decoded; raises where
            the volume and what comes back would not fit.

    Returns:
        The volume: image INT16 [K, J, I]; rescale float64 [K, 2], with the shift of
        unsigned 16-bit data folded into the intercept; affine float64 [4, 4].

    Raises:
        UnusableSeries: no regular volume; the code says in what way.
        BrokenPixelData: an instance that can't be decoded, or claims what isn't there.
        ArenaFull: no room just now.
        VolumeTooLarge: more than the arena has in all.
    """
    usable = [instance for instance in series.instances if not instance.conflicts]
    if not usable:
        msg = "the series has no usable instance; send it again"
        raise UnusableSeries(msg, code="no_pixel_data")
    geometry = arrange([read(instance.path) for instance in usable])
    tasks = [plan_pixels(header) for header in geometry.headers]
    rows, columns = tasks[0].rows, tasks[0].columns
    frame_bytes = 2 * rows * columns
    rescale = np.empty((len(tasks), 2), dtype=np.float64)
    slices = []
    for k, (header, task) in enumerate(zip(geometry.headers, tasks, strict=True)):
        assert header.rescale is not None
        assert header.position_lps_mm is not None
        slope, intercept = header.rescale
        rescale[k] = slope, intercept + task.shift * slope
        x_mm, y_mm, z_mm = header.position_lps_mm
        slices.append(Slice(header.sop_instance_uid, 1, (x_mm, y_mm, z_mm)))

    check_room(len(tasks) * rows * columns)
    span = arena.allocate(len(tasks) * frame_bytes)
    try:
        decoders.decode(
            arena.path,
            [(span.offset_bytes + k * frame_bytes, task) for k, task in enumerate(tasks)],
        )
    except BaseException:
        arena.free(span)
        raise
    return Volume(
        image=span,
        dtype="INT16",
        shape_kji=(len(tasks), rows, columns),
        rescale=rescale,
        affine_lps=geometry.affine_lps,
        slices=tuple(slices),
        headers=tuple(header.path for header in geometry.headers),
        series=series,
    )
