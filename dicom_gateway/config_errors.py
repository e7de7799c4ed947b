"""What a person is told about a gateway.yaml that is wrong: line, key, what to write instead.

In: the text of the file, and what pydantic or YAML said of it. Out: sentences. Nothing else of
pydantic's own wording gets through than what helps.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

Place = tuple[str | int, ...]
_NOTHING = "tag:yaml.org,2002:null"
_NUMBER, _WHOLE, _KEYS = "write a number", "write a whole number", "write its keys below it"
_WORDS = {
    "string_type": "write a text; in quotes where it looks like a number or a yes",
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_from_float": _WHOLE,
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "finite_number": "write a number that ends; a very long time is a large one",
    "bool_type": "write true or false",
    "bool_parsing": "write true or false",
    "tuple_type": "write a list: [one, another]",
    "model_type": _KEYS,
    "mapping_type": _KEYS,
    "too_short": "list at least one",
    "missing": "this key is missing",
}
"""For pydantic's kinds of mistakes that it says in Python's words."""
_LEADING_PLACE = re.compile(r"([a-z][a-z0-9-]*(?:\.[a-z0-9-]+)*): ")


def where_yaml_breaks(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    """The line, or lines, and what YAML found there."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    # What YAML was reading began earlier than where it noticed; the mistake is between them.
    last = error.problem_mark.line + 1
    first = last if error.context_mark is None else error.context_mark.line + 1
    lines = f"line {last}" if first == last else f"lines {first} to {last}"
    return f"{lines}: {error.problem or error.context}"


def slips(text: str) -> Iterator[str]:
    """What YAML takes without a word, and nobody means: equal keys, and keys without a value.

    Of two equal keys YAML takes the last. A key without a value would count as not written: an
    empty `host-ip` binds a sender to no address, an empty `tls` encrypts nothing.
    """
    pending: list[tuple[Place, yaml.Node | None]] = [((), yaml.compose(text, yaml.SafeLoader))]
    while pending:
        place, node = pending.pop()
        if isinstance(node, yaml.SequenceNode):
            pending += [((*place, n), item) for n, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                name = str(key.value)
                where = f"line {key.start_mark.line + 1}: {_dotted((*place, name))}"
                if name in seen and name != "<<":
                    yield f"{where}: this key is written twice"
                seen.add(name)
                if value.tag == _NOTHING:
                    yield f"{where}: there is no value; write one, or take the key out as well"
                pending.append(((*place, name), value))


def explain(error: ValidationError, text: str, settings: type[BaseModel]) -> Iterator[str]:
    """One sentence for each mistake.

    Args:
        error: From validating what `text` holds.
        text: Of the whole file.
        settings: The model of the whole file, for the names of its keys.
    """
    root = yaml.compose(text, yaml.SafeLoader)
    problems = error.errors()
    places = [problem["loc"] for problem in problems]
    told: set[Place] = set()
    for problem in problems:
        loc = problem["loc"]
        if problem["type"] == "too_short" and any(p[: len(loc)] == loc != p for p in places):
            continue  # it only lacks the entry that the other line complains of
        place, line = _find(root, loc, keep_last=problem["type"] == "missing")
        if place and place in told and len(place) < len(loc):
            continue  # the same value, as another kind that it could have been
        told.add(place)
        said = _said(problem, settings)
        if not place and (leading := _LEADING_PLACE.match(said)):
            parts = [int(p) if p.isdigit() else p for p in leading[1].split(".")]
            line = _find(root, tuple(parts), keep_last=False)[1]
        where = f"line {line}: " if line else ""
        yield f"{where}{_dotted(place)}: {said}" if place else f"{where}{said}"


def _said(problem: Any, settings: type[BaseModel]) -> str:
    if problem["type"] == "extra_forbidden":
        key = str(problem["loc"][-1])
        # Known elsewhere, not here: the nearest other one is meant.
        near = difflib.get_close_matches(key, sorted(_all_keys(settings) - {key}), n=1)
        return "unknown key" + (f"; did you mean '{near[0]}'?" if near else "")
    return _WORDS.get(problem["type"]) or str(problem["msg"]).removeprefix("Value error, ")


def _find(
    root: yaml.Node | None, loc: Sequence[str | int], *, keep_last: bool
) -> tuple[Place, int]:
    """The place as it is in the file, and the line of the deepest key of it; 0 for none.

    pydantic puts names of types between the keys where a value may be of several kinds;
    those are left out.
    """
    node, line = root, 0
    place: list[str | int] = []
    for number, part in enumerate(loc):
        found: yaml.Node | None = None
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            found = node.value[part]
            line = found.start_mark.line + 1
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if str(key.value) == str(part):
                    found, line = value, key.start_mark.line + 1
        if found is not None:
            node = found
            place.append(part)
        elif keep_last and number == len(loc) - 1:
            place.append(part)
    return tuple(place), line


def _dotted(place: Place) -> str:
    return ".".join(str(part) for part in place)


def _all_keys(section: type[BaseModel]) -> set[str]:
    keys: set[str] = set()
    pending: list[Any] = [section]
    seen: list[Any] = []  # conditions hold conditions
    while pending:
        kind = pending.pop()
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if kind in seen:
                continue
            seen.append(kind)
            for name, info in kind.model_fields.items():
                keys.add(info.alias or name)
                pending.append(info.annotation)
        else:
            pending.extend(getattr(kind, "__args__", ()))
    return keys
