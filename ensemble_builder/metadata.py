"""What a bundle's metadata.json says: names, DICOM's word for the modality, irregular series.

In: the bundle's folder. Out: plain values; metadata only names things, and is often wrong, so
what can't be understood is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ensemble_builder.errors import BundleError

MODALITIES = frozenset({
    "BDUS", "BI", "BMD", "CFM", "CR", "CT", "DG", "DMS", "DX", "ES", "GM", "IO", "IVOCT", "IVUS",
    "LS", "MG", "MR", "NM", "OAM", "OCT", "OP", "OPM", "OPT", "OPTBSV", "OPTENF", "OPV", "OT",
    "PA", "PT", "PX", "RF", "RG", "SM", "TG", "US", "XA", "XC",
})  # fmt: skip
"""Defined Terms of Modality (PS3.3 C.7.3.1.1.1) that images have."""

_MEANT = {
    "CBCT": "CT",
    "COMPUTED TOMOGRAPHY": "CT",
    "ENDOSCOPY": "ES",
    "MAGNETIC RESONANCE": "MR",
    "MAMMOGRAM": "MG",
    "MAMMOGRAPHY": "MG",
    "MRI": "MR",
    "PET": "PT",
    "ULTRASOUND": "US",
    "X-RAY": "DX",
    "XRAY": "DX",
}
_NOTHING = frozenset({"", "N/A", "NONE", "REGULAR"})


def read_metadata(folder: Path) -> dict[str, Any]:
    """What configs/metadata.json says; nothing where there is none: it only gives names.

    Raises:
        BundleError: it can't be read, or is no object.
    """
    path = folder / "configs" / "metadata.json"
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        msg = f"configs/metadata.json can't be read ({why}); mend it or take it away"
        raise BundleError(msg) from error
    if not isinstance(found, dict):
        msg = "configs/metadata.json is not an object"
        raise BundleError(msg)
    return found


def text_of(metadata: Mapping[str, Any], *keys: str) -> str:
    """The first of these that says something; "" where none does."""
    return next((str(metadata[key]) for key in keys if metadata.get(key) is not None), "")


def side(metadata: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """`inputs` or `outputs` of its network_data_format."""
    formats = metadata.get("network_data_format")
    described = formats.get(name) if isinstance(formats, Mapping) else None
    return described if isinstance(described, Mapping) else {}


def first_output(outputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """What it says of the first output, whatever that is called."""
    return next((one for one in outputs.values() if isinstance(one, dict)), {})


def channel_names(described: Any) -> dict[int, str]:
    """channel_def as numbers and names, by number; whatever can't be read is left out."""
    stated = described.get("channel_def") if isinstance(described, Mapping) else None
    if not isinstance(stated, Mapping):
        return {}
    named = {int(key): str(name).strip() for key, name in stated.items() if str(key).isdecimal()}
    return dict(sorted(named.items()))


def image_names(described: Any) -> tuple[str, ...]:
    """Names of an input's images in their order; () where they don't tell one from another.

    Whoever feeds them names each; capitals and punctuation don't count there.
    """
    names = tuple(channel_names(described).values())
    plain = {"".join(c for c in name.lower() if c.isalnum()) for name in names}
    return names if len(plain - {""}) == len(names) else ()


def irregular_of(metadata: Mapping[str, Any]) -> str | None:
    """What it allows for irregular series.

    Raises:
        BundleError: something else than refuse, resample or split.
    """
    stated = metadata.get("irregular")
    if stated in (None, "refuse", "resample", "split"):
        return stated
    msg = f"configs/metadata.json: irregular is {stated!r}, expected refuse, resample or split"
    raise BundleError(msg)


def modality_of(inputs: Mapping[str, Any]) -> tuple[str, str]:
    """DICOM's word for the images' modality, and a note where it can't be said.

    A word that DICOM doesn't have is the modality of no series: none would ever be taken.

    Args:
        inputs: What the metadata says of each.
    """
    stated = [
        one["modality"]
        for one in inputs.values()
        if isinstance(one, Mapping) and one.get("modality") is not None
    ]
    said = stated[0] if stated else ""
    if isinstance(said, list) and len(said) == 1:
        said = said[0]
    word = str(said).strip().upper()
    if word in _NOTHING:
        return "", ""
    word = _MEANT.get(word, word)
    if word in MODALITIES:
        return word, ""
    return "", (
        f"metadata.json calls the modality {said!r}, which is no word of DICOM's for one: series "
        "of any modality are taken unless a rule says which"
    )
