"""A pipeline's nodes -> the calls of one ensemble and the models between its bundles.

In: a pipeline whose names are in order, and what is known of each bundle. Out: `Wired`, every edge
typed and checked. Every mask lies on the grid of an input of the pipeline: one that was found in a
region is pasted back, so that any later node can use it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ensemble_builder.feeding import edges_of, first_image, further_inputs
from ensemble_builder.graph import MASK_EDGE, Call, check_calls, inputs_of, order
from ensemble_builder.plan import Tensor, input_tensors
from ensemble_builder.runtime.merge import MERGE_FILE, MergeMember, MergeRule
from ensemble_builder.runtime.region import REGION_FILE, RegionRule
from ensemble_builder.segment_table import merged_table
from ensemble_builder.spec import MergeNode, NetworkNode, Place, RegionNode, SpecFile
from ensemble_builder.wired import BOX, ImageEdges, MaskEdge, Member, Sketch, Wired

LARGEST_UINT8 = 255


def wire(file: SpecFile, members: Mapping[str, Member]) -> Wired:
    """Makes the ensemble's calls.

    Args:
        file: The pipeline.
        members: Node -> what is known of its bundle.

    Raises:
        PipelineError: something doesn't fit together; says file, line and what to do.
    """
    nodes = order(file)
    inputs = inputs_of(file)
    work = Sketch(file, members)
    for one in inputs:
        work.images[one.key] = ImageEdges(one.key, one.tensor, one.rescale, one.affine)
    for name in nodes:
        node = file.spec.nodes[name]
        if isinstance(node, NetworkNode):
            _network(work, name, node)
        elif isinstance(node, RegionNode):
            _region(work, name, node)
        else:
            _merge(work, name, node)
    result = work.masks[file.spec.output]
    mask = Tensor(MASK_EDGE, result.tensor.datatype, result.tensor.dims)
    calls = _with_output(work.calls, result.edge)
    check_calls(calls, [t for one in inputs for t in input_tensors(one)], [mask])
    return Wired(
        inputs,
        {one.key: _modality(work, one.key) for one in inputs},
        mask,
        result.segments,
        calls,
        tuple(work.joints.values()),
    )


def _network(work: Sketch, name: str, node: NetworkNode) -> None:
    """The calls of a bundle's models, with what feeds them before and what pastes back after."""
    member, place = work.members[name], ("nodes", name)
    if member.mask is None:
        raise work.file.error((*place, "bundle"), f"'{node.bundle}' {member.no_mask}")
    first = first_image(work, name, node, member)
    known = edges_of(member.inputs[0], first)
    known |= further_inputs(work, name, node, member, first)
    mask = member.mask
    pasted = f"{name}.{mask.name}"
    for model in member.models:
        work.calls.append(
            Call(
                model.name,
                tuple((t, known.get(t.name, f"{name}.{t.name}")) for t in model.inputs),
                tuple(
                    (t, f"{name}.PART" if first.box and t.name == mask.name else f"{name}.{t.name}")
                    for t in model.outputs
                ),
            )
        )
    if first.box:
        _paste(work, mask, f"{name}.PART", first.box, pasted)
    work.masks[name] = MaskEdge(first.grid, pasted, mask, member.segments)


def _region(work: Sketch, name: str, node: RegionNode) -> None:
    mask = work.masks[node.region_of]
    whole = work.images[mask.grid]
    known = {row.label for row in mask.segments}
    for n, label in enumerate(node.labels or ()):
        if label not in known:
            raise work.file.error(
                ("nodes", name, "labels", n),
                f"'{node.region_of}' has no label {label}; it has "
                f"{', '.join(f'{s.label} ({s.name})' for s in mask.segments)}",
            )
    rule = RegionRule(
        name=node.region_of,
        labels=node.labels or (),
        margin_mm=node.margin_mm,
        crop=node.crop,
        outside_value=node.outside_value,
        when_empty=node.when_empty,
    )
    part = ImageEdges(
        mask.grid,
        f"{name}.IMAGE",
        f"{name}.RESCALE",
        f"{name}.AFFINE",
        f"{name}.BOX" if node.crop else "",
    )
    inputs = (
        (Tensor("MASK", mask.tensor.datatype, (-1, -1, -1)), mask.edge),
        (Tensor("IMAGE", "INT16", (-1, -1, -1)), whole.image),
        (Tensor("RESCALE", "FP64", (-1, 2)), whole.rescale),
        (Tensor("AFFINE", "FP64", (4, 4)), whole.affine),
    )
    outputs = (
        (Tensor("PART_IMAGE", "INT16", (-1, -1, -1)), part.image),
        (Tensor("PART_RESCALE", "FP64", (-1, 2)), part.rescale),
        (Tensor("PART_AFFINE", "FP64", (4, 4)), part.affine),
        (BOX, f"{name}.BOX"),
    )
    model = f"{work.file.spec.pipeline}_{name}"
    work.call_joint(model, "Region", inputs, outputs, rule=(REGION_FILE, rule.to_json()))
    work.images[name] = part


def _merge(work: Sketch, name: str, node: MergeNode) -> None:
    place: Place = ("nodes", name)
    masks = {member: work.masks[member] for member in node.merge}
    grid = masks[node.merge[0]].grid
    for n, (member, mask) in enumerate(masks.items()):
        if mask.grid != grid:
            raise work.file.error(
                (*place, "merge", n),
                f"'{member}' lies on the grid of '{mask.grid}', '{node.merge[0]}' on that of "
                f"'{grid}'; masks that are merged lie on one grid",
            )
    tables = {member: mask.segments for member, mask in masks.items()}
    table = merged_table(place, node, tables, work.file.error)
    largest = max(row.label for row in table.segments)
    datatype = "UINT8" if largest <= LARGEST_UINT8 else "UINT16"
    rule = MergeRule(
        name,
        tuple(
            MergeMember(member, f"MASK_{member.upper()}", table.labels[member]) for member in masks
        ),
        node.overlap,
        node.priority,
        datatype,
    )
    inputs = tuple(
        (Tensor(one.tensor, masks[one.name].tensor.datatype, (-1, -1, -1)), masks[one.name].edge)
        for one in rule.members
    )
    mask = MaskEdge(grid, f"{name}.MASK", Tensor("MASK", datatype, (-1, -1, -1)), table.segments)
    outputs = ((Tensor("MERGED_MASK", datatype, (-1, -1, -1)), mask.edge),)
    model = f"{work.file.spec.pipeline}_{name}"
    work.call_joint(model, "Merge", inputs, outputs, rule=(MERGE_FILE, rule.to_json()))
    work.masks[name] = mask


def _paste(work: Sketch, mask: Tensor, part: str, box: str, whole: str) -> None:
    """One model pastes for all regions of a pipeline."""
    model = f"{work.file.spec.pipeline}_paste_{mask.datatype.lower()}"
    dims = (-1, -1, -1)
    inputs = ((Tensor("MASK", mask.datatype, dims), part), (BOX, box))
    outputs = ((Tensor("WHOLE_MASK", mask.datatype, dims), whole),)
    work.call_joint(model, "Paste", inputs, outputs)


def _with_output(calls: Sequence[Call], result: str) -> tuple[Call, ...]:
    """The result's edge under the output's name, and edges that nobody uses left out.

    Triton refuses an ensemble in which an edge leads nowhere.
    """

    def named(edge: str) -> str:
        return MASK_EDGE if edge == result else edge

    used = {edge for call in calls for _, edge in call.inputs} | {result}
    return tuple(
        Call(
            call.model,
            tuple((tensor, named(edge)) for tensor, edge in call.inputs),
            tuple((tensor, named(edge)) for tensor, edge in call.outputs if edge in used),
        )
        for call in calls
    )


def _modality(work: Sketch, name: str) -> str:
    """The modality of an input: as the file says, or as its networks agree."""
    stated = work.file.spec.inputs[name].modality
    for node_name, node in work.file.spec.nodes.items():
        if not isinstance(node, NetworkNode):
            continue
        grids = {work.images[c].grid for c in node.channels if c in work.images}
        wanted = work.members[node_name].modality
        if name not in grids or not wanted:
            continue
        if stated and wanted != stated:
            raise work.file.error(
                ("nodes", node_name, "bundle"),
                f"'{node.bundle}' is made for {wanted}, but the input '{name}' is {stated}",
            )
        stated = wanted
    return stated
