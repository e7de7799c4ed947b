"""Which image goes where in a request: what a pipeline wants, and what a rule's roles give.

In: a contract, and roles. Out: one slot for each image of a request, in a fixed order, or a
refusal that says what the pipeline wants. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from dicom_gateway.errors import ContractMismatch
from dicom_gateway.records import Contract, Input

T = TypeVar("T")

_ONE_VOLUME = Input(
    name="image",
    layout="volume",
    modality="",
    channels=(),
    tensors={"image": "IMAGE", "rescale": "RESCALE", "affine": "AFFINE"},
    datatype="INT16",
    dims=(-1, -1, -1),
)
"""What pipelines took before contracts listed their inputs."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One image of a request: an input, or one channel of it.

    Attributes:
        name: What a role must be called to fill it.
    """

    name: str
    input: Input

    @property
    def is_flat(self) -> bool:
        """True for a 2-D image."""
        return self.input.layout == "gray"


def inputs_of(contract: Contract) -> tuple[Input, ...]:
    """What a request brings.

    Raises:
        ContractMismatch: something that no DICOM series is.
    """
    if not contract.inputs:
        if contract.input_kind == "volume":
            return (_ONE_VOLUME,)
        msg = f"the contract of '{contract.pipeline}' lists no inputs; build the pipeline again"
        raise ContractMismatch(msg)
    for one in contract.inputs:
        if one.layout not in ("volume", "channels", "gray"):
            what = {
                "rgb": "a photograph in colour",
                "points": "points that a person sets",
                "value": "a number that a person sets",
            }[one.layout]
            msg = (
                f"'{contract.pipeline}' wants {what} for its input '{one.name}', and this gateway "
                "sends greyscale images and volumes of DICOM series; ask it with a client of "
                "your own, or take it out of gateway.yaml"
            )
            raise ContractMismatch(msg)
        if one.datatype not in ("INT16", "FP32"):
            msg = (
                f"input '{one.name}' of '{contract.pipeline}' is {one.datatype}; this gateway "
                "sends INT16 and FP32; build the pipeline again"
            )
            raise ContractMismatch(msg)
    return contract.inputs


def slots_of(contract: Contract) -> tuple[Slot, ...]:
    """The images of a request in their order; the first one's grid is the result's.

    Raises:
        ContractMismatch: as `inputs_of`.
    """
    slots = []
    inputs = inputs_of(contract)
    for one in inputs:
        channels = one.dims[0] if one.layout == "channels" else 1
        names = one.channels if len(one.channels) == channels else ()
        if channels == 1 and one.layout != "channels":
            slots.append(Slot(one.name, one))
            continue
        for n in range(channels):
            name = names[n] if names else f"channel-{n + 1}"
            slots.append(Slot(name if len(inputs) == 1 else f"{one.name}-{name}", one))
    return tuple(slots)


def fill(contract: Contract, roles: Mapping[str, T], rule: str) -> tuple[T, ...]:
    """What goes into each slot.

    Args:
        contract: Of the pipeline.
        roles: Role -> what it has; one of any name where the pipeline takes one image.
        rule: The rule that the roles are from, for the sentence.

    Raises:
        ContractMismatch: the roles aren't the pipeline's.
    """
    slots = slots_of(contract)
    if len(slots) == len(roles) == 1:
        return tuple(roles.values())
    given = {_plain(role): value for role, value in roles.items()}
    wanted = [_plain(slot.name) for slot in slots]
    if sorted(given) == sorted(wanted) and len(given) == len(roles):
        return tuple(given[name] for name in wanted)
    names = ", ".join(role_name(slot.name) for slot in slots)
    if len(slots) == 1:
        msg = (
            f"rule {rule} gives '{contract.pipeline}' {len(roles)} images "
            f"({', '.join(sorted(roles))}) and it takes one; write a rule without roles for it"
        )
    elif len(roles) < 2:
        msg = (
            f"'{contract.pipeline}' takes {len(slots)} images of a study ({names}) and got one "
            f"series; write a rule in gateway.yaml with a role for each: {names}"
        )
    else:
        msg = (
            f"rule {rule} has the roles {', '.join(sorted(roles))} and '{contract.pipeline}' "
            f"takes {names}; call the rule's roles so"
        )
    raise ContractMismatch(msg)


def role_name(name: str) -> str:
    """A slot's name as a role in gateway.yaml may be written."""
    allowed = "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower())
    return allowed.strip("-") or "image"


def _plain(name: str) -> str:
    """Roles are compared without regard to case and punctuation: T1-Gd is t1gd."""
    return "".join(c for c in name.lower() if c.isalnum())
