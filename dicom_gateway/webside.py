"""The web side of the gateway: DICOMweb, health, metrics; and what it fetches: `tritome fetch`.

In: settings, the index, and the door's own `keep`. Out: an HTTP server (where it is enabled),
the thread that keeps its catalogue, and the thread that fetches from a PACS. What survives a
crash is in the store.

Part of `app.py`, in a file of its own: it knows receive, store and web, which don't know each
other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa

from dicom_gateway.config import GatewaySettings
from dicom_gateway.config_web import PacsPeer
from dicom_gateway.database import arrivals, instances, reading
from dicom_gateway.observe.metrics import Transport
from dicom_gateway.receive.fetches import FetchDesk
from dicom_gateway.receive.pacs_dicomweb import DicomwebPacs
from dicom_gateway.receive.pacs_dimse import DimsePacs
from dicom_gateway.receive.retrieve import Fetcher, PacsClient
from dicom_gateway.receive.stow import BodyIntake, BodyLimits
from dicom_gateway.records import Arrival, Instance
from dicom_gateway.store.docket import Docket
from dicom_gateway.web import Catalogue, WebServer, build_application, dicomweb, health
from dicom_gateway.web import metrics as metrics_page
from dicom_gateway.web.guard import read_token
from dicom_gateway.web.ports import Health, Heard, Metrics


class Loop(NamedTuple):
    """A thread that the app runs."""

    name: str
    run: Callable[[], None]
    stop: Callable[[], None]


class WebSide:
    """HTTP and fetching of one gateway process.

    Args:
        settings: The whole of gateway.yaml.
        engine: From `open_database`.
        keep: Makes an object durable, as for C-STORE.
        association_ended: As for C-STORE.
        health: What is not well, for /health.
        metrics: Their text, for /metrics.
        heard: Told of each request, for the audit trail.
        kept: Told how each object came, for which AE title, and its bytes.
        refused: Told how an object came that was not taken, and the code of why.

    Raises:
        ConfigurationError: a token, certificate or key can't be used.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        engine: sa.Engine,
        *,
        keep: Callable[[Arrival], Instance],
        association_ended: Callable[[str, bool], None],
        health: Health,
        metrics: Metrics,
        heard: Heard = lambda *_request: None,
        kept: Callable[[Transport, str, int], None] = lambda *_kept: None,
        refused: Callable[[Transport, str], None] = lambda *_refused: None,
    ) -> None:
        self._settings = settings
        self._heard = heard
        self._metrics = metrics
        folder = settings.store.folder.resolve()

        def intake(transport: Transport) -> BodyIntake:
            def keep_and_tell(arrival: Arrival) -> Instance:
                instance = keep(arrival)
                kept(transport, arrival.called_ae_title, instance.size_bytes)
                return instance

            return BodyIntake(
                folder / "incoming",
                keep_and_tell,
                association_ended,
                settings.dicom.scp.private_sop_classes,
                partial(refused, transport),
            )

        self._stored, self._fetched = intake("stow"), intake("wado")
        stow = settings.web.stow
        self._limits = BodyLimits(
            request_bytes=stow.max_request_bytes,
            part_bytes=stow.max_part_bytes,
            part_memory_bytes=stow.part_memory_bytes,
        )
        self._tokens = {peer.name: _token(peer) for peer in settings.pacs}
        self._desk = FetchDesk(engine)
        self.loops: list[Loop] = []
        """To be run by the app, each in a thread."""
        if settings.pacs:
            self._add_fetcher(engine)
        self._server: WebServer | None = None
        if settings.web.enabled:
            self._server = self._make_server(engine, folder, health)

    @property
    def port(self) -> int | None:
        """Where HTTP is answered; None where it isn't."""
        return None if self._server is None else self._server.port

    @property
    def is_dead(self) -> bool:
        """Whether the server has ended although nobody asked it to."""
        return self._server is not None and not self._server.is_alive

    def recover(self) -> int:
        """Fetches of an earlier life wait again; gives how many."""
        return self._desk.release_own()

    def start(self) -> None:
        """Listens from here on.

        Raises:
            ConfigurationError: the address or port can't be listened on.
        """
        if self._server is not None:
            self._server.start()

    def stop(self) -> None:
        """Listens no more."""
        if self._server is not None:
            self._server.stop()

    def _make_server(self, engine: sa.Engine, folder: Path, health_of: Health) -> WebServer:
        catalogue = Catalogue(engine, folder)
        self.loops.append(Loop("catalogue", catalogue.run, catalogue.stop))
        web = self._settings.web
        titles = [title.ae_title for title in self._settings.dicom.scp.ae_titles]
        if web.called_ae_title is not None:
            titles.sort(key=lambda title: title != web.called_ae_title)  # the default one first
        application = build_application(
            health.routes(health_of),
            metrics_page.routes(self._metrics),
            dicomweb.routes(
                web, catalogue, partial(self._stored.open, limits=self._limits), titles
            ),
        )
        return WebServer(web, application, self._heard)

    def _add_fetcher(self, engine: sa.Engine) -> None:
        docket = Docket(engine)
        fetcher = Fetcher(
            self._desk,
            self._settings.pacs,
            self._connect,
            expect=docket.expect,
            expect_series=docket.expect_series,
            count_kept=partial(_count_kept, engine),
        )
        self.loops.append(Loop("fetcher", fetcher.run, fetcher.stop))

    def _connect(self, peer: PacsPeer) -> PacsClient:
        if peer.dimse is not None:
            return DimsePacs(peer, self._settings.dicom.scu.ae_title)
        return DicomwebPacs(peer, self._tokens[peer.name], self._fetched, self._limits)


def _token(peer: PacsPeer) -> str | None:
    if peer.dicomweb is None:
        return None
    where = peer.dicomweb
    return read_token(where.token_file, where.token_environment, f"pacs '{peer.name}'")


def _count_kept(engine: sa.Engine, series_instance_uid: str, called_ae_title: str) -> int:
    with reading(engine) as connection:
        return connection.execute(
            sa.select(sa.func.count(sa.distinct(instances.c.sop_instance_uid)))
            .join(arrivals, arrivals.c.instance_id == instances.c.id)
            .where(
                instances.c.series_instance_uid == series_instance_uid,
                arrivals.c.called_ae_title == called_ae_title,
                arrivals.c.conflicts.is_(False),
            )
        ).scalar_one()
