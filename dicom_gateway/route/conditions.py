"""One condition of a rule, asked of one series.

In: a `Condition` from gateway.yaml, and the facts. Out: a `Finding`: what was asked, what was
found, whether it holds. The wording of a finding never holds a value that may be a
patient's; the value found is for `tritome route explain` alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from dicom_gateway.config_routing import (
    Bounds,
    Condition,
    Peers,
    Scalar,
    names_title,
    parse_tag_path,
    tag_name,
)
from dicom_gateway.route.facts import SeriesFacts
from dicom_gateway.route.tags import Value, is_patients, values_at

MASKED = "(masked)"
ABSENT = "(absent)"
_LONGEST = 1024
"""A pattern is asked of so many characters at most: a peer chooses the text."""
_NUMBER = re.compile(r"[+-]?(\d{1,64}\.?\d{0,64}|\.\d{1,64})([eE][+-]?\d{1,3})?", re.ASCII)
"""DS and IS (PS3.5 6.2), and what Python writes of the binary ones; no infinity, no NaN."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One condition and what came of it.

    Attributes:
        condition: As a person reads it; without what may be a patient's.
        found: What the series has there.
        holds: Whether the condition does.
        is_patients: `found` may say who the patient is.
        asked: The condition with all its values, for a person who asks.
    """

    condition: str
    found: str
    holds: bool
    is_patients: bool = False
    asked: str = ""

    def shown(self, *, values: bool) -> tuple[str, str]:
        """Condition and what was found; with a patient's values only where `values` is true."""
        if not self.is_patients:
            return self.condition, self.found
        if values:
            return self.asked or self.condition, self.found
        return self.condition, self.found if self.found == ABSENT else MASKED


def examine(peers: Peers, facts: SeriesFacts) -> list[Finding]:
    """Everything that a rule, a role or a priority asks, in the order in which it is written."""
    findings = []
    series = facts.series
    for name, patterns, title in (
        ("called", peers.called, series.called_ae_title),
        ("calling", peers.calling, series.calling_ae_title),
    ):
        if patterns:
            condition = f"{name} AE title is {_either(patterns)}"
            findings.append(Finding(condition, title, names_title(patterns, title)))
    return findings + examine_all(peers.where, facts)


def examine_all(conditions: Iterable[Condition], facts: SeriesFacts) -> list[Finding]:
    """Each condition by itself."""
    return [examine_one(condition, facts) for condition in conditions]


def examine_one(condition: Condition, facts: SeriesFacts) -> Finding:
    """One condition."""
    if condition.tag is not None:
        return _tag(condition, facts)
    if condition.plane is not None:
        found = facts.plane.value if facts.plane else "(unknown)"
        return Finding(f"plane is {_either(condition.plane)}", found, found in condition.plane)
    if condition.slice_thickness_mm is not None:
        thickness = facts.slice_thickness_mm
        asked = f"slice thickness {_say_bounds(condition.slice_thickness_mm)} mm"
        holds = thickness is not None and _within(thickness, condition.slice_thickness_mm)
        return Finding(asked, ABSENT if thickness is None else f"{thickness:g}", holds)
    if condition.kernel is not None:
        holds = re.search(condition.kernel, facts.kernel[:_LONGEST]) is not None
        return Finding(f"kernel matches '{condition.kernel}'", facts.kernel or ABSENT, holds)
    if condition.slices is not None:
        asked = f"number of slices {_say_bounds(condition.slices)}"
        return Finding(asked, str(facts.slices), _within(facts.slices, condition.slices))
    return _group(condition, facts)


def _group(condition: Condition, facts: SeriesFacts) -> Finding:
    wants_any = bool(condition.any_of)
    inner = examine_all(condition.any_of or condition.none_of, facts)
    holds = any(one.holds for one in inner)
    name = "any of" if wants_any else "none of"
    return Finding(
        condition=f"{name} ({'; '.join(one.condition for one in inner)})",
        found="; ".join(one.found for one in inner),
        holds=holds if wants_any else not holds,
        is_patients=any(one.is_patients for one in inner),
        asked=f"{name} ({'; '.join(one.asked or one.condition for one in inner)})",
    )


def _tag(condition: Condition, facts: SeriesFacts) -> Finding:
    assert condition.tag is not None
    path = parse_tag_path(condition.tag)
    values = values_at(facts.header, path)
    name = " of ".join(tag_name(tag) for tag in reversed(path))
    secret = is_patients(path)
    found = "\\".join(one.text for one in values)
    if len(found) > 80:
        found = f"{found[:80]} ..."
    return Finding(
        condition=f"{name} {_say_tests(condition, show=not secret)}",
        found=found or ABSENT,
        holds=_passes(condition, values),
        is_patients=secret,
        asked=f"{name} {_say_tests(condition, show=True)}",
    )


def _passes(condition: Condition, values: Sequence[Value]) -> bool:
    if condition.present is not None and condition.present != bool(values):
        return False
    if condition.not_equals is not None and any(
        _same(value, other) for value in values for other in condition.not_equals
    ):
        return False
    tests_a_value = condition.equals or condition.matches is not None or condition.given()
    return not tests_a_value or any(_value_passes(condition, value) for value in values)


def _value_passes(condition: Condition, value: Value) -> bool:
    if condition.equals and not any(_same(value, other) for other in condition.equals):
        return False
    if condition.matches is not None and not re.search(condition.matches, value.text[:_LONGEST]):
        return False
    if not condition.given():
        return True
    number = _number(value.text)
    return number is not None and _within(float(number), condition)


def _same(value: Value, other: Scalar) -> bool:
    asked = str(other).strip()
    if value.is_number:
        left, right = _number(value.text), _number(asked)
        if left is not None and right is not None:
            return left == right
    return value.text.casefold() == asked.casefold()


def _number(text: str) -> Decimal | None:
    """Exactly what is written: 17 digits of two values may differ in the last one only."""
    return Decimal(text) if _NUMBER.fullmatch(text) else None


def _within(number: float, bounds: Bounds) -> bool:
    return (
        (bounds.at_least is None or number >= bounds.at_least)
        and (bounds.at_most is None or number <= bounds.at_most)
        and (bounds.more_than is None or number > bounds.more_than)
        and (bounds.less_than is None or number < bounds.less_than)
        and (bounds.between is None or bounds.between[0] <= number <= bounds.between[1])
    )


def _say_tests(condition: Condition, *, show: bool) -> str:
    said = []
    if condition.present is not None:
        said.append("is present" if condition.present else "is absent")
    if condition.equals:
        said.append(f"equals {_either(condition.equals) if show else MASKED}")
    if condition.not_equals:
        said.append(f"does not equal {_either(condition.not_equals) if show else MASKED}")
    if condition.matches is not None:
        said.append(f"matches '{condition.matches}'" if show else f"matches {MASKED}")
    if condition.given():
        said.append(_say_bounds(condition) if show else f"is within {MASKED}")
    return " and ".join(said)


def _say_bounds(bounds: Bounds) -> str:
    said = []
    for name, value in bounds.given().items():
        if name == "between":
            said.append(f"is between {value[0]:g} and {value[1]:g}")
        else:
            said.append(f"is {name.replace('-', ' ')} {value:g}")
    return " and ".join(said)


def _either(values: Sequence[Any]) -> str:
    return " or ".join(str(value) for value in values)
