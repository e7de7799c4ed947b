"""A SEG made straight from a mask with highdicom, for tests of what reads one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from highdicom.color import CIELabColor
from highdicom.sr.coding import CodedConcept
from numpy.typing import NDArray
from pydicom.uid import generate_uid

LEFT = CodedConcept("7771000", "SCT", "Left")
RIGHT = CodedConcept("24028007", "SCT", "Right")
RED = (220, 90, 80)
BLUE = (70, 130, 220)


def a_lung_segmentation(
    path: Path, source_files: Sequence[Path], mask_kji: NDArray[np.uint8]
) -> Path:
    """Writes a binary SEG: label 1 the left lung in red, label 2 the right one in blue."""
    described = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=f"{side.meaning} lung",
            segmented_property_category=CodedConcept("91723000", "SCT", "Anatomical Structure"),
            segmented_property_type=_lung(side),
            algorithm_type="AUTOMATIC",
            algorithm_identification=hd.AlgorithmIdentificationSequence(
                "test", CodedConcept("123109", "DCM", "Manual Processing"), "1"
            ),
            display_color=CIELabColor.from_rgb(*colour),
        )
        for number, side, colour in ((1, LEFT, RED), (2, RIGHT, BLUE))
    ]
    segmentation = hd.seg.Segmentation(
        source_images=[pydicom.dcmread(file) for file in source_files],
        pixel_array=mask_kji,
        segmentation_type="BINARY",
        segment_descriptions=described,
        series_instance_uid=generate_uid(),
        series_number=100,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="test",
        manufacturer_model_name="test",
        software_versions="1",
        device_serial_number="1",
    )
    segmentation.save_as(path)
    return path


def _lung(side: CodedConcept) -> CodedConcept:
    lung = CodedConcept("39607008", "SCT", "Lung")
    lung.SegmentedPropertyTypeModifierCodeSequence = pydicom.Sequence([side])
    return lung
