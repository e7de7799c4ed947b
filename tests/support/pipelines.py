"""Pipelines that read aloud: `a_pipeline(folder, nodes)`, and bundles made up for them."""

from __future__ import annotations

from pathlib import Path

import torch

from ensemble_builder.contract import Code, SegmentRow
from ensemble_builder.plan import Tensor, input_tensors
from ensemble_builder.runtime.inputs import Input
from ensemble_builder.wired import Member, MemberModel
from tests.support.bundles import a_segmentation_bundle

TISSUE = Code(value="85756007", scheme_designator="SCT", meaning="Tissue")

TWO_AND_A_MERGE = """
  lungs: {bundle: lung_ct}
  thorax: {bundle: thorax_ct}
  all: {merge: [lungs, thorax], overlap: first}
"""


def a_pipeline(
    folder: Path,
    nodes: str = TWO_AND_A_MERGE,
    *,
    output: str = "all",
    more: str = "",
    name: str = "two",
) -> Path:
    """Writes a pipeline whose nodes begin in line 3 and returns its file."""
    file = folder / f"{name}.yaml"
    nodes = nodes.strip("\n")
    file.write_text(f"pipeline: {name}\nnodes:\n{nodes}\noutput: {output}\n{more}", "utf-8")
    return file


def a_member(
    name: str,
    *labels: str,
    modality: str = "CT",
    inputs: tuple[Input, ...] = (Input("image", "IMAGE", "volume"),),
    datatype: str = "UINT8",
    gives_mask: bool = True,
) -> Member:
    """A bundle that gives a mask with labels 1, 2, ... of these names."""
    x, y = Tensor("X", "FP32", (1, -1, -1, -1)), Tensor("Y", "FP32", (2, -1, -1, -1))
    trace, mask = Tensor("TRACE", "STRING", (1,)), Tensor("MASK", datatype, (-1, -1, -1))
    tensors = tuple(t for one in inputs for t in input_tensors(one))
    return Member(
        models=(
            MemberModel(f"{name}_preprocess", tensors, (x, trace)),
            MemberModel(f"{name}_inferer", (x,), (y,)),
            MemberModel(f"{name}_postprocess", (y, trace), (mask,)),
        ),
        inputs=inputs,
        mask=mask if gives_mask else None,
        segments=tuple(
            SegmentRow(label=n, name=label, category=TISSUE, type=TISSUE)
            for n, label in enumerate(labels, start=1)
        ),
        modality=modality,
    )


def a_threshold_bundle(folder: Path, *, channels: int) -> Path:
    """A bundle whose network is one 1 x 1 x 1 convolution: bright is 1, very bright is 2.

    Args:
        folder: Where it goes.
        channels: Of its input; the second one raises the first's brightness.
    """
    network = {
        "_target_": "torch.nn.Conv3d",
        "in_channels": channels,
        "out_channels": 3,
        "kernel_size": 1,
    }
    a_segmentation_bundle(folder, changed={"network_def": network})
    conv = torch.nn.Conv3d(channels, 3, 1)
    weight = torch.zeros_like(conv.weight)
    weight[:, 0, 0, 0, 0] = torch.tensor([0.0, 1.0, 2.0])
    weight[:, 1:, 0, 0, 0] = torch.tensor([0.0, 0.3, 0.9])[:, None]
    state = {"weight": weight, "bias": torch.tensor([0.0, -0.5, -3.0])}
    torch.save(state, folder / "models" / "model.pt")
    return folder
