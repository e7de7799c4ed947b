"""What feeds each input of a bundle in a pipeline: an image, a region, or masks as channels.

In: a network's node and its bundle. Out: the edges that its first models read, with a Channels
model before them where a mask becomes an image or several become one.
"""

from __future__ import annotations

from collections.abc import Sequence

from ensemble_builder.plan import Tensor
from ensemble_builder.runtime.channels import CHANNELS_FILE, ChannelsRule
from ensemble_builder.runtime.inputs import Input
from ensemble_builder.spec import NetworkNode, Place
from ensemble_builder.wired import BOX, ImageEdges, Member, Sketch


def edges_of(one: Input, image: ImageEdges) -> dict[str, str]:
    """The tensors of a bundle's input -> the edges of the image that feeds it."""
    return {one.tensor: image.image, one.rescale: image.rescale, one.affine: image.affine}


def first_image(work: Sketch, name: str, node: NetworkNode, member: Member) -> ImageEdges:
    """What the bundle's first input gets."""
    first, place = member.inputs[0], ("nodes", name, "image")
    if first.layout not in ("volume", "channels"):
        raise work.file.error(
            ("nodes", name, "bundle"),
            f"'{node.bundle}' takes 2-D images; networks of a pipeline take volumes",
        )
    if len(node.channels) != first.channels:
        raise work.file.error(
            place,
            f"'{node.bundle}' takes {first.channels} channel{'s' * (first.channels > 1)}, but "
            f"{len(node.channels)} stand here; list {first.channels} names under image",
        )
    if first.layout == "volume" and isinstance(node.image, str):
        return work.images[node.image]
    return _channels(
        work, place, f"{name}.INPUT", node.channels, stacked=first.layout == "channels"
    )


def further_inputs(
    work: Sketch, name: str, node: NetworkNode, member: Member, first: ImageEdges
) -> dict[str, str]:
    """Tensors of the bundle's other inputs -> the edges that feed them."""
    others = {one.key: one for one in member.inputs[1:]}
    for key in node.inputs:
        if key not in others:
            known = ", ".join(others) or "none besides its image"
            raise work.file.error(
                ("nodes", name, "inputs", key),
                f"'{node.bundle}' has no further input '{key}'; it has {known}",
            )
    found: dict[str, str] = {}
    for key, one in others.items():
        if key not in node.inputs:
            raise work.file.error(
                ("nodes", name),
                f"'{node.bundle}' also needs '{key}'; say under inputs what feeds it",
            )
        place: Place = ("nodes", name, "inputs", key)
        if one.layout not in ("volume", "channels") or one.channels != 1:
            raise work.file.error(
                place,
                f"'{node.bundle}' wants {one.layout} of {one.channels} for '{key}', which no node "
                "gives; a further input can be fed with one volume",
            )
        source = node.inputs[key]
        if source in work.images and one.layout == "volume":
            image = work.images[source]
        else:
            # The first input's edge is called INPUT already.
            label = f"{name}.{'FURTHER_' * (one.tensor == 'INPUT')}{one.tensor}"
            image = _channels(
                work, place, label, (source,), stacked=one.layout == "channels", like=first
            )
        if image.box != first.box:
            raise work.file.error(
                place, f"'{source}' is another part of the image than '{name}' takes; feed the same"
            )
        found |= edges_of(one, image)
    return found


def _channels(
    work: Sketch,
    place: Place,
    label: str,
    names: Sequence[str],
    *,
    stacked: bool,
    like: ImageEdges | None = None,
) -> ImageEdges:
    """Images and masks as one input of a bundle."""
    images = [work.images[name] for name in names if name in work.images]
    first = like or (images[0] if images else work.images[work.masks[names[0]].grid])
    if any(one.box != first.box for one in images):
        raise work.file.error(
            place, f"{', '.join(names)} are different parts of the image; take the same part"
        )
    boxed = bool(first.box) and len(images) < len(names)
    inputs: list[tuple[Tensor, str]] = []
    for n, name in enumerate(names):
        if name in work.images:
            one = work.images[name]
            inputs += [
                (Tensor(f"IMAGE_{n}", "INT16", (-1, -1, -1)), one.image),
                (Tensor(f"RESCALE_{n}", "FP64", (-1, 2)), one.rescale),
                (Tensor(f"AFFINE_{n}", "FP64", (4, 4)), one.affine),
            ]
        else:
            mask = work.masks[name]
            if mask.grid != first.grid:
                raise work.file.error(
                    place, f"'{name}' lies on the grid of '{mask.grid}', not of '{first.grid}'"
                )
            inputs.append((Tensor(f"MASK_{n}", mask.tensor.datatype, (-1, -1, -1)), mask.edge))
    inputs.append((Tensor("AFFINE", "FP64", (4, 4)), first.affine))
    if boxed:
        inputs.append((BOX, first.box))
    rule = ChannelsRule(
        tuple("image" if name in work.images else "mask" for name in names),
        tuple(names),
        stacked,
        boxed,
    )
    lead = (len(names),) if stacked else ()
    out = ImageEdges(first.grid, f"{label}.IMAGE", f"{label}.RESCALE", f"{label}.AFFINE", first.box)
    outputs = (
        (Tensor("STACKED_IMAGE", "INT16", (*lead, -1, -1, -1)), out.image),
        (Tensor("STACKED_RESCALE", "FP64", (*lead, -1, 2)), out.rescale),
        (Tensor("STACKED_AFFINE", "FP64", (4, 4)), out.affine),
    )
    model = f"{work.file.spec.pipeline}_{label.replace('.', '_').lower()}"
    work.call_joint(model, "Channels", inputs, outputs, rule=(CHANNELS_FILE, rule.to_json()))
    return out
