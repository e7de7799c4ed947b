"""DICOMweb, QIDO-RS: studies, series and instances that match.

In: a query. Out: DICOM JSON. Reads the catalogue; nothing is written.

Source: PS3.18 10.6.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from pydicom.datadict import tag_for_keyword

from dicom_gateway.database import arrivals, catalogue, instances, jobs, reading, results
from dicom_gateway.web.answers import bad_request
from dicom_gateway.web.dicomweb.attributes import (
    MATCHED,
    RETURNED,
    Level,
    hexadecimal,
    keyword_of,
    tag_of,
)
from dicom_gateway.web.dicomweb.catalogue import PATIENCE_S, Catalogue
from dicom_gateway.web.dicomweb.headers import HeaderUnreadable, read_elements
from dicom_gateway.web.dicomweb.json_model import as_json
from dicom_gateway.web.dicomweb.matching import condition

LIMIT = 1000
"""Results of one answer; a peer asks on with `offset`."""
_LEVELS: tuple[Level, ...] = ("study", "series", "instance")
_KEYS = {
    "study": catalogue.c.study_instance_uid,
    "series": catalogue.c.series_instance_uid,
    "instance": catalogue.c.sop_instance_uid,
}
_INCLUDED_LIMIT = 50
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Query:
    """A search, understood.

    Attributes:
        level: What is searched for.
        parents: Levels above that the path doesn't fix; their attributes are returned too.
        conditions: On the catalogue.
        included: Further tags that are wanted.
        everything: All that is catalogued is wanted.
        warnings: What was asked for and isn't done.
    """

    level: Level
    parents: tuple[Level, ...]
    conditions: tuple[sa.ColumnElement[bool], ...]
    modalities_in_study: sa.ColumnElement[bool] | None
    limit: int
    offset: int
    included: tuple[int, ...]
    everything: bool
    warnings: tuple[str, ...]


def understand(
    level: Level, path: dict[str, str], parameters: Iterable[tuple[str, str]], dialect: str
) -> Query:
    """Reads the parameters of a query.

    Args:
        level: What is searched for.
        path: UIDs that the path fixes, by keyword.
        parameters: Of the query.
        dialect: Of the database.

    Raises:
        HttpError: 400, with the parameter that can't be understood or isn't supported.
    """
    conditions: list[sa.ColumnElement[bool]] = [
        MATCHED[keyword][1] == uid for keyword, uid in path.items()
    ]
    parents = tuple(
        one
        for one in _LEVELS[: _LEVELS.index(level)]
        if f"{one.capitalize()}InstanceUID" not in path
    )
    in_study, limit, offset, everything = None, LIMIT, 0, False
    included: list[int] = []
    warnings: list[str] = []
    for name, value in parameters:
        if name in ("limit", "offset"):
            if not value.isascii() or not value.isdecimal() or len(value) > 9:
                msg = f"{name} takes a whole number"
                raise bad_request(msg)
            limit, offset = (
                (min(int(value), LIMIT), offset) if name == "limit" else (limit, int(value))
            )
        elif name == "fuzzymatching":
            if value.lower() == "true":
                warnings.append(
                    "The fuzzymatching parameter is not supported. Only literal matching has been "
                    "performed."
                )
        elif name == "includefield":
            everything = everything or value == "all"
            included += _tags(value)
        elif name not in ("accept", "charset"):  # answers are in UTF-8
            keyword = keyword_of(name)
            if keyword not in MATCHED or MATCHED[keyword][0] not in (level, *parents):
                # Leaving it out would answer with what was not asked for.
                # What is no attribute may be a patient's value in the wrong place.
                what = keyword or "a name that is no attribute"
                msg = f"{what} can't be searched by here; {_known(level, parents)} can"
                raise bad_request(msg)
            one = condition(keyword, value, dialect)
            if one is not None and keyword == "ModalitiesInStudy":
                in_study = one
            elif one is not None:
                conditions.append(one)
    if len(included) > _INCLUDED_LIMIT:
        msg = f"includefield names more than {_INCLUDED_LIMIT} attributes; ask for all"
        raise bad_request(msg)
    return Query(
        level,
        parents,
        tuple(conditions),
        in_study,
        limit,
        offset,
        tuple(included),
        everything,
        tuple(warnings),
    )


def search(
    held: Catalogue, query: Query, called_ae_title: str | None, base_url: str
) -> tuple[list[dict[str, Any]], bool]:
    """What matches, and whether there is more.

    Args:
        held: Is brought up to date first.
        query: From `understand`.
        called_ae_title: Only what was sent to this title; all where not given.
        base_url: Of the DICOMweb root, for Retrieve URL.

    Raises:
        CatalogueBehind: not all of it is known yet.
        DatabaseUnavailable: the index does not answer.
    """
    held.refresh(PATIENCE_S)
    key = _KEYS[query.level]
    visible = is_visible(called_ae_title)
    where = [visible, *query.conditions]
    if query.modalities_in_study is not None:
        where.append(
            catalogue.c.study_instance_uid.in_(
                sa.select(catalogue.c.study_instance_uid).where(query.modalities_in_study, visible)
            )
        )
    with reading(held.engine) as connection:
        found = connection.execute(
            sa.select(key.label("uid"), sa.func.min(catalogue.c.id).label("first"))
            .where(*where)
            .group_by(key)
            .order_by(sa.func.min(catalogue.c.id))
            .limit(query.limit + 1)
            .offset(query.offset)
        ).all()
        page = found[: query.limit]
        rows = {
            row.id: row
            for part in _portions([row.first for row in page])
            for row in connection.execute(sa.select(catalogue).where(catalogue.c.id.in_(part)))
        }
        sums = _sums(connection, query.level, [row.uid for row in page], visible)
        paths = _paths(connection, held, list(rows)) if query.included else {}
    answers = [
        _answer(rows[one.first], query, sums.get(one.uid, {}), base_url, paths.get(one.first))
        for one in page
    ]
    return answers, len(found) > len(page)


def is_visible(called_ae_title: str | None) -> sa.ColumnElement[bool]:
    """Objects in use (none that is set apart), of one called AE title or of all."""
    sent = sa.select(arrivals.c.instance_id).where(
        arrivals.c.instance_id == catalogue.c.instance_id, arrivals.c.conflicts.is_(False)
    )
    made = (
        sa.select(results.c.sop_instance_uid)
        .join(jobs, jobs.c.job_id == results.c.job_id)
        .where(results.c.sop_instance_uid == catalogue.c.result_uid)
    )
    if called_ae_title is not None:
        sent = sent.where(arrivals.c.called_ae_title == called_ae_title)
        made = made.where(jobs.c.called_ae_title == called_ae_title)
    # Asked row by row: nearly always the other conditions have left only few.
    return sa.or_(sent.correlate(catalogue).exists(), made.correlate(catalogue).exists())


def _sums(
    connection: sa.Connection, level: Level, uids: list[str], visible: sa.ColumnElement[bool]
) -> dict[str, dict[str, Any]]:
    """Of each study or series: how many there are, and of what kind."""
    if level == "instance":
        return {}
    key = _KEYS[level]
    sums: dict[str, dict[str, Any]] = {
        uid: {"series": set(), "instances": 0, "modalities": set(), "classes": set()}
        for uid in uids
    }
    for part in _portions(uids):
        for row in connection.execute(
            sa.select(
                key.label("uid"),
                catalogue.c.modality,
                catalogue.c.sop_class_uid,
                catalogue.c.series_instance_uid,
                sa.func.count(sa.distinct(catalogue.c.sop_instance_uid)).label("instances"),
            )
            .where(key.in_(part), visible)
            .group_by(
                key,
                catalogue.c.modality,
                catalogue.c.sop_class_uid,
                catalogue.c.series_instance_uid,
            )
        ):
            one = sums[row.uid]
            one["series"].add(row.series_instance_uid)
            one["instances"] += row.instances
            one["modalities"].add(row.modality)
            one["classes"].add(row.sop_class_uid)
    return sums


def _paths(connection: sa.Connection, held: Catalogue, ids: list[int]) -> dict[int, Path]:
    return {
        row.id: held.folder / (row.path or row.result_path)
        for part in _portions(ids)
        for row in connection.execute(
            sa.select(catalogue.c.id, instances.c.path, results.c.path.label("result_path"))
            .outerjoin(instances, instances.c.id == catalogue.c.instance_id)
            .outerjoin(results, results.c.sop_instance_uid == catalogue.c.result_uid)
            .where(catalogue.c.id.in_(part))
        )
    }


def _answer(
    row: sa.Row[Any], query: Query, sums: dict[str, Any], base_url: str, path: Path | None
) -> dict[str, Any]:
    wanted = {
        hexadecimal(tag) for level in (query.level, *query.parents) for tag in RETURNED[level]
    }
    answer = {
        tag: value for tag, value in row.attributes.items() if query.everything or tag in wanted
    }
    url = f"{base_url}/studies/{row.study_instance_uid}"
    if query.level != "study":
        url += f"/series/{row.series_instance_uid}"
    if query.level == "instance":
        url += f"/instances/{row.sop_instance_uid}"
    answer["00080056"] = {"vr": "CS", "Value": ["ONLINE"]}
    answer["00081190"] = {"vr": "UR", "Value": [url]}
    if query.level == "study":
        answer["00080061"] = {"vr": "CS", "Value": sorted(sums["modalities"] - {""})}
        answer["00080062"] = {"vr": "UI", "Value": sorted(sums["classes"])}
        answer["00201206"] = {"vr": "IS", "Value": [len(sums["series"])]}
        answer["00201208"] = {"vr": "IS", "Value": [sums["instances"]]}
    if query.level == "series":
        answer["00201209"] = {"vr": "IS", "Value": [sums["instances"]]}
    if path is not None:
        answer = _more(path, [tag for tag in query.included if hexadecimal(tag) not in answer]) | (
            answer
        )
    return dict(sorted(answer.items()))


def _more(path: Path, tags: list[int]) -> dict[str, Any]:
    """Further attributes from the file itself; those that can't be read are left out."""
    if not tags:
        return {}
    try:
        ds = read_elements(path, [*tags, tag_of("SpecificCharacterSet")], max(tags))
    except (HeaderUnreadable, OSError):
        return {}
    return as_json(ds, tags)


def _tags(value: str) -> list[int]:
    tags = []
    for name in value.split(","):
        if name == "all":
            continue
        keyword = keyword_of(name)
        tag = tag_for_keyword(keyword) if keyword is not None else None
        if tag is None:
            msg = "includefield takes keywords or tags of the standard"
            raise bad_request(msg)
        if tag < 0x7FE00000:
            tags.append(tag)
    return tags


def _known(level: Level, parents: tuple[Level, ...]) -> str:
    return ", ".join(name for name, (at, _, _) in MATCHED.items() if at in (level, *parents))


def _portions(values: list[_T]) -> list[list[_T]]:
    # A statement takes only so many parameters.
    return [values[start : start + 500] for start in range(0, len(values), 500)]
