"""The geometry gate: nothing leaves that doesn't lie where its mask lay.

In: a finished file, what it was made from. Out: nothing, or `EncodingFailed` with the code
`result_misplaced`. The file is read again from the disk, projected back by its own attributes
alone, and held against the mask and against the source files, which are read again too. The
code that encodes takes no part in it: a mistake of ours, or of a library, in order,
orientation, sides, references or bits can't go unnoticed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from dicom_gateway.encode.gate.common import Sides, check_belongs
from dicom_gateway.encode.gate.contours import check_structure_set
from dicom_gateway.encode.gate.pictures import check_picture, shown_planes
from dicom_gateway.encode.gate.reports import check_scores, check_volumes
from dicom_gateway.encode.gate.segmentations import check_segmentation
from dicom_gateway.encode.gate.truth import Contradictory, Misplaced, Truth, read_truth
from dicom_gateway.errors import EncodingFailed
from dicom_gateway.records import Output, Volume

__all__ = ["Gate", "Sides", "Truth", "read_sources_anew"]

_UNREADABLE = (
    InvalidDicomError,
    OSError,
    EOFError,
    AttributeError,
    AssertionError,
    LookupError,
    TypeError,
    ValueError,
    ArithmeticError,
    NotImplementedError,
    struct.error,
    RecursionError,
)


def read_sources_anew(volume: Volume) -> Truth:
    """What the files of a volume's source frames say.

    Raises:
        EncodingFailed: (result_misplaced) the volume doesn't lie where they do; another code
            where one can't be read any more.
    """
    try:
        return read_truth(volume)
    except Misplaced as error:
        raise _held("result", error) from error
    except _UNREADABLE as error:
        msg = (
            f"a source instance can't be read any more ({type(error).__name__}); "
            "send the series again"
        )
        raise EncodingFailed(msg) from error


@dataclass(frozen=True, slots=True)
class Gate:
    """Lets one finished object pass, or holds it.

    Attributes:
        path: Where it lies.
        truth: Its sources.
        uid: The SOP Instance UID that it is announced under.
        sop_class_uid: The class that it is announced as.
        what: Kind of object, in words.
        sides: Of all label maps that it was found with; without it, of its own alone.
    """

    path: Path
    truth: Truth
    uid: str
    sop_class_uid: str
    what: str
    sides: Sides | None = None

    def segmentation(self, mask: NDArray[Any], output: Output, *, binary: bool) -> None:
        """Of a SEG made from mask [K, J, I].

        Raises:
            EncodingFailed: (result_misplaced) so do all methods here.
        """
        with self._reread() as ds:
            self._check_sides(mask, output)
            check_segmentation(ds, mask, output, self.truth, binary=binary)

    def volumes(
        self, mask: NDArray[Any], output: Output, segmentation: tuple[str, str, str] | None
    ) -> None:
        """Of an SR with the volumes of mask [K, J, I]; it must refer to this SEG, if any."""
        with self._reread() as ds:
            self._check_sides(mask, output)
            check_volumes(ds, mask, output, self.truth, segmentation)

    def scores(self, scores: NDArray[np.float32], output: Output) -> None:
        """Of an SR with scores [n]."""
        with self._reread() as ds:
            check_scores(ds, scores, output, self.truth)

    def structure_set(self, mask: NDArray[Any], output: Output) -> None:
        """Of an RTSTRUCT made from mask [K, J, I]."""
        with self._reread() as ds:
            self._check_sides(mask, output)
            check_structure_set(ds, mask, output, self.truth)

    def picture(
        self,
        mask: NDArray[Any] | None,
        output: Output,
        pixels: Callable[[Sequence[int]], NDArray[np.float32]],
        scores: NDArray[np.float32] | None = None,
    ) -> None:
        """Of a Secondary Capture of mask [K, J, I], or of scores [n]."""
        with self._reread() as ds:
            if mask is not None:
                self._check_sides(mask, output)
            sources = pixels(shown_planes(ds, self.truth))
            check_picture(ds, mask, scores, output, self.truth, sources)

    def _check_sides(self, mask: NDArray[Any], output: Output) -> None:
        (self.sides or Sides([(mask, output)], self.truth)).check(output)

    @contextmanager
    def _reread(self) -> Iterator[Dataset]:
        try:
            ds = pydicom.dcmread(self.path)
            check_belongs(ds, self.truth, self.uid, self.sop_class_uid)
            yield ds
        except Misplaced as error:
            raise _held(self.what, error) from error
        except _UNREADABLE as error:
            why = Misplaced(f"it can't be read again ({type(error).__name__})")
            raise _held(self.what, why) from error


def _held(what: str, why: Misplaced) -> EncodingFailed:
    remedy = "Please report this"
    if isinstance(why, Contradictory):
        remedy = "Send images that belong together as one series, and others as series of their own"
    msg = (
        f"the finished {what} is held back and was not sent: {why}; the object is kept in the "
        f"folder 'held' of the store. {remedy}"
    )
    return EncodingFailed(msg, code="result_misplaced")
