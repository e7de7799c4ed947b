"""The `routing` section of gateway.yaml: rules, conditions, priorities.

In: what a person wrote. Out: frozen settings; tags are checked against the DICOM dictionary
and patterns are compiled once, so that a mistake is told at start, with its line, and not
when a study comes. What the rules mean is in `route`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydicom._dicom_dict import DicomDictionary
from pydicom.datadict import keyword_for_tag, tag_for_keyword

from dicom_gateway.config_base import Section
from dicom_gateway.records import Priority

_TAG = re.compile(r"\(?([0-9A-Fa-f]{4}),? ?([0-9A-Fa-f]{4})\)?")


class Plane(StrEnum):
    """How slices lie, by the axis of the patient that their normal is nearest to."""

    AXIAL = "axial"
    CORONAL = "coronal"
    SAGITTAL = "sagittal"
    OBLIQUE = "oblique"


class Choice(StrEnum):
    """Which of a study's series that fulfil the conditions a rule takes."""

    EVERY = "every"
    """Each of them, as soon as it is complete."""
    LARGEST = "largest"
    """The one with most slices, once the study is complete."""
    THINNEST = "thinnest"
    """The one with the thinnest slices, once the study is complete."""


def parse_tag_path(text: str) -> tuple[int, ...]:
    """The tags of a path such as `RequestAttributesSequence.(0032,1060)`, outermost first.

    Raises:
        ValueError: a part is neither a keyword of the DICOM dictionary nor (gggg,eeee).
    """
    parts = [part.strip() for part in text.split(".")]
    return tuple(_tag(part) for part in parts)


def tag_name(tag: int) -> str:
    """Keyword and number, for people: SliceThickness (0018,0050)."""
    number = f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
    keyword = keyword_for_tag(tag)
    return f"{keyword} {number}" if keyword else number


def names_title(patterns: Sequence[str], ae_title: str) -> bool:
    """Whether these patterns mean an AE title; none at all mean every one."""
    return not patterns or any(_title_pattern(one).fullmatch(ae_title) for one in patterns)


@lru_cache(maxsize=1024)
def _title_pattern(pattern: str) -> re.Pattern[str]:
    """Only * and ? are special: brackets may be part of an AE title (PS3.5 6.2)."""
    special = {"*": ".*", "?": "."}
    return re.compile("".join(special.get(one, re.escape(one)) for one in pattern), re.DOTALL)


def _tag(text: str) -> int:
    number = _TAG.fullmatch(text)
    if number:
        return int(number[1] + number[2], 16)
    tag = tag_for_keyword(text)
    if tag is None:
        near = difflib.get_close_matches(text, _keywords(), n=1)
        hint = f"; did you mean '{near[0]}'?" if near else "; write its keyword or (gggg,eeee)"
        msg = f"'{text}' is no DICOM keyword{hint}"
        raise ValueError(msg)
    return tag


@lru_cache(maxsize=1)
def _keywords() -> list[str]:
    return sorted({entry[4] for entry in DicomDictionary.values() if entry[4]})


def _tag_path(value: str) -> str:
    parse_tag_path(value)
    return value


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        msg = f"no valid pattern (Python's regular expressions): {error}"
        raise ValueError(msg) from error
    return value


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)


TagPath = Annotated[str, AfterValidator(_tag_path)]
Pattern = Annotated[str, AfterValidator(_pattern)]
Scalar: TypeAlias = str | int | float
Scalars = Annotated[
    tuple[Scalar, ...],
    BeforeValidator(_as_list, json_schema_input_type=Scalar | tuple[Scalar, ...]),
    Field(min_length=1),
]
Planes = Annotated[
    tuple[Plane, ...],
    BeforeValidator(_as_list, json_schema_input_type=Plane | tuple[Plane, ...]),
    Field(min_length=1),
]
TitlePattern = Annotated[str, Field(min_length=1, max_length=16)]
TitlePatterns = Annotated[
    tuple[TitlePattern, ...],
    BeforeValidator(_as_list, json_schema_input_type=TitlePattern | tuple[TitlePattern, ...]),
]
"""AE titles; * stands for any characters, ? for one."""
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]


class Bounds(Section):
    """Comparisons of a number; all that are given must hold."""

    at_least: float | None = None
    at_most: float | None = None
    more_than: float | None = None
    less_than: float | None = None
    between: tuple[float, float] | None = None
    """From, to; both belong to it."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Bounds:
        if self.between is not None and self.between[0] > self.between[1]:
            msg = f"between {list(self.between)} holds nothing; write the smaller number first"
            raise ValueError(msg)
        if type(self) is Bounds and not self.given():
            msg = "say which numbers: at-least, at-most, more-than, less-than or between"
            raise ValueError(msg)
        return self

    def given(self) -> dict[str, Any]:
        """The comparisons that are there, by their key."""
        names = ("at_least", "at_most", "more_than", "less_than", "between")
        found = {name: getattr(self, name) for name in names}
        return {name.replace("_", "-"): value for name, value in found.items() if value is not None}


class Condition(Bounds):
    """One condition on a series: a tag and its tests, or one of the other subjects.

    Where a tag has several values, or lies in several items of a sequence, one of them must
    pass all the tests; `not-equals` asks that none of them equals. Texts are compared without
    regard to case and outer spaces; a pattern may match anywhere in a text.
    """

    tag: TagPath | None = None
    """Keyword or (gggg,eeee); in sequences with dots between: A.B.C."""
    equals: Scalars | None = None
    """This value, or one of these."""
    not_equals: Scalars | None = None
    matches: Pattern | None = None
    present: bool | None = None
    """True: there and not empty. False: absent or empty."""

    plane: Planes | None = None
    slice_thickness_mm: Bounds | None = None
    kernel: Pattern | None = None
    """Convolution Kernel (0018,1210), as a pattern."""
    slices: Bounds | None = None
    """How many the series has: frames of all instances together."""
    any_of: tuple[Condition, ...] = ()
    none_of: tuple[Condition, ...] = ()

    @model_validator(mode="after")
    def _asks_one_thing(self) -> Condition:
        subjects = {
            "tag": self.tag,
            "plane": self.plane,
            "slice-thickness-mm": self.slice_thickness_mm,
            "kernel": self.kernel,
            "slices": self.slices,
            "any-of": self.any_of or None,
            "none-of": self.none_of or None,
        }
        given = [name for name, value in subjects.items() if value is not None]
        if len(given) != 1:
            what = " and ".join(given) if given else "none"
            msg = f"a condition asks for one of {', '.join(subjects)}; here is {what}"
            raise ValueError(msg)
        tests = [self.equals, self.not_equals, self.matches, self.present]
        tested = bool(self.given()) or any(test is not None for test in tests)
        if self.tag is not None and not tested:
            msg = (
                "say what the tag must be: equals, not-equals, at-least, at-most, more-than, "
                "less-than, between, matches or present"
            )
            raise ValueError(msg)
        if self.tag is None and tested:
            msg = f"equals, matches, at-least and so on belong to a tag, not to {given[0]}"
            raise ValueError(msg)
        if self.present is False and (self.given() or len([t for t in tests if t is not None]) > 1):
            msg = "what is not present can't be tested for anything else"
            raise ValueError(msg)
        return self


class Peers(Section):
    """Whom a rule is for; nobody named means everybody."""

    called: TitlePatterns = ()
    """Our own AE titles that it is for; * and ? stand for any characters, and any one."""
    calling: TitlePatterns = ()
    """AE titles of senders."""
    where: tuple[Condition, ...] = ()
    """All of these must hold."""


class Role(Section):
    """One input of a pipeline with several: which series it takes."""

    where: tuple[Condition, ...] = Field(min_length=1)
    choose: Choice = Choice.LARGEST
    """Where several series fulfil the conditions."""

    @model_validator(mode="after")
    def _takes_one(self) -> Role:
        if self.choose is Choice.EVERY:
            msg = "a role takes one series: choose largest or thinnest"
            raise ValueError(msg)
        return self


class Rule(Peers):
    """Which series go through which pipelines, and whereto."""

    name: Name
    choose: Choice = Choice.EVERY
    roles: Mapping[Name, Role] = {}
    """For pipelines with several inputs: what each of them takes."""
    pipelines: tuple[str, ...] = Field(min_length=1)
    destinations: tuple[str, ...] | None = None
    """Those of the AE title where not given."""
    priority: Priority | None = None
    """That of the AE title where not given."""

    @model_validator(mode="after")
    def _chooses_once(self) -> Rule:
        if self.roles and self.choose is not Choice.EVERY:
            msg = "with roles, each role chooses for itself; write choose there"
            raise ValueError(msg)
        return self


class PriorityRule(Peers):
    """What makes a series urgent, or not: before what rules and AE titles say."""

    priority: Priority

    @model_validator(mode="after")
    def _is_for_somebody(self) -> PriorityRule:
        if not (self.called or self.calling or self.where):
            msg = "say which series it is for: called, calling or where"
            raise ValueError(msg)
        return self


class RoutingSettings(Section):
    """Rules beside the short form under dicom.scp.ae-titles.

    All rules that match count, each for its pipelines; where two take a series to the same one,
    the first one's priority and destinations are used. What a rule chooses within a study is a
    job of its own, unless another job sends the same to all of its destinations. The short form
    comes last.
    """

    rules: tuple[Rule, ...] = ()
    priorities: tuple[PriorityRule, ...] = ()
    """The first that matches counts."""

    @model_validator(mode="after")
    def _names_differ(self) -> RoutingSettings:
        names = [rule.name for rule in self.rules]
        for name in names:
            if names.count(name) > 1:
                msg = f"two rules have the name '{name}'; the stories of jobs tell them by it"
                raise ValueError(msg)
        return self
