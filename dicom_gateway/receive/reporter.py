"""Receive, storage commitment on associations of our own: what the peers' have not waited for.

In: pending requests. Out: N-EVENT-REPORT to where the settings say that the peer listens, tried
again until it is taken or a day has passed. Survives a crash: the requests (`commitment.py`);
after a start all of them are due.

Source: PS3.4 J.3.3 (the provider may ask for the association).
"""

from __future__ import annotations

import ssl
import threading

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_role, evt

from dicom_gateway.calling import on_connected
from dicom_gateway.config import ScpSettings, Source
from dicom_gateway.errors import ConfigurationError, DatabaseUnavailable
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.receive.commitment import (
    SUCCESS,
    WELL_KNOWN_INSTANCE,
    Commitments,
    Request,
    said,
)
from dicom_gateway.receive.offers import STORAGE_COMMITMENT
from dicom_gateway.tls import client_context

_RETRY_FIRST_S, _RETRY_MAX_S, _GIVE_UP_AFTER_S = 2.0, 300.0, 24 * 3600.0
_LOOK_EVERY_S = 5.0
_PEER_TIMEOUT_S = 30.0
_NO_ASSOCIATION = "no association came about"

_log = get_logger(room="receive")


class Reporter:
    """Reports on new associations what the peers' own have not waited for.

    Args:
        settings: `dicom.scp` of gateway.yaml: where the sources listen.
        commitments: The pending requests.
    """

    def __init__(self, settings: ScpSettings, commitments: Commitments) -> None:
        self._settings = settings
        self._commitments = commitments
        self._news = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="commitments", daemon=True)

    def start(self) -> None:
        """Takes up what an earlier life left, and goes on."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Ends after the report in hand."""
        self._stopping.set()
        self._news.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def association_ended(self, association_id: str) -> None:
        """What this one has not reported is for us."""
        if self._commitments.association_ended(association_id):
            self._news.set()

    def _run(self) -> None:
        began = False
        while not self._stopping.is_set():
            self._news.clear()
            try:
                if not began:
                    self._commitments.association_ended(None)
                    began = True
                away: set[str] = set()
                for request in self._commitments.due():
                    if self._stopping.is_set():
                        return
                    self._handle(request, away)
            except DatabaseUnavailable as error:
                _log.warning("index_away", reason=str(error))
            except Exception:  # noqa: BLE001 - outermost edge of the thread
                _log.exception("storage commitment could not be reported")
            self._news.wait(_LOOK_EVERY_S)

    def _handle(self, request: Request, away: set[str]) -> None:
        """Reports, or puts it off.

        Args:
            request: It is due.
            away: Calling AE titles of those who can't be called just now: others don't wait
                until each of their requests has found that out by itself.
        """
        listens = [
            source
            for source in self._settings.sources
            if source.ae_title == request.calling_ae_title and source.port is not None
        ]
        if not listens:
            said("storage commitment can't be reported: dicom.scp.sources has no port", request)
            self._commitments.give_up(request)
            return
        # A title with several addresses: each in turn.
        source = listens[request.attempts % len(listens)]
        is_away = request.calling_ae_title in away
        trouble = _NO_ASSOCIATION if is_away else self._tell(source, request)
        if trouble == _NO_ASSOCIATION:
            away.add(request.calling_ae_title)
        if not trouble:
            said("storage commitment reported", request, same_association=False)
            self._commitments.reported(request)
        elif request.age_s > _GIVE_UP_AFTER_S:
            said("storage commitment given up", request, reason=trouble)
            self._commitments.give_up(request)
        else:
            said("storage commitment not reported yet", request, reason=trouble)
            wait_s = min(_RETRY_FIRST_S * 2 ** min(request.attempts, 16), _RETRY_MAX_S)
            self._commitments.postpone(request, wait_s)

    def _tell(self, source: Source, request: Request) -> str:
        """Reports to a peer; gives the reason where that fails."""
        event_type, information = self._commitments.report(request)
        entity = AE(request.called_ae_title)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = _PEER_TIMEOUT_S
        entity.connection_timeout = _PEER_TIMEOUT_S
        entity.add_requested_context(
            STORAGE_COMMITMENT, [ImplicitVRLittleEndian, ExplicitVRLittleEndian]
        )
        try:
            tls = (self._client_context(), source.host_ip or "") if source.tls else None
        except ConfigurationError as error:
            return str(error)
        assert source.host_ip is not None
        assert source.port is not None
        # We call, and are the SCP all the same (PS3.4 J.3.3).
        association = entity.associate(
            source.host_ip,
            source.port,
            ae_title=source.ae_title,
            ext_neg=[build_role(STORAGE_COMMITMENT, scu_role=False, scp_role=True)],
            tls_args=tls,
            evt_handlers=[(evt.EVT_CONN_OPEN, on_connected)],
        )
        if not association.is_established:
            return _NO_ASSOCIATION
        try:
            status, _ = association.send_n_event_report(
                information, event_type, STORAGE_COMMITMENT, WELL_KNOWN_INSTANCE
            )
        except (ValueError, RuntimeError) as error:
            return f"it doesn't take reports ({type(error).__name__})"
        finally:
            if association.is_established:
                association.release()
        if "Status" not in status:
            return "no answer"
        return "" if status.Status == SUCCESS else f"answered 0x{status.Status:04X}"

    def _client_context(self) -> ssl.SSLContext:
        tls = self._settings.tls
        if tls is None:
            return client_context(check_hostname=False)
        # Addresses are rarely in certificates; the authority is what we go by.
        return client_context(
            tls.client_ca_file, tls.certificate_file, tls.key_file, check_hostname=False
        )
