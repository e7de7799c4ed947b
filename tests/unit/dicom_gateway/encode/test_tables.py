"""highdicom's table of modules, with shared values: the same content, and it is what is used."""

from __future__ import annotations

import json
import pkgutil
import sys

from highdicom import _standard_utils

import dicom_gateway.encode  # noqa: F401 - it lets highdicom use ours
from dicom_gateway.encode.tables import module_attribute_map


def test_the_table_says_what_highdicoms_says() -> None:
    """Every module, every attribute."""
    own = pkgutil.get_data("highdicom", "_standard/module_attribute_map.json")
    assert own is not None
    assert module_attribute_map() == json.loads(own)


def test_equal_values_are_the_same_one() -> None:
    """That is what it is for."""
    attributes = [one for module in module_attribute_map().values() for one in module]
    assert len({id(one) for one in attributes}) < len(attributes) * 0.7


def test_highdicom_asks_it() -> None:
    """A release of highdicom that reads its table elsewhere would cost the memory again."""
    asking = {
        name: module.get_module_attribute_map
        for name, module in sys.modules.items()
        if name.startswith("highdicom.") and hasattr(module, "get_module_attribute_map")
    }
    assert {"highdicom._standard_utils", "highdicom.base"} <= set(asking)
    assert set(asking.values()) == {module_attribute_map}
    assert _standard_utils.does_iod_have_pixel_data("1.2.840.10008.5.1.4.1.1.2")
    assert not _standard_utils.does_iod_have_pixel_data("1.2.840.10008.5.1.4.1.1.88.33")
