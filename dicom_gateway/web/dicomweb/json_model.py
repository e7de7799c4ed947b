"""DICOMweb, DICOM JSON: a data set as peers and browsers read it.

In: a data set and the tags that are wanted of it. Out: the JSON model, element by element: one
that can't be read leaves the others as they are.

Source: PS3.18 Annex F.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from pydicom.dataset import Dataset

from dicom_gateway.web.dicomweb.headers import UNREADABLE

_BULK_BYTES = 1 << 10


def as_json(ds: Dataset, tags: Iterable[int]) -> dict[str, Any]:
    """Those of `tags` that the data set has and that can be read, and the character set.

    Binary values of more than a kilobyte are left out, also in sequences.
    """
    found: dict[str, Any] = {}
    for tag in tags:
        with suppress(*UNREADABLE):
            if tag not in ds:
                continue
            one = Dataset()
            one.add(ds[tag])
            found |= _sound(
                one.to_json_dict(
                    bulk_data_threshold=_BULK_BYTES,
                    bulk_data_element_handler=lambda _element: "",
                    suppress_invalid_tags=True,
                )
            )
    # JSON is UTF-8, whatever the file is in.
    found["00080005"] = {"vr": "CS", "Value": ["ISO_IR 192"]}
    return found


def _sound(value: Any) -> Any:
    """Without bulk data, and with a text for each number that JSON has no number for."""
    if isinstance(value, dict):
        return {
            name: _sound(one)
            for name, one in value.items()
            if not (isinstance(one, dict) and "BulkDataURI" in one)
        }
    if isinstance(value, list):
        return [_sound(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)  # "NaN", "Infinity", "-Infinity"
    return value
