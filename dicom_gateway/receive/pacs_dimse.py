"""Receive, fetching by DIMSE: C-FIND says what there is, C-MOVE lets it come to our own door.

In: keys. Out: series and their counts; and sub-operations as the PACS counts them. The objects
themselves come as any others, by C-STORE. Nothing is kept here.

Source: PS3.4 C.4.1 (C-FIND), C.4.2 (C-MOVE and its statuses).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pydicom.config
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.pdu import A_ASSOCIATE_RJ
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
)

from dicom_gateway.calling import on_connected
from dicom_gateway.config_web import DimsePeer, PacsPeer
from dicom_gateway.errors import PeerRefused, PeerUnavailable
from dicom_gateway.receive.retrieve import SERIES_KEYS, Progress, RemoteSeries, Retrieved
from dicom_gateway.tls import client_context

# pydicom's validation answers with warnings that quote the value: never a patient's name.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE

_PENDING = (0xFF00, 0xFF01)
_MOVE_DESTINATION_UNKNOWN = 0xA801
_RESULTS_LIMIT = 10_000


class DimsePacs:
    """A PACS that speaks C-FIND and C-MOVE.

    Args:
        peer: With `dimse`.
        calling_ae_title: Our own, for asking.
    """

    finds_by = "C-FIND"
    moves_by = "C-MOVE"

    def __init__(self, peer: PacsPeer, calling_ae_title: str) -> None:
        assert peer.dimse is not None
        self._name = peer.name
        self._peer: DimsePeer = peer.dimse
        self._entity = AE(calling_ae_title)
        self._entity.connection_timeout = min(peer.timeout_s, 30.0)
        self._entity.acse_timeout = peer.timeout_s
        self._entity.dimse_timeout = peer.timeout_s
        self._entity.network_timeout = peer.timeout_s
        self._entity.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
        self._entity.add_requested_context(StudyRootQueryRetrieveInformationModelMove)
        self._association: Association | None = None
        self._is_moving = False

    def find(self, keys: Mapping[str, str], series: Sequence[str]) -> list[RemoteSeries]:
        """See `PacsClient.find`."""
        of_study = {key: value for key, value in keys.items() if key not in SERIES_KEYS}
        of_series = {key: value for key, value in keys.items() if key in SERIES_KEYS}
        if set(of_study) == {"StudyInstanceUID"}:
            studies = [of_study["StudyInstanceUID"]]
        else:
            studies = [
                str(one.StudyInstanceUID)
                for one in self._find_all("STUDY", {"StudyInstanceUID": "", **of_study})
                if one.get("StudyInstanceUID")
            ]
        found = []
        for study in dict.fromkeys(studies):
            query = {
                "StudyInstanceUID": study,
                "SeriesInstanceUID": "",
                "NumberOfSeriesRelatedInstances": "",
                **of_series,
            }
            for one in self._find_all("SERIES", query):
                uid = str(one.get("SeriesInstanceUID", ""))
                if uid and (not series or uid in series):
                    found.append(RemoteSeries(study, uid, self._count(one, study, uid)))
        return found

    def retrieve(self, one: RemoteSeries, called_ae_title: str, progress: Progress) -> Retrieved:
        """See `PacsClient.retrieve`."""
        identifier = _identifier(
            "SERIES",
            {
                "StudyInstanceUID": one.study_instance_uid,
                "SeriesInstanceUID": one.series_instance_uid,
            },
        )
        completed = failed = 0
        association = self._associate()
        self._is_moving = True
        try:
            answers = association.send_c_move(
                identifier, called_ae_title, StudyRootQueryRetrieveInformationModelMove
            )
        except (RuntimeError, ValueError) as error:
            raise self._broken() from error
        for status, _ in answers:
            if "Status" not in status:
                raise self._broken()
            completed = _number(status, "NumberOfCompletedSuboperations", completed)
            # A warning is a success that has something to say (PS3.4 C.4.2.1.8).
            warned = _number(status, "NumberOfWarningSuboperations", 0)
            failed = _number(status, "NumberOfFailedSuboperations", failed)
            if status.Status in _PENDING:
                progress(completed + warned, failed)
                continue
            return Retrieved(
                completed + warned,
                failed,
                self._trouble(int(status.Status), failed, called_ae_title),
            )
        raise self._broken()

    def close(self) -> None:
        """Releases the association, or aborts what is under way."""
        association, self._association = self._association, None
        if association is None or not association.is_established:
            return
        if self._is_moving:  # left in the middle: a person has cancelled it
            association.abort()
        else:
            association.release()

    def _find_all(self, level: str, query: Mapping[str, str]) -> list[Dataset]:
        """What matches, where that isn't more than can be fetched at once."""
        found = self._find(level, query)
        if len(found) > _RESULTS_LIMIT:
            msg = (
                f"'{self._name}' finds more than {_RESULTS_LIMIT} on {level.lower()} level; "
                "narrow the query"
            )
            raise PeerRefused(msg)
        return found

    def _find(self, level: str, query: Mapping[str, str]) -> list[Dataset]:
        """What matches; of more than the limit, one more."""
        association = self._associate()
        found: list[Dataset] = []
        for status, identifier in self._answers(association, level, query):
            if "Status" not in status:
                raise self._broken()
            if status.Status in _PENDING:
                if identifier is not None and len(found) <= _RESULTS_LIMIT:
                    found.append(identifier)
            elif status.Status != 0:
                msg = (
                    f"'{self._name}' refused the search on {level.lower()} level with status "
                    f"0x{int(status.Status):04X}; it may not know one of the keys"
                )
                raise PeerRefused(msg)
        return found

    def _answers(
        self, association: Association, level: str, query: Mapping[str, str]
    ) -> Iterator[tuple[Dataset, Dataset | None]]:
        try:
            yield from association.send_c_find(
                _identifier(level, query), StudyRootQueryRetrieveInformationModelFind
            )
        except (RuntimeError, ValueError) as error:
            raise self._broken() from error

    def _count(self, answer: Dataset, study: str, series: str) -> int | None:
        stated = _number(answer, "NumberOfSeriesRelatedInstances", 0)
        if stated > 0:
            return stated
        # An optional key (PS3.4 Table C.6-3): where it isn't filled, the instances are counted.
        query = {"StudyInstanceUID": study, "SeriesInstanceUID": series, "SOPInstanceUID": ""}
        found = {str(one.get("SOPInstanceUID", "")) for one in self._find("IMAGE", query)} - {""}
        return len(found) if 0 < len(found) <= _RESULTS_LIMIT else None

    def _associate(self) -> Association:
        if self._association is not None and self._association.is_established:
            return self._association
        rejections: list[str] = []
        tls = self._peer.tls
        context = tls and client_context(
            tls.ca_file, tls.certificate_file, tls.key_file, check_hostname=tls.check_hostname
        )
        try:
            self._association = self._entity.associate(
                self._peer.host_ip,
                self._peer.port,
                ae_title=self._peer.ae_title,
                tls_args=(context, self._peer.host_ip) if context else None,
                evt_handlers=[
                    (evt.EVT_CONN_OPEN, on_connected),
                    (evt.EVT_PDU_RECV, _note_rejection, [rejections]),
                ],
            )
        except OSError as error:  # of looking its name up
            msg = (
                f"'{self._name}': {self._peer.host_ip} can't be called ({error.strerror}); check "
                "host-ip"
            )
            raise PeerUnavailable(msg) from error
        if not self._association.is_established:
            raise self._no_association(rejections)
        return self._association

    def _no_association(self, rejections: list[str]) -> PeerUnavailable | PeerRefused:
        where = f"'{self._name}' ({self._peer.ae_title} at {self._peer.host_ip}:{self._peer.port})"
        if rejections:
            msg = (
                f"{where} rejected the association ({rejections[0].lower()}); it must know our "
                f"AE title '{self._entity.ae_title}'"
            )
            return PeerRefused(msg)
        assert self._association is not None
        if self._association.rejected_contexts:
            msg = f"{where} offers no C-FIND and C-MOVE in the study root model"
            return PeerRefused(msg)
        msg = f"{where} can't be reached"
        return PeerUnavailable(msg)

    def _broken(self) -> PeerUnavailable:
        msg = (
            f"'{self._name}' hung up or gave no answer within {self._entity.dimse_timeout:g} s; "
            "where it is only slow, raise its timeout-s"
        )
        return PeerUnavailable(msg)

    def _trouble(self, status: int, failed: int, called_ae_title: str) -> str:
        if status == 0 and not failed:
            return ""
        if status == _MOVE_DESTINATION_UNKNOWN:
            return (
                f"'{self._name}' doesn't know where '{called_ae_title}' is (0xA801); tell it our "
                "AE title, host and port"
            )
        if failed:
            return (
                f"'{self._name}' could not send {failed} instance(s) to '{called_ae_title}' "
                f"(0x{status:04X}); both logs say why"
            )
        return f"'{self._name}' ended the C-MOVE with status 0x{status:04X}"


def _identifier(level: str, query: Mapping[str, str]) -> Dataset:
    ds = Dataset()
    ds.QueryRetrieveLevel = level
    if not all(value.isascii() for value in query.values()):
        ds.SpecificCharacterSet = "ISO_IR 192"
    for keyword, value in query.items():
        setattr(ds, keyword, value)
    return ds


def _number(ds: Dataset, keyword: str, otherwise: int) -> int:
    try:
        return int(str(ds.get(keyword)))
    except ValueError:
        return otherwise


def _note_rejection(event: evt.Event, rejections: list[Any]) -> None:
    # pynetdicom forgets a rejection that comes so quickly that the connection is closed
    # again before it looks; the PDU itself is always seen here.
    if isinstance(event.pdu, A_ASSOCIATE_RJ):
        rejections.append(event.pdu.to_primitive().reason_str)
