"""What tells the volumes of one series apart: time, echo, diffusion, kind of image.

In: a data set or the functional groups of one frame. Out: `Traits`, small and hashable, in a
fixed order. Pure.

Source: PS3.3 C.7.6.16.2.2 (Frame Content), C.8.2.1 (CT Image), C.8.3.1 (MR Image), C.8.13.5 (MR
functional groups), C.8.15.3 (CT functional groups).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from pydicom.dataset import Dataset

from dicom_gateway.assemble.elements import Elements, integer, numbers, text, values_of

Trait: TypeAlias = float | str
Traits: TypeAlias = tuple[tuple[str, Trait], ...]
"""Name and value of each trait that is there."""

STACK = "stack"
KIND = "kind"
TIME_POINT = "time point"
ECHO_TIME = "echo time"
ECHO = "echo"
B_VALUE = "b-value"
DIRECTION = "diffusion direction"
VOLTAGE = "tube voltage"
KERNEL = "kernel"
FLIP_ANGLE = "flip angle"
INVERSION_TIME = "inversion time"
THICKNESS = "slice thickness"
ORIGIN = "origin"
ACQUISITION = "acquisition"
TRIGGER = "trigger time"
ACQUIRED = "acquired"
CONTENT = "content"
INDEX = "dimension index"
NUMBER = "instance number"

KEYWORDS = (
    "ImageType",
    "TemporalPositionIdentifier",
    "EchoTime",
    "EchoNumbers",
    "DiffusionBValue",
    "DiffusionGradientOrientation",
    "KVP",
    "ConvolutionKernel",
    "FlipAngle",
    "InversionTime",
    "SliceThickness",
    "AcquisitionNumber",
    "TriggerTime",
    "AcquisitionDateTime",
    "AcquisitionDate",
    "AcquisitionTime",
    "ContentDate",
    "ContentTime",
    "StackID",
    "ComplexImageComponent",
    "DimensionIndexSequence",
)
"""What `of_instance` and the frames look at."""

_POSITIONS = frozenset({0x00209056, 0x00209057, 0x00200032, 0x00209113, 0x00201041})
"""Dimension indices that only say where a frame lies: stack, place in it, position."""


_FRAME_TYPES = (
    "MRImageFrameTypeSequence",
    "CTImageFrameTypeSequence",
    "PETFrameTypeSequence",
    "XRay3DFrameTypeSequence",
)


def of_instance(ds: Elements) -> Traits:
    """Of a single-frame instance, from its own attributes."""
    return _present(
        (
            (STACK, text(ds, "StackID") or None),
            (KIND, _kind(values_of(ds, "ImageType"), text(ds, "ComplexImageComponent"))),
            (TIME_POINT, _number(ds, "TemporalPositionIdentifier")),
            (ECHO_TIME, _number(ds, "EchoTime")),
            (ECHO, _number(ds, "EchoNumbers")),
            (B_VALUE, _number(ds, "DiffusionBValue")),
            (DIRECTION, _direction(ds)),
            (VOLTAGE, _number(ds, "KVP")),
            (KERNEL, _words(values_of(ds, "ConvolutionKernel"))),
            (FLIP_ANGLE, _number(ds, "FlipAngle")),
            (INVERSION_TIME, _number(ds, "InversionTime")),
            (THICKNESS, _number(ds, "SliceThickness")),
            (ORIGIN, _words(values_of(ds, "ImageType")[:2])),
            (ACQUISITION, _number(ds, "AcquisitionNumber")),
            (TRIGGER, _number(ds, "TriggerTime")),
            (ACQUIRED, _moment(ds, "Acquisition")),
            (CONTENT, _moment(ds, "Content")),
        )
    )


def of_frame(groups: Sequence[Dataset], instance: Dataset, indices: Sequence[int]) -> Traits:
    """Of one frame of a multi-frame object.

    Args:
        groups: Its own functional groups, then the shared ones; the first that has a value
            counts.
        instance: The object, for what its frames have in common.
        indices: Places in Dimension Index Values that don't only say where a frame lies.
    """
    content = _item(groups, "FrameContentSequence")
    kind = _item(groups, *_FRAME_TYPES)
    diffusion = _item(groups, "MRDiffusionSequence")
    gradient = _item([diffusion], "DiffusionGradientDirectionSequence")
    heart = _item(groups, "CardiacSynchronizationSequence")
    reconstruction = _item(groups, "CTReconstructionSequence")
    timing = _item(groups, "MRTimingAndRelatedParametersSequence")
    index = values_of(content, "DimensionIndexValues")
    told = [str(index[place]) for place in indices if place < len(index)]
    return _present(
        (
            (STACK, text(content, "StackID") or None),
            (KIND, _kind(values_of(kind, "FrameType"), text(kind, "ComplexImageComponent"))),
            (TIME_POINT, _number(content, "TemporalPositionIndex")),
            (ECHO_TIME, _number(_item(groups, "MREchoSequence"), "EffectiveEchoTime")),
            (B_VALUE, _number(diffusion, "DiffusionBValue")),
            (DIRECTION, _direction(gradient)),
            (VOLTAGE, _number(_item(groups, "CTXRayDetailsSequence"), "KVP")),
            (KERNEL, _words(values_of(reconstruction, "ConvolutionKernel"))),
            (FLIP_ANGLE, _number(timing, "FlipAngle")),
            (INVERSION_TIME, _number(_item(groups, "MRModifierSequence"), "InversionTimes")),
            (THICKNESS, _number(_item(groups, "PixelMeasuresSequence"), "SliceThickness")),
            (ORIGIN, _words(values_of(kind, "FrameType")[:2])),
            (ACQUISITION, _number(content, "FrameAcquisitionNumber")),
            (TRIGGER, _number(heart, "NominalCardiacTriggerDelayTime")),
            (ACQUIRED, text(content, "FrameAcquisitionDateTime") or None),
            (CONTENT, _moment(instance, "Content")),
            (INDEX, "-".join(told) or None),
        )
    )


def telling_indices(ds: Dataset) -> tuple[int, ...]:
    """Which of the Dimension Index Values say more than where a frame lies."""
    places = []
    for place, item in enumerate(values_of(ds, "DimensionIndexSequence")):
        pointer = integer(item, "DimensionIndexPointer")
        if pointer is not None and pointer not in _POSITIONS:
            places.append(place)
    return tuple(places)


def _present(pairs: Iterable[tuple[str, Trait | None]]) -> Traits:
    return tuple((name, value) for name, value in pairs if value is not None)


def _item(groups: Iterable[Dataset], *keywords: str) -> Dataset:
    for group in groups:
        for keyword in keywords:
            items = values_of(group, keyword)
            if items and isinstance(items[0], Dataset):
                return items[0]
    return Dataset()


def _number(ds: Elements, keyword: str) -> float | None:
    found = numbers(ds, keyword, 1)
    return None if found is None else found[0]


def _direction(ds: Elements) -> str | None:
    found = numbers(ds, "DiffusionGradientOrientation", 3)
    return None if found is None else ",".join(f"{value:.3f}" for value in found)


def _moment(ds: Elements, what: str) -> str | None:
    """As text that sorts: some writers have date and time, some only the time."""
    whole = text(ds, f"{what}DateTime")
    time = text(ds, f"{what}Time")
    return whole or (text(ds, f"{what}Date") + time if time else None)


def _kind(image_type: Sequence[object], component: str) -> str | None:
    """What the pixels show, without original or derived: magnitude, phase, water, ADC."""
    words = [str(value).strip() for value in image_type[2:]]
    if component and component not in words:
        words.append(component)
    return _words(words)


def _words(values: Sequence[object]) -> str | None:
    return "/".join(word for value in values if (word := str(value).strip())) or None
