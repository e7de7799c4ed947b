"""Room 1, receive: what we fetch ourselves from a PACS, by C-MOVE or by WADO-RS.

In: the list of `fetches.py`. Out: objects that come through the same `keep` as all others (by
C-MOVE through our own door, by WADO-RS as multipart bodies), and the counts that the PACS
states, to `expect`: so it is known when a series is complete. Survives a crash: the list;
a fetch that was under way is begun anew.

Source: PS3.4 C.4 (C-FIND, C-MOVE), PS3.18 10.4 and 10.6 (WADO-RS, QIDO-RS).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from dicom_gateway.config_web import PacsPeer
from dicom_gateway.errors import DatabaseUnavailable, GatewayError
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.receive.fetches import FetchDesk
from dicom_gateway.records import Fetch, FetchState

_LOOK_EVERY_S = 0.5
_WRITE_EVERY_S = 0.5
_TROUBLES_SHOWN = 3

SERIES_KEYS = frozenset(
    (
        "Modality",
        "SeriesInstanceUID",
        "SeriesNumber",
        "SeriesDescription",
        "BodyPartExamined",
        "ProtocolName",
        "SeriesDate",
    )
)
"""Keys of the series level; all others are of the study (PS3.4 C.6.2.1)."""


@dataclass(frozen=True, slots=True)
class RemoteSeries:
    """A series that a PACS has, and how many instances it says there are."""

    study_instance_uid: str
    series_instance_uid: str
    instances: int | None


class Progress(Protocol):
    """Told how many of a series have come so far; False: a person has cancelled it."""

    def __call__(self, completed: int, failed: int) -> bool:
        """Between objects."""
        ...


@dataclass(frozen=True, slots=True)
class Retrieved:
    """How the retrieval of one series ended.

    Attributes:
        completed: Instances that the PACS has sent and we have kept.
        trouble: Why some are missing, in words for a person.
    """

    completed: int
    failed: int
    trouble: str = ""


class PacsClient(Protocol):
    """One way to ask a PACS: `pacs_dimse.py`, `pacs_dicomweb.py`."""

    finds_by: str
    """C-FIND or QIDO-RS."""
    moves_by: str
    """C-MOVE or WADO-RS."""

    def find(self, keys: Mapping[str, str], series: Sequence[str]) -> list[RemoteSeries]:
        """What matches.

        Raises:
            PeerUnavailable, PeerRefused.
        """
        ...

    def retrieve(self, one: RemoteSeries, called_ae_title: str, progress: Progress) -> Retrieved:
        """Fetches one series.

        Raises:
            PeerUnavailable, PeerRefused.
        """
        ...

    def close(self) -> None:
        """Hangs up."""
        ...


class Cancelled(Exception):
    """A person has ended the fetch."""


class Fetcher:
    """Fetches what the list says, one after the other; `run` returns when `stop` was called.

    Args:
        desk: The list.
        peers: `pacs` of gateway.yaml.
        connect: Makes the client of a peer.
        expect: Is told (series, called AE title, count, source) what a PACS says it has.
        expect_series: The same for the series of a study.
        count_kept: How many instances of (series, called AE title) are kept and in use.
    """

    def __init__(
        self,
        desk: FetchDesk,
        peers: Sequence[PacsPeer],
        connect: Callable[[PacsPeer], PacsClient],
        *,
        expect: Callable[[str, str, int, str], None],
        expect_series: Callable[[str, str, int, str], None],
        count_kept: Callable[[str, str], int],
    ) -> None:
        self._desk = desk
        self._peers = {peer.name: peer for peer in peers}
        self._connect = connect
        self._expect = expect
        self._expect_series = expect_series
        self._count_kept = count_kept
        self._stopping = threading.Event()
        self._log = get_logger(room="receive")

    def run(self) -> None:
        """Fetches until `stop`; never ends because a PACS or the database is away."""
        cut_off: Fetch | None = None  # by the database: nobody else takes it up
        while not self._stopping.is_set():
            try:
                if cut_off is not None:
                    self._desk.put_back(cut_off.fetch_id)
                cut_off = self._desk.claim()
                if cut_off is not None:
                    self._fetch_or_say_why(cut_off)
                    cut_off = None
                    continue
            except DatabaseUnavailable as error:
                self._log.warning("index_away", reason=str(error))
            self._stopping.wait(_LOOK_EVERY_S)

    def stop(self) -> None:
        """Asks it to end; a fetch under way is begun anew by the next start."""
        self._stopping.set()

    def _fetch_or_say_why(self, fetch: Fetch) -> None:
        log = self._log.bind(fetch_id=fetch.fetch_id, peer=fetch.peer)
        log.info("fetch begins")
        try:
            state, note = self._fetch(fetch)
        except Cancelled:
            if self._stopping.is_set():
                return
            state, note = FetchState.CANCELLED, "cancelled"
        except DatabaseUnavailable:
            raise
        except GatewayError as error:
            state, note = FetchState.FAILED, str(error)
        except Exception:
            log.error("fetch failed: unforeseen error", exc_info=True)
            state, note = FetchState.FAILED, "something unforeseen; the gateway's log has it"
        log.info("fetch ends", state=state.value, note=note)
        self._desk.finish(fetch.fetch_id, state, note)

    def _fetch(self, fetch: Fetch) -> tuple[FetchState, str]:
        peer = self._peers.get(fetch.peer)
        if peer is None:
            return FetchState.FAILED, f"gateway.yaml names no pacs '{fetch.peer}' any more"
        client = self._connect(peer)
        try:
            found = client.find(fetch.keys, fetch.series)
            if not found:
                return FetchState.FAILED, f"'{fetch.peer}' has nothing that matches"
            self._state_counts(fetch, client, found)
            tally = _Tally(self._desk, fetch.fetch_id, found, self._stopping)
            tally.write()
            troubles: dict[str, None] = {}
            for one in found:
                trouble = self._retrieve(fetch, client, one, tally)
                if trouble:
                    troubles[trouble] = None
        finally:
            client.close()
        tally.write()
        what = f"{tally.kept} instance(s) of {len(found)} series kept"
        if not troubles:
            return FetchState.DONE, what
        shown = "; ".join(list(troubles)[:_TROUBLES_SHOWN])
        return FetchState.FAILED, f"{what}, not all: {shown}"

    def _state_counts(
        self, fetch: Fetch, client: PacsClient, found: Sequence[RemoteSeries]
    ) -> None:
        source = f"{client.finds_by} of {fetch.peer}"[:64]
        studies: dict[str, int] = {}
        for one in found:
            studies[one.study_instance_uid] = studies.get(one.study_instance_uid, 0) + 1
            if one.instances:
                self._expect(one.series_instance_uid, fetch.called_ae_title, one.instances, source)
        for study, count in studies.items():
            # As many as are fetched: nobody waits for those that aren't.
            self._expect_series(study, fetch.called_ae_title, count, source)

    def _retrieve(self, fetch: Fetch, client: PacsClient, one: RemoteSeries, tally: _Tally) -> str:
        """Gives what is wrong with it, or nothing."""
        ended = client.retrieve(one, fetch.called_ae_title, tally.of_series)
        tally.series_ended(ended)
        if not ended.failed and ended.completed:
            self._expect(
                one.series_instance_uid,
                fetch.called_ae_title,
                max(ended.completed, one.instances or 0),
                f"{client.moves_by} of {fetch.peer}"[:64],
            )
        if ended.trouble:
            return ended.trouble
        there = self._count_kept(one.series_instance_uid, fetch.called_ae_title)
        wanted = max(ended.completed, one.instances or 0)
        if there < wanted:
            return (
                f"of series {one.series_instance_uid} '{fetch.peer}' says it has {wanted} "
                f"instances, and {there} came here"
            )
        return ""


class _Tally:
    """Counts of one fetch, written now and then."""

    def __init__(
        self,
        desk: FetchDesk,
        fetch_id: str,
        found: Sequence[RemoteSeries],
        stopping: threading.Event,
    ) -> None:
        self._desk = desk
        self._fetch_id = fetch_id
        self._stopping = stopping
        counts = [one.instances for one in found]
        self._expected = None if None in counts else sum(count or 0 for count in counts)
        self._written_at_s = 0.0
        self._failed = 0
        self._before = (0, 0)
        self.kept = 0

    def of_series(self, completed: int, failed: int) -> bool:
        self.kept = self._before[0] + completed
        self._failed = self._before[1] + failed
        if time.monotonic() - self._written_at_s > _WRITE_EVERY_S:
            self.write()
        return True

    def series_ended(self, ended: Retrieved) -> None:
        self.kept = self._before[0] + ended.completed
        self._failed = self._before[1] + ended.failed
        self._before = (self.kept, self._failed)

    def write(self) -> None:
        """Raises Cancelled where a person, or the gateway's end, has ended it."""
        self._written_at_s = time.monotonic()
        goes_on = self._desk.progress(
            self._fetch_id, expected=self._expected, kept=self.kept, failed=self._failed
        )
        if not goes_on or self._stopping.is_set():
            raise Cancelled
