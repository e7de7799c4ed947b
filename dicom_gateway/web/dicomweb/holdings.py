"""DICOMweb, what is retrieved: the files of a study, series or instance.

In: UIDs of a path. Out: the files, one for each SOP Instance UID. Nothing is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from pydicom.filereader import read_file_meta_info

from dicom_gateway.database import catalogue, instances, reading, results
from dicom_gateway.web.answers import not_found
from dicom_gateway.web.dicomweb.attributes import MATCHED
from dicom_gateway.web.dicomweb.catalogue import PATIENCE_S, Catalogue
from dicom_gateway.web.dicomweb.headers import UNREADABLE
from dicom_gateway.web.dicomweb.search import is_visible


@dataclass(frozen=True, slots=True)
class Held:
    """One object and its file."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    path: Path


def find(held: Catalogue, uids: dict[str, str], called_ae_title: str | None) -> list[Held]:
    """The objects under these UIDs, in the order in which they came.

    Args:
        held: Is brought up to date first.
        uids: By keyword, as the path has them.
        called_ae_title: Only what was sent to this title; all where not given.

    Raises:
        HttpError: 404: there are none (any more).
        CatalogueBehind: not all of it is known yet.
        DatabaseUnavailable: the index does not answer.
    """
    held.refresh(PATIENCE_S)
    with reading(held.engine) as connection:
        rows = connection.execute(
            sa.select(
                catalogue.c.study_instance_uid,
                catalogue.c.series_instance_uid,
                catalogue.c.sop_instance_uid,
                instances.c.path,
                instances.c.transfer_syntax_uid,
                results.c.path.label("result_path"),
            )
            .outerjoin(instances, instances.c.id == catalogue.c.instance_id)
            .outerjoin(results, results.c.sop_instance_uid == catalogue.c.result_uid)
            .where(
                is_visible(called_ae_title),
                *(MATCHED[keyword][1] == uid for keyword, uid in uids.items()),
            )
            .order_by(catalogue.c.id)
        ).all()
    found: dict[str, Held] = {}
    for row in rows:
        path = held.folder / (row.path or row.result_path)
        syntax = row.transfer_syntax_uid or _syntax_of(path)
        # Other bytes under the same UID were sent to another called AE title: the first ones.
        if row.sop_instance_uid not in found and syntax and path.is_file():
            found[row.sop_instance_uid] = Held(
                row.study_instance_uid, row.series_instance_uid, row.sop_instance_uid, syntax, path
            )
    if not found:
        raise not_found({1: "study", 2: "series", 3: "instance"}[len(uids)])
    return list(found.values())


def _syntax_of(path: Path) -> str:
    try:
        return str(read_file_meta_info(path).TransferSyntaxUID)
    except (OSError, *UNREADABLE):
        return ""
