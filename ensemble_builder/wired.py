"""What the wiring of a pipeline works with: bundles as it sees them, models between, edges, calls.

`Sketch` is the wiring as far as it has come; `Wired` is the finished one. Nothing is read or
written here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ensemble_builder.contract import SegmentRow
from ensemble_builder.graph import Call
from ensemble_builder.plan import Tensor
from ensemble_builder.runtime.inputs import Input
from ensemble_builder.spec import SpecFile

BOX = Tensor("BOX", "INT64", (3, 3))

NO_MASK = "gives no label map of a volume, which a pipeline needs of each network"

RuntimeClass = Literal["Region", "Paste", "Channels", "Merge"]
"""Classes in `runtime.joints`."""


@dataclass(frozen=True, slots=True)
class MemberModel:
    """One of a bundle's models; its tensors of one name are one edge."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Member:
    """What the wiring knows of a bundle.

    Attributes:
        models: In order.
        inputs: What a request of its own would bring.
        mask: Its one label map on its first input's grid; None where it has none.
        segments: What the labels mean.
        modality: DICOM Modality, empty where unknown.
        no_mask: Why it has none, in words that follow its name.
    """

    models: tuple[MemberModel, ...]
    inputs: tuple[Input, ...]
    mask: Tensor | None
    segments: tuple[SegmentRow, ...]
    modality: str
    no_mask: str = NO_MASK


@dataclass(frozen=True, slots=True)
class Joint:
    """A model between bundles.

    Attributes:
        rule_file: What lies beside its model.py; empty for nothing.
        rule: Its content.
    """

    name: str
    runtime_class: RuntimeClass
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    rule_file: str = ""
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Wired:
    """A pipeline as one ensemble.

    Attributes:
        inputs: What a request brings.
        modalities: Input -> DICOM Modality, empty where nobody says.
        mask: The ensemble's output.
        segments: What its labels mean.
    """

    inputs: tuple[Input, ...]
    modalities: Mapping[str, str]
    mask: Tensor
    segments: tuple[SegmentRow, ...]
    calls: tuple[Call, ...]
    joints: tuple[Joint, ...]


@dataclass(frozen=True, slots=True)
class ImageEdges:
    """An image edge by edge.

    Attributes:
        grid: The input of the pipeline on whose grid its voxels lie.
        box: Which region of that it is; empty for all of it.
    """

    grid: str
    image: str
    rescale: str
    affine: str
    box: str = ""


@dataclass(frozen=True, slots=True)
class MaskEdge:
    """A label map on the whole grid of an input of the pipeline."""

    grid: str
    edge: str
    tensor: Tensor
    segments: tuple[SegmentRow, ...]


@dataclass(slots=True)
class Sketch:
    """The wiring as far as it has come: what each node gives, and the calls so far."""

    file: SpecFile
    members: Mapping[str, Member]
    images: dict[str, ImageEdges] = field(default_factory=dict)
    masks: dict[str, MaskEdge] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    joints: dict[str, Joint] = field(default_factory=dict)

    def call_joint(
        self,
        model: str,
        runtime_class: RuntimeClass,
        inputs: Sequence[tuple[Tensor, str]],
        outputs: Sequence[tuple[Tensor, str]],
        *,
        rule: tuple[str, str] = ("", ""),
    ) -> None:
        """Calls a model between bundles.

        Args:
            model: Its name.
            runtime_class: What it is.
            inputs: Its tensors and the edges that feed them.
            outputs: Its tensors and the edges that they make.
            rule: What lies beside its model.py: file and content.

        Raises:
            PipelineError: there is another model of that name.
        """
        joint = Joint(
            model,
            runtime_class,
            tuple(tensor for tensor, _ in inputs),
            tuple(tensor for tensor, _ in outputs),
            *rule,
        )
        if self.joints.setdefault(model, joint) != joint:
            raise self.file.error(
                ("nodes",), f"two models would be called '{model}'; give a node another name"
            )
        self.calls.append(Call(model, tuple(inputs), tuple(outputs)))
