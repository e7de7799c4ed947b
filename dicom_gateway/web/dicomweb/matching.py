"""DICOMweb, matching: values of a query become conditions on the catalogue.

Source: PS3.4 C.2.2.2 (single value, list of UIDs, wildcard, range), PS3.18 8.3.4.
"""

from __future__ import annotations

import re

import sqlalchemy as sa

from dicom_gateway.web.answers import bad_request
from dicom_gateway.web.dicomweb.attributes import MATCHED

_UIDS = re.compile(r"[0-9.]{1,64}(?:[,\\][0-9.]{1,64})*")
_DATES = re.compile(r"(\d{8})?-(\d{8})?|\d{8}")
_TIMES = re.compile(r"(\d{2,6}(?:\.\d{1,6})?)?-(\d{2,6}(?:\.\d{1,6})?)?|\d{2,6}(?:\.\d{1,6})?")
_VALUE_LIMIT = 256
_UIDS_LIMIT = 16384


def condition(keyword: str, value: str, dialect: str) -> sa.ColumnElement[bool] | None:
    """What a row must be; None where the value matches everything.

    Args:
        keyword: One of `MATCHED`.
        value: As the query has it.
        dialect: Of the database: "sqlite" or "postgresql".

    Raises:
        HttpError: 400: the value can't be one of this attribute.
    """
    _, column, kind = MATCHED[keyword]
    if value in ("", "*"):
        return None
    if len(value) > (_UIDS_LIMIT if kind == "uid" else _VALUE_LIMIT):
        msg = f"the value for {keyword} is too long"
        raise bad_request(msg)
    if "\0" in value:
        msg = f"no {keyword} has a NUL in it"  # PostgreSQL doesn't even take the question
        raise bad_request(msg)
    if kind == "uid":
        if not _UIDS.fullmatch(value):
            msg = f"{keyword} takes one UID, or several with commas between them"
            raise bad_request(msg)
        return column.in_(re.split(r"[,\\]", value))
    if kind == "number":
        if not re.fullmatch(r"[+-]?\d{1,12}", value):
            msg = f"{keyword} takes a whole number"
            raise bad_request(msg)
        return column == int(value)
    if kind in ("date", "time"):
        return _range(keyword, column, value, _DATES if kind == "date" else _TIMES)
    if kind == "name":
        return _name(column, value.casefold().rstrip("^"), dialect)
    if "*" in value or "?" in value:
        return _wildcard(column, value, dialect)
    return column == value


def _name(
    column: sa.ColumnElement[str] | sa.ColumnElement[int], name: str, dialect: str
) -> sa.ColumnElement[bool]:
    """Without regard to case, as PS3.4 C.2.2.2.1 allows; trailing components may be left out.

    A name may be there in three scripts (PS3.5 6.2.1): each of them is that name.
    """
    ends = ["", "=*"] if "*" in name or "?" in name else ["", "=*", "^*"]
    return sa.or_(
        *(_wildcard(column, start + name + end, dialect) for start in ("", "*=") for end in ends)
    )


def _range(
    keyword: str,
    column: sa.ColumnElement[str] | sa.ColumnElement[int],
    value: str,
    form: re.Pattern[str],
) -> sa.ColumnElement[bool]:
    if not form.fullmatch(value) or value == "-":
        msg = f"{keyword} takes one value or a range, such as 20260101-20260131 for a date"
        raise bad_request(msg)
    if "-" not in value:
        return _begins_with(column, value)
    first, _, last = value.partition("-")
    conditions = [column != ""]
    if first:
        conditions.append(column >= first)
    if last:
        conditions.append(sa.or_(column < last, _begins_with(column, last)))
    return sa.and_(*conditions)


def _begins_with(
    column: sa.ColumnElement[str] | sa.ColumnElement[int], digits: str
) -> sa.ColumnElement[bool]:
    """A time of 1011 means all of 10:11 (PS3.4 C.2.2.2.5); a whole date only itself."""
    return column.like(digits + "%")


def _wildcard(
    column: sa.ColumnElement[str] | sa.ColumnElement[int], pattern: str, dialect: str
) -> sa.ColumnElement[bool]:
    if dialect == "sqlite":
        # SQLite's LIKE would not tell capitals from small letters.
        return column.op("GLOB", is_comparison=True)(pattern.replace("[", "[[]"))
    escaped = re.sub(r"([\\%_])", r"\\\1", pattern).replace("*", "%").replace("?", "_")
    return column.like(escaped, escape="\\")
