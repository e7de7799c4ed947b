"""What stands in a bundle's pipelines where its file readers and writers stood.

Serving reads no files and writes none. A reader becomes `Loaded`, which does what the reader
would have done with the array once it was in memory; a writer becomes `Written`, which does
nothing and remembers which keys the bundle wanted written: these are its results.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.transforms import EnsureChannelFirst, MapTransform
from monai.utils import get_equivalent_dtype

READERS = ("LoadImage",)
"""Transforms that read files, without the d, D or Dict at the end of a dictionary's twin."""

WRITERS = ("SaveImage", "SaveClassification")
"""Transforms that write files, likewise."""


class Loaded(MapTransform):  # type: ignore[misc]
    """What is left of a LoadImaged when the image is in memory: its dtype, its channel axis.

    Attributes:
        array: It stands for a LoadImage, which knows no keys.
    """

    def __init__(
        self,
        keys: Any,
        dtype: Any = "float32",
        *,
        image_only: bool = True,
        ensure_channel_first: bool = False,
        meta_key_postfix: str = "meta_dict",
        allow_missing_keys: bool = False,
        array: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.array = array
        self.dtype = None if dtype is None else get_equivalent_dtype(dtype, torch.Tensor)
        self.image_only = bool(image_only)
        self.meta_key_postfix = meta_key_postfix
        self._first = EnsureChannelFirst() if ensure_channel_first else None

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """Casts as the reader would, and puts the channels first where it would."""
        found = dict(data)
        for key in self.key_iterator(found):
            image = found[key]
            if self.dtype is not None and image.dtype != self.dtype:
                image = image.to(self.dtype)
            if self._first is not None:
                image = self._first(image)
            found[key] = image
            if not self.image_only:
                found[f"{key}_{self.meta_key_postfix}"] = image.meta
        return found


class Written(MapTransform):  # type: ignore[misc]
    """What is left of a writer: the keys that are the bundle's results.

    Attributes:
        integer: True where the writer casts to an integer dtype, which cuts decimals off.
        scores: True for a classification's writer.
    """

    def __init__(
        self, keys: Any, output_dtype: Any = None, scores: bool = False, **_: object
    ) -> None:
        super().__init__(keys, allow_missing_keys=True)
        dtype = None if output_dtype is None else get_equivalent_dtype(output_dtype, torch.Tensor)
        self.integer = dtype is not None and not dtype.is_floating_point
        self.scores = scores

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """Nothing is written."""
        return dict(data)
