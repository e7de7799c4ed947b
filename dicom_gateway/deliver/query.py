"""Proof of arrival by asking for the object: C-FIND, or QIDO-RS, by its SOP Instance UID.

In: a result file. Out: whether the peer has it, or an error where it can't be asked. Nothing
is kept here.

Source: PS3.4 C.4.1 and C.6.2 (Study Root, IMAGE level), PS3.18 10.6.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_context
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
)

from dicom_gateway.config_delivery import Destination
from dicom_gateway.deliver.association import Caller
from dicom_gateway.deliver.dicomweb import Web, trouble_of_http
from dicom_gateway.errors import DestinationUnavailable, DestinationUnreachable, EncodingFailed

_PENDING = (0xFF00, 0xFF01)
_SUCCESS = 0x0000
_SOP_INSTANCE_UID = "00080018"


class Query(Protocol):
    """Asks one destination; used by one thread."""

    name: str
    """Of the way of asking, for the job's story."""

    def has(self, path: Path) -> bool:
        """Whether it has the object of this file.

        Raises:
            DestinationUnavailable: it can't be asked now, or gives no clear answer.
            EncodingFailed: the file is gone.
        """
        ...

    def close(self) -> None:
        """There is nothing to ask for a while."""
        ...


def query_of(destination: Destination, calling_ae_title: str) -> Query:
    """QIDO-RS or C-FIND, as the settings say."""
    if destination.dicomweb is not None:
        return Qido(destination)
    return CFind(destination, calling_ae_title)


class CFind:
    """Asks by C-FIND; keeps its association open between questions."""

    name = "C-FIND"

    def __init__(self, destination: Destination, calling_ae_title: str) -> None:
        self._destination = destination
        self._caller = Caller(destination, calling_ae_title, destination.proof_place)
        self._association: Association | None = None

    def has(self, path: Path) -> bool:
        """See `Query.has`."""
        study, series, uid = _uids(path)
        asked = Dataset()
        asked.QueryRetrieveLevel = "IMAGE"
        asked.StudyInstanceUID, asked.SeriesInstanceUID, asked.SOPInstanceUID = study, series, uid
        association = self._ready()
        try:
            answers = list(
                association.send_c_find(asked, StudyRootQueryRetrieveInformationModelFind)
            )
        except (RuntimeError, ValueError) as error:
            self.close()
            msg = f"{self._destination} hung up before it was asked for the object"
            raise DestinationUnavailable(msg) from error
        found = False
        for status, answer in answers:
            if "Status" not in status:
                self.close()
                msg = f"{self._destination} hung up when it was asked for the object"
                raise DestinationUnavailable(msg)
            if status.Status in _PENDING:
                found |= answer is not None and str(answer.get("SOPInstanceUID", "")) == uid
            elif status.Status != _SUCCESS:
                msg = (
                    f"{self._destination} doesn't answer the query for the object "
                    f"(0x{status.Status:04X}); look into its log"
                )
                raise DestinationUnavailable(msg)
        return found

    def close(self) -> None:
        """See `Query.close`."""
        association, self._association = self._association, None
        if association is not None and association.is_established:
            association.release()

    def _ready(self) -> Association:
        if self._association is not None and self._association.is_established:
            return self._association
        syntaxes: list[str | UID] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
        made = self._caller.open(
            [build_context(StudyRootQueryRetrieveInformationModelFind, syntaxes)]
        )
        if not made.accepted_contexts:
            msg = (
                f"{self._destination} offers no C-FIND to us; give us that right there, name who "
                "does under confirm-at, or choose another 'confirm'"
            )
            raise DestinationUnreachable(msg, is_lasting=True)
        self._association = made
        return made


class Qido:
    """Asks by QIDO-RS."""

    name = "QIDO-RS"

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._web = Web(destination)

    def has(self, path: Path) -> bool:
        """See `Query.has`."""
        study, series, uid = _uids(path)
        answer = self._web.ask(
            "GET",
            f"/studies/{study}/series/{series}/instances",
            params={"SOPInstanceUID": uid},
            headers={"Accept": "application/dicom+json"},
        )
        if answer.status_code in (204, 404):
            return False
        if answer.status_code != 200:
            raise DestinationUnavailable(
                str(trouble_of_http(answer.status_code, self._destination))
            )
        try:
            found = json.loads(answer.content)
            return any(one[_SOP_INSTANCE_UID]["Value"] == [uid] for one in found)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            msg = f"{self._destination} answers QIDO-RS in a way that can't be read"
            raise DestinationUnavailable(msg) from error

    def close(self) -> None:
        """See `Query.close`."""
        self._web.close()


def _uids(path: Path) -> tuple[str, str, str]:
    """Study, series and SOP Instance UID of a result."""
    tags = ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"]
    try:
        read = dcmread(path, stop_before_pixels=True, specific_tags=list(tags))
        study, series, uid = (str(read[tag].value) for tag in tags)
    except (OSError, InvalidDicomError, KeyError) as error:
        msg = f"the result file {path.name} can't be read any more; retry the job to make it again"
        raise EncodingFailed(msg, code="result_missing") from error
    return study, series, uid
