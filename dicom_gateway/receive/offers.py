"""Receive, what is offered: every storage class, every transfer syntax but the deflated ones.

In: the presentation contexts that a peer proposes. Out: those that we can take.

Source: PS3.8 9.3.2.2 (presentation contexts), PS3.4 B.5 (storage SOP classes).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from pydicom.uid import UID
from pynetdicom import build_context
from pynetdicom._globals import ALL_TRANSFER_SYNTAXES
from pynetdicom.presentation import PresentationContext
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import uid_to_service_class

VERIFICATION = UID("1.2.840.10008.1.1")
STORAGE_COMMITMENT = UID("1.2.840.10008.1.20.1")
"""Push Model (PS3.4 J.3.5)."""
_STANDARD_ROOT = "1.2.840.10008."
_COMPOSITE_ROOT = "1.2.840.10008.5.1.4.1.1."
_ELSEWHERE = frozenset(
    (
        "1.2.840.10008.5.1.1.27",  # Stored Print Storage (retired)
        "1.2.840.10008.5.1.1.29",  # Hardcopy Grayscale Image Storage (retired)
        "1.2.840.10008.5.1.1.30",  # Hardcopy Color Image Storage (retired)
        "1.2.840.10008.5.1.4.34.1",  # RT Beams Delivery Instruction Storage - Trial (retired)
    )
)
"""Storage classes of a patient's study outside the root of the others."""

_IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2"
_DEFLATED = frozenset(
    (
        "1.2.840.10008.1.2.1.99",  # Deflated Explicit VR Little Endian
        "1.2.840.10008.1.2.4.95",  # JPIP Referenced Deflate
        "1.2.840.10008.1.2.4.205",  # JPIP HTJ2K Referenced Deflate
        "1.2.840.10008.1.2.8.1",  # Deflated Image Frame Compression
    )
)
"""Left out: half a megabyte of them can become a gigabyte."""
_UNLISTED = frozenset(
    (
        "1.2.840.10008.1.2.1.98",  # Encapsulated Uncompressed Explicit VR Little Endian
        *(f"1.2.840.10008.1.2.4.{number}" for number in (*range(52, 57), *range(58, 67))),
    )
)
"""Retired JPEG processes, and one that pynetdicom doesn't list; all explicit little endian."""
TRANSFER_SYNTAXES = (frozenset(map(str, ALL_TRANSFER_SYNTAXES)) | _UNLISTED) - _DEFLATED
_UNCOMPRESSED = frozenset((_IMPLICIT_LITTLE_ENDIAN, "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"))


def offers(
    requested: Sequence[PresentationContext],
    *,
    private_sop_classes: Literal["all"] | Collection[str],
    storage_commitment: bool,
) -> list[PresentationContext]:
    """What we accept of what a peer proposes.

    Transfer syntaxes keep the peer's order, so that a compressed object is not decompressed
    on our account; implicit VR comes last, since it loses private value representations.
    """
    wanted: dict[str, list[str]] = {}
    for context in requested:
        abstract_syntax = str(context.abstract_syntax)
        if abstract_syntax == VERIFICATION:
            taken = _UNCOMPRESSED
        elif abstract_syntax == STORAGE_COMMITMENT:
            taken = _UNCOMPRESSED if storage_commitment else frozenset()
        elif is_storage(abstract_syntax, private_sop_classes):
            taken = TRANSFER_SYNTAXES
        else:
            continue
        known = wanted.setdefault(abstract_syntax, [])
        known += [str(syntax) for syntax in context.transfer_syntax if syntax in taken]
    return [
        build_context(
            abstract_syntax,
            sorted(dict.fromkeys(syntaxes), key=lambda s: s == _IMPLICIT_LITTLE_ENDIAN),
        )
        for abstract_syntax, syntaxes in wanted.items()
        if syntaxes
    ]


def is_storage(
    abstract_syntax: str, private_sop_classes: Literal["all"] | Collection[str] = "all"
) -> bool:
    """Whether it is the class of composite objects that belong to a patient's study.

    Retired and very new ones, which pynetdicom doesn't list, are known by their root; private
    ones are nearly always for storage (PS3.4 B.5), and taken as the settings say.
    """
    if not abstract_syntax.startswith(_STANDARD_ROOT):
        return private_sop_classes == "all" or abstract_syntax in private_sop_classes
    return (
        uid_to_service_class(abstract_syntax) is StorageServiceClass
        or abstract_syntax.startswith(_COMPOSITE_ROOT)
        or abstract_syntax in _ELSEWHERE
    )
