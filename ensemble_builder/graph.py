"""A pipeline's nodes -> a typed DAG of Triton models, or one sentence that says why not.

In: a `PipelineSpec`, then the calls that `wiring` made of it. Out: the order of the nodes, and
nothing wrong with any edge's tensor, datatype and dims. `order` looks at names only, so that a
wrong pipeline is refused before any bundle is read.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ensemble_builder.errors import PipelineError
from ensemble_builder.plan import Tensor
from ensemble_builder.runtime.inputs import Input
from ensemble_builder.spec import MergeNode, NetworkNode, Place, RegionNode, SpecFile

MASK_EDGE = "MASK"
"""The ensemble's output."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a Triton model in an ensemble.

    Attributes:
        model: Its name.
        inputs: The model's tensor and the edge that feeds it.
        outputs: The model's tensor and the edge that it makes.
    """

    model: str
    inputs: tuple[tuple[Tensor, str], ...]
    outputs: tuple[tuple[Tensor, str], ...]


def order(file: SpecFile) -> tuple[str, ...]:
    """The nodes, each after those that it names.

    Raises:
        PipelineError: a name that nothing has or two things have, one of the wrong kind, a
            circle, or a node or input that leads nowhere.
    """
    spec = file.spec
    for name in spec.nodes:
        if name in spec.inputs:
            raise file.error(
                ("nodes", name), f"node '{name}' has the name of an input; give it another one"
            )
    for place, name, wanted in _references(file):
        _check_reference(file, place, name, wanted)
    for name, node in spec.nodes.items():
        if isinstance(node, MergeNode) and len(set(node.merge)) < len(node.merge):
            raise file.error(
                ("nodes", name, "merge"), f"merge '{name}' names a node twice; name each once"
            )
    done = _sorted(file)
    _check_used(file)
    return done


def inputs_of(file: SpecFile) -> tuple[Input, ...]:
    """What a request brings, one volume for each input of the pipeline.

    Raises:
        PipelineError: two of their tensors would have one name.
    """
    names = list(file.spec.inputs)
    alone = len(names) == 1
    out = tuple(
        Input(name, "IMAGE" if alone or name == "image" else name.upper(), "volume")
        for name in names
    )
    seen = {MASK_EDGE: "the output"}
    for one in out:
        for tensor in (one.tensor, one.rescale, one.affine):
            owner = seen.setdefault(tensor, f"input '{one.key}'")
            if owner != f"input '{one.key}'":
                raise file.error(
                    ("inputs", one.key),
                    f"input '{one.key}' and {owner} would both be the tensor {tensor}; give the "
                    "input another name",
                )
    return out


def check_calls(calls: Sequence[Call], inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """Checks every edge of an ensemble: made once, used as what it is, and no circle.

    Args:
        calls: Of one ensemble, in any order.
        inputs: Of the ensemble; their names are edges.
        outputs: Of the ensemble, likewise.

    Raises:
        PipelineError: says edge, models, datatypes and dims.
    """
    made: dict[str, tuple[Tensor, str]] = {one.name: (one, "the request") for one in inputs}
    for call in calls:
        for tensor, edge in call.outputs:
            if edge in made:
                msg = f"the edge {edge} is made by both {made[edge][1]} and {call.model}"
                raise PipelineError(msg)
            made[edge] = (tensor, call.model)
    wanted = [(tensor, edge, call.model) for call in calls for tensor, edge in call.inputs]
    wanted += [(one, one.name, "the answer") for one in outputs]
    for tensor, edge, who in wanted:
        if edge not in made:
            msg = f"{who} needs the edge {edge}, which nothing makes"
            raise PipelineError(msg)
        source, maker = made[edge]
        if not _fits(source, tensor):
            msg = (
                f"the edge {edge}: {maker} gives {source.datatype} {list(source.dims)}, but "
                f"{who} takes {tensor.datatype} {list(tensor.dims)}"
            )
            raise PipelineError(msg)
    _check_flow(calls)


def _fits(source: Tensor, sink: Tensor) -> bool:
    return (
        source.datatype == sink.datatype
        and len(source.dims) == len(sink.dims)
        and all(a == b or -1 in (a, b) for a, b in zip(source.dims, sink.dims, strict=True))
    )


def _check_flow(calls: Sequence[Call]) -> None:
    """No call waits for itself."""
    waiting = list(calls)
    while waiting:
        unmade = {edge for call in waiting for _, edge in call.outputs}
        ready = [call for call in waiting if not unmade & {edge for _, edge in call.inputs}]
        if not ready:
            models = ", ".join(call.model for call in waiting)
            msg = f"these models wait for one another in a circle: {models}"
            raise PipelineError(msg)
        waiting = [call for call in waiting if call not in ready]


_Wanted = Literal["image", "mask", "either"]


def _references(file: SpecFile) -> list[tuple[Place, str, _Wanted]]:
    """Every name that the file names, where it does, and what it must be there."""
    out: list[tuple[Place, str, _Wanted]] = []
    for name, node in file.spec.nodes.items():
        place: Place = ("nodes", name)
        if isinstance(node, NetworkNode):
            if isinstance(node.image, str):
                out.append(((*place, "image"), node.image, "image"))
            else:
                out += [((*place, "image", n), s, "either") for n, s in enumerate(node.image)]
            out += [((*place, "inputs", key), s, "either") for key, s in node.inputs.items()]
        elif isinstance(node, RegionNode):
            out.append(((*place, "region_of"), node.region_of, "mask"))
        else:
            out += [((*place, "merge", n), s, "mask") for n, s in enumerate(node.merge)]
    out.append((("output",), file.spec.output, "mask"))
    return out


def _check_reference(file: SpecFile, place: Place, name: str, wanted: _Wanted) -> None:
    spec = file.spec
    what = ".".join(str(part) for part in place)
    if name not in spec.nodes and name not in spec.inputs:
        known = [*spec.inputs, *spec.nodes]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
        raise file.error(
            place, f"{what} names '{name}', which is neither an input nor a node; {hint}"
        )
    is_image = name in spec.inputs or isinstance(spec.nodes[name], RegionNode)
    if wanted == "mask" and is_image:
        raise file.error(
            place, f"{what} names '{name}', which gives an image; name a network or a merge"
        )
    if wanted == "image" and not is_image:
        raise file.error(
            place,
            f"{what} names '{name}', which gives a mask; name an input or a region, or write a "
            "list to feed the mask as a channel",
        )


def needs(file: SpecFile, name: str) -> tuple[str, ...]:
    """The nodes and inputs that a node names, each once, in the file's order."""
    node = file.spec.nodes[name]
    if isinstance(node, NetworkNode):
        found = [*node.channels, *node.inputs.values()]
    elif isinstance(node, RegionNode):
        found = [node.region_of]
    else:
        found = list(node.merge)
    return tuple(dict.fromkeys(found))


def _sorted(file: SpecFile) -> tuple[str, ...]:
    done: list[str] = []
    way: list[str] = []

    def visit(name: str) -> None:
        if name in done or name in file.spec.inputs:
            return
        if name in way:
            circle = " -> ".join([*way[way.index(name) :], name])
            raise file.error(
                ("nodes", name),
                f"these nodes wait for one another in a circle: {circle}; let one of them name "
                "something that comes before",
            )
        way.append(name)
        for other in needs(file, name):
            visit(other)
        way.pop()
        done.append(name)

    for name in file.spec.nodes:
        visit(name)
    return tuple(done)


def _check_used(file: SpecFile) -> None:
    """Everything leads to the output."""
    spec = file.spec
    used: set[str] = set()
    left = [spec.output]
    while left:
        name = left.pop()
        if name not in used:
            used.add(name)
            left += needs(file, name) if name in spec.nodes else ()
    for name in spec.nodes:
        if name not in used:
            raise file.error(
                ("nodes", name),
                f"nothing uses node '{name}' on the way to the output '{spec.output}'; name it "
                "in a merge, or take it out",
            )
    for name in spec.inputs:
        if name not in used:
            raise file.error(("inputs", name), f"no node uses the input '{name}'; take it out")
