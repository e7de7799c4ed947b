"""`tritome fetch`: asks the running gateway to fetch from a PACS, and shows how far it is.

In: gateway.yaml, the name of a PACS, and what to look for. Out: a progress bar and one
sentence. The gateway does the fetching, so that only it writes the store; the wish lies in
its index, where it stays also when this command is ended by force.
"""

from __future__ import annotations

import difflib
import fcntl
import re
import time
from collections.abc import Sequence
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from clients.console import out
from clients.errors import ClientError
from dicom_gateway.config import GatewaySettings, load_settings
from dicom_gateway.config_web import PacsPeer
from dicom_gateway.database import open_database
from dicom_gateway.receive.fetches import FetchDesk
from dicom_gateway.records import Fetch, FetchState

_EVERY_S = 0.3
_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_ENDED = (FetchState.DONE, FetchState.FAILED, FetchState.CANCELLED)


def run(
    config: Path,
    peer_name: str,
    *,
    study: str | None,
    accession: str | None,
    query: Sequence[str],
    series: Sequence[str],
    called: str | None,
) -> None:
    """Fetches, and returns when everything is kept.

    Raises:
        ClientError: it can't be asked for so, no gateway runs, or not everything came.
    """
    settings = load_settings(config)
    peer = _peer(settings, peer_name, config)
    keys = _keys(study, accession, query)
    for uid in series:
        _require_uid(uid, "--series")
    title = called or peer.called_ae_title
    if title not in {one.ae_title for one in settings.dicom.scp.ae_titles}:
        msg = f"'{title}' is none of our AE titles (dicom.scp.ae-titles in {config})"
        raise ClientError(msg)
    folder = settings.store.folder.resolve()
    if not gateway_runs(folder):
        msg = (
            f"no gateway runs on {folder}, and only it may write there. Start it with "
            f"'tritome up --config {config}' (or 'tritome gateway'), then fetch again"
        )
        raise ClientError(msg)
    engine = open_database(settings.database_url)
    try:
        desk = FetchDesk(engine)
        fetch_id = desk.ask(peer.name, title, keys, series)
        ended = _watch(desk, fetch_id, folder)
    finally:
        engine.dispose()
    if ended.state is not FetchState.DONE:
        msg = f"not everything was fetched from '{peer.name}': {ended.note}"
        raise ClientError(msg)
    out.print(f"Fetched from {peer.name} for {title}: {ended.note}.")


def gateway_runs(folder: Path) -> bool:
    """Whether a gateway holds the lock of its store's folder."""
    try:
        with (folder / "gateway.lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _watch(desk: FetchDesk, fetch_id: str, folder: Path) -> Fetch:
    columns = (TextColumn("Fetching"), BarColumn(), MofNCompleteColumn(), TextColumn("instances"))
    try:
        with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
            task = bar.add_task("", total=None)
            while True:
                fetch = desk.show(fetch_id)
                if fetch is None:
                    msg = "the gateway has forgotten the fetch; ask again"
                    raise ClientError(msg)
                bar.update(task, total=fetch.expected, completed=fetch.kept)
                if fetch.state in _ENDED:
                    return fetch
                if not gateway_runs(folder):
                    msg = (
                        "the gateway has ended meanwhile. The fetch isn't lost: the gateway goes "
                        "on with it when it is started again"
                    )
                    raise ClientError(msg)
                time.sleep(_EVERY_S)
    except KeyboardInterrupt:
        desk.finish(fetch_id, FetchState.CANCELLED, "cancelled by a person")
        raise


def _peer(settings: GatewaySettings, name: str, config: Path) -> PacsPeer:
    for peer in settings.pacs:
        if peer.name == name:
            return peer
    known = [peer.name for peer in settings.pacs]
    if not known:
        msg = f"{config} names no PACS to fetch from; list them under 'pacs'"
        raise ClientError(msg)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"there is {', '.join(known)}"
    msg = f"{config} names no pacs '{name}'; {hint}"
    raise ClientError(msg)


def _keys(study: str | None, accession: str | None, query: Sequence[str]) -> dict[str, str]:
    from pydicom.datadict import tag_for_keyword  # noqa: PLC0415 - --help stays quick

    keys: dict[str, str] = {}
    if study is not None:
        _require_uid(study, "--study")
        keys["StudyInstanceUID"] = study
    if accession is not None:
        keys["AccessionNumber"] = accession
    for one in query:
        keyword, equals, value = one.partition("=")
        if not equals or not value or tag_for_keyword(keyword) is None:
            # The value isn't repeated: it may be a patient's.
            msg = (
                f"--query '{keyword}': write Keyword=Value with a keyword of DICOM, such as "
                "PatientID=1234 or StudyDate=20260101-20260131"
            )
            raise ClientError(msg)
        keys[keyword] = value
    if not any(value.strip("*? ") for value in keys.values()):
        msg = "say what to fetch: --study UID, --accession NUMBER, or --query Keyword=Value"
        raise ClientError(msg)
    return keys


def _require_uid(text: str, option: str) -> None:
    if len(text) > 64 or not _UID.fullmatch(text):
        msg = f"{option} takes a UID: digits and dots, at most 64 characters"
        raise ClientError(msg)
