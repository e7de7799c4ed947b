"""What a peer's answer to an object means: arrived, try again, or a person must look.

In: a status of C-STORE, or the Failure Reason or Warning Reason of STOW-RS, which are the same
numbers. Out: words for the job's story, or an error that says whether sending again helps and
what to do. The peer's own comment is left out everywhere: it may quote the data set.

Source: PS3.4 B.2.3 and Table B.2-1, PS3.7 Annex C, PS3.18 Table 10.5.1-1 and Annex I.
"""

from __future__ import annotations

from dicom_gateway.config_delivery import Destination
from dicom_gateway.errors import (
    DestinationRefused,
    DestinationUnavailable,
    GatewayError,
    NotUnderstood,
)

SUCCESS = 0x0000
DUPLICATE = 0x0111
_WARNINGS = {
    0xB000: "it changed values (coercion of data elements)",
    0xB006: "it dropped elements",
    0xB007: "the data set doesn't match its SOP class in its eyes",
}
_OTHER_WARNINGS = frozenset((0x0001, 0x0107, 0x0116))
_PASSES = frozenset(
    (
        0x0110,  # processing failure: some PACS say it when their database is busy
        0x0210,  # duplicate invocation
        0x0213,  # resource limitation
        0xFE00,  # the peer cancelled
    )
)
_WHAT_TO_DO = {
    0x0105: "its log says which element it doesn't take",
    0x0106: "its log says which value it doesn't take",
    0x0112: "it wants something that it doesn't have (the study, for instance); send that first",
    0x0115: "its log says which value it doesn't take",
    0x0117: "it doesn't accept our UIDs; look into its log",
    0x0118: "it finds no such SOP class; enable the class there",
    0x0119: "it has another object of another class under this UID; remove that one there",
    0x0120: "it misses an attribute; its log says which",
    0x0121: "it misses a value; its log says which",
    0x0122: "it doesn't support the SOP class; enable the class there, or leave the kind out "
    "with 'objects' of this destination",
    0x0124: "it doesn't allow us to store; give our AE title or user that right there",
    0x0211: "it doesn't know the operation; ask its vendor about the storage service",
    0x0212: "it takes us for something else; ask its vendor about the storage service",
}


def arrival(status: int, destination: Destination) -> str:
    """What a status means.

    Returns:
        A few words for the job's story, where the peer has the object.

    Raises:
        NotUnderstood: 0xCxxx.
        DestinationUnavailable: it passes by itself.
        DestinationRefused: sending the same again gives the same.
    """
    if status == SUCCESS:
        return "accepted"
    if status == DUPLICATE:
        return "accepted: it had the object already (0x0111)"
    if 0xB000 <= status <= 0xBFFF or status in _OTHER_WARNINGS:
        said = f"accepted with warning 0x{status:04X}"
        return f"{said}: {_WARNINGS[status]}" if status in _WARNINGS else said
    raise trouble(status, destination)


def trouble(status: int, destination: Destination) -> GatewayError:
    """The error that a failure status stands for."""
    if 0xA700 <= status <= 0xA7FF:
        return DestinationUnavailable(f"{destination} is out of resources (0x{status:04X})")
    if status in _PASSES:
        return DestinationUnavailable(
            f"{destination} couldn't take the object just now (0x{status:04X})"
        )
    if 0xC000 <= status <= 0xCFFF:
        return NotUnderstood(
            f"{destination} says that it can't understand the object (0x{status:04X}); look "
            "into its log for what it misses, then send again with 'tritome jobs retry'"
        )
    if 0xA900 <= status <= 0xA9FF:
        advice = "the object doesn't match its SOP class in its eyes; look into its log"
    else:
        advice = _WHAT_TO_DO.get(status, "look into its log")
    return DestinationRefused(
        f"{destination} refused the object with status 0x{status:04X}: {advice}. Then send "
        "again with 'tritome jobs retry'"
    )
