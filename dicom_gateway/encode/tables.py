"""highdicom's table of the standard's modules, in a fifth of its memory.

highdicom asks it whether an IOD has pixels, and reads 22 MB of JSON for that with the first
object that is made: 900,000 objects, most of them equal to another, 62 MB that stay. Here
equal ones are the same one, and 11 MB stay. Nothing else is different; where highdicom is built
in another way one day, it reads its table itself again.
"""

from __future__ import annotations

import json
import pkgutil
import sys
from collections.abc import Hashable
from functools import lru_cache
from typing import Any

from highdicom import _standard_utils

_TABLE = "_standard/module_attribute_map.json"
_READS_IT = "get_module_attribute_map"


@lru_cache(maxsize=1)
def module_attribute_map() -> dict[str, list[dict[str, Any]]]:
    """As highdicom's own: attributes by module. Equal values are shared: not to be changed."""
    shared: dict[Hashable, Any] = {}

    def share(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = []
        for key, value in pairs:
            if not isinstance(value, list):
                values.append((key, sys.intern(value) if isinstance(value, str) else value))
                continue
            if value and not isinstance(value[0], str):
                return dict(pairs)  # the table itself
            path = tuple(map(sys.intern, value))
            values.append((key, shared.setdefault(path, list(path))))
        one = tuple((key, id(value)) for key, value in values)
        return shared.setdefault(one, dict(values))  # type: ignore[no-any-return]

    table: dict[str, list[dict[str, Any]]] = json.loads(_read_table(), object_pairs_hook=share)
    return table


def _read_table() -> str:
    found = pkgutil.get_data("highdicom", _TABLE)
    if found is None:
        raise FileNotFoundError(_TABLE)
    return found.decode("utf-8")  # the bytes needn't stay while it is taken apart


def share_tables() -> None:
    """Lets highdicom use this one; call it when its modules are imported, before any object."""
    own = getattr(_standard_utils, _READS_IT, None)
    if own is None:
        return
    for name, module in list(sys.modules.items()):
        # Each of its modules that asks has the function under a name of its own.
        if name.partition(".")[0] == "highdicom" and getattr(module, _READS_IT, None) is own:
            setattr(module, _READS_IT, module_attribute_map)
