"""Receive, fetching by DICOMweb: QIDO-RS says what there is, WADO-RS brings it as a stream.

In: keys. Out: series and their counts; their objects go through the same intake as a STOW-RS
body, one at a time, so a series of any size passes. Nothing is kept here.

Source: PS3.18 10.4 (WADO-RS), 10.6 (QIDO-RS).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import requests

from dicom_gateway.config_web import PacsPeer
from dicom_gateway.errors import (
    BadRequest,
    PeerRefused,
    PeerUnavailable,
    RequestTooLarge,
    UnsupportedMedia,
)
from dicom_gateway.receive.retrieve import SERIES_KEYS, Progress, RemoteSeries, Retrieved
from dicom_gateway.receive.stow import BodyIntake, BodyLimits

_CHUNK_BYTES = 256 * 1024
_ANSWER_LIMIT_BYTES = 64 << 20
_PAGES_LIMIT = 1000
_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_DICOM = 'multipart/related; type="application/dicom"; transfer-syntax=*'


class DicomwebPacs:
    """A PACS that speaks QIDO-RS and WADO-RS.

    Args:
        peer: With `dicomweb`.
        token: The bearer token, if it wants one.
        intake: Where its objects go.
        limits: Of each series.
    """

    finds_by = "QIDO-RS"
    moves_by = "WADO-RS"

    def __init__(
        self, peer: PacsPeer, token: str | None, intake: BodyIntake, limits: BodyLimits
    ) -> None:
        assert peer.dicomweb is not None
        self._name = peer.name
        self._timeout_s = peer.timeout_s
        self._url = peer.dicomweb.url.rstrip("/")
        self._calling_ae_title = peer.dicomweb.ae_title
        self._intake = intake
        self._limits = limits
        self._session = requests.Session()
        # Neither a proxy nor a password file of this machine is meant for a PACS.
        self._session.trust_env = False
        if token is not None:
            self._session.headers["Authorization"] = f"Bearer {token}"
        if peer.dicomweb.ca_file is not None:
            self._session.verify = str(peer.dicomweb.ca_file)
        if peer.dicomweb.certificate_file is not None:
            own = str(peer.dicomweb.certificate_file)
            key = peer.dicomweb.key_file
            self._session.cert = own if key is None else (own, str(key))

    def find(self, keys: Mapping[str, str], series: Sequence[str]) -> list[RemoteSeries]:
        """See `PacsClient.find`."""
        of_study = {key: value for key, value in keys.items() if key not in SERIES_KEYS}
        of_series = {key: value for key, value in keys.items() if key in SERIES_KEYS}
        if set(of_study) == {"StudyInstanceUID"}:
            studies = [of_study["StudyInstanceUID"]]
        else:
            studies = [_value(one, "0020000D") for one in self._search("/studies", of_study)]
        found = []
        for study in dict.fromkeys(_uids(studies)):
            query = {**of_series, "includefield": "00201209"}
            for one in self._search(f"/studies/{study}/series", query):
                uid = _value(one, "0020000E")
                if _UID.fullmatch(uid) and (not series or uid in series):
                    found.append(RemoteSeries(study, uid, self._count(one, study, uid)))
        return found

    def retrieve(self, one: RemoteSeries, called_ae_title: str, progress: Progress) -> Retrieved:
        """See `PacsClient.retrieve`."""
        path = f"/studies/{one.study_instance_uid}/series/{one.series_instance_uid}"
        with self._get(path, {}, _DICOM) as answer:
            if answer.status_code in (204, 404):
                return Retrieved(0, one.instances or 0, f"'{self._name}' has the series no more")
            return self._take(answer, one, called_ae_title, progress)

    def close(self) -> None:
        """Closes the connections."""
        self._session.close()

    def _take(
        self,
        answer: requests.Response,
        one: RemoteSeries,
        called_ae_title: str,
        progress: Progress,
    ) -> Retrieved:
        try:
            body = self._intake.open(
                answer.headers.get("Content-Type", ""),
                called_ae_title=called_ae_title,
                calling_ae_title=self._calling_ae_title,
                limits=self._limits,
                study_instance_uid=one.study_instance_uid,
            )
        except (UnsupportedMedia, BadRequest) as error:
            msg = f"'{self._name}' answers WADO-RS in another form than multipart application/dicom"
            raise PeerRefused(msg) from error
        try:
            for piece in answer.iter_content(_CHUNK_BYTES):
                body.feed(piece)
                progress(*body.counts)
            reception = body.finish()
        except (requests.RequestException, OSError) as error:
            raise self._unreachable(error) from error
        except (BadRequest, RequestTooLarge) as error:
            msg = f"what '{self._name}' sends can't be taken: {error}"
            raise PeerRefused(msg) from error
        finally:
            body.abort()  # does nothing where it has ended in order
        trouble = "; ".join(dict.fromkeys(refusal.reason for refusal in reception.refused))
        return Retrieved(len(reception.kept), len(reception.refused), trouble)

    def _search(self, path: str, query: Mapping[str, str]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for _ in range(_PAGES_LIMIT):
            paging = {"offset": str(len(found))} if found else {}
            with self._get(path, {**query, **paging}, "application/dicom+json") as answer:
                if answer.status_code in (204, 404):
                    break
                page = self._json(answer)
                is_more = "299" in answer.headers.get("Warning", "")
            known = {json.dumps(one, sort_keys=True) for one in found} if is_more else set()
            new = [one for one in page if json.dumps(one, sort_keys=True) not in known]
            found += new
            if not is_more or not new:
                break
        return found

    def _count(self, answer: Mapping[str, Any], study: str, series: str) -> int | None:
        try:
            return int(_value(answer, "00201209"))
        except ValueError:
            pass
        found = self._search(f"/studies/{study}/series/{series}/instances", {})
        return len({_value(one, "00080018") for one in found}) or None

    def _get(self, path: str, query: Mapping[str, str], accept: str) -> requests.Response:
        try:
            answer = self._session.get(
                self._url + path,
                # Orthanc, for one, doesn't understand a wildcard that is percent-encoded.
                params=urlencode(query, safe="*?,-"),
                headers={"Accept": accept, "Accept-Encoding": "identity"},
                stream=True,
                timeout=(min(self._timeout_s, 30.0), self._timeout_s),
                allow_redirects=False,
            )
        except (requests.RequestException, OSError) as error:
            raise self._unreachable(error) from error
        status = answer.status_code
        if status in (200, 204, 206, 404):
            return answer
        answer.close()
        if status in (401, 403):
            msg = (
                f"'{self._name}' doesn't let us in (HTTP {status}); check its token in gateway.yaml"
            )
            raise PeerRefused(msg)
        if status == 429 or status >= 500:
            msg = f"'{self._name}' can't answer just now (HTTP {status})"
            raise PeerUnavailable(msg)
        # The peer's own text is left out: it may quote the query.
        msg = f"'{self._name}' refused the request (HTTP {status}); check its url in gateway.yaml"
        raise PeerRefused(msg)

    def _json(self, answer: requests.Response) -> list[dict[str, Any]]:
        data = bytearray()
        try:
            for piece in answer.iter_content(_CHUNK_BYTES):
                data += piece
                if len(data) > _ANSWER_LIMIT_BYTES:
                    msg = f"'{self._name}' finds too much; narrow the query"
                    raise PeerRefused(msg)
        except (requests.RequestException, OSError) as error:
            raise self._unreachable(error) from error
        try:
            page = json.loads(data)
        except ValueError as error:
            msg = f"'{self._name}' answers QIDO-RS with something that is no JSON"
            raise PeerRefused(msg) from error
        return [one for one in page if isinstance(one, dict)] if isinstance(page, list) else []

    def _unreachable(self, error: Exception) -> PeerUnavailable:
        why = "can't be reached"
        if isinstance(error, requests.Timeout):
            why = f"gave no answer within {self._timeout_s:g} s"
        if isinstance(error, requests.exceptions.SSLError):
            why = "has a certificate that isn't trusted here (see ca-file), or refuses ours"
        return PeerUnavailable(f"'{self._name}' {why}")


def _value(one: Mapping[str, Any], tag: str) -> str:
    """The first value as text; empty where there is none."""
    element = one.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return str(values[0]) if isinstance(values, list) and values else ""


def _uids(values: Sequence[str]) -> list[str]:
    """Those that are UIDs: they become part of a URL."""
    return [value for value in values if len(value) <= 64 and _UID.fullmatch(value)]
