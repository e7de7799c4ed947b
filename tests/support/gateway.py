"""A real store and a real door on loopback: `with an_open_door(folder) as door: ...`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from dicom_gateway.config import ScpSettings
from dicom_gateway.database import open_database
from dicom_gateway.receive import Receiver
from dicom_gateway.receive.commitment import Commitments
from dicom_gateway.receive.incoming import Spool
from dicom_gateway.receiving import holdings_of
from dicom_gateway.records import Arrival, Instance
from dicom_gateway.store import InstanceStore, SeriesIndex


@dataclass(frozen=True)
class Keeping:
    """A store in a folder of its own, its index an SQLite file beside it."""

    folder: Path
    engine: sa.Engine
    store: InstanceStore
    index: SeriesIndex

    def files(self) -> list[Path]:
        """Every file of the store, also those that are half-written."""
        return sorted(
            path
            for below in ("instances", "incoming")
            for path in (self.folder / below).rglob("*")
            if path.is_file()
        )


@contextmanager
def a_store(folder: Path, *, min_free_bytes: int = 0, url: str | None = None) -> Iterator[Keeping]:
    """Opens the store of `folder`, new or as an earlier one left it; SQLite without a `url`."""
    engine = open_database(url or f"sqlite:///{folder}/index.sqlite")
    try:
        yield Keeping(
            folder.resolve(),
            engine,
            InstanceStore(folder, engine, min_free_bytes),
            SeriesIndex(engine, folder),
        )
    finally:
        engine.dispose()


@dataclass
class Door:
    """A listening receiver and what came through it."""

    receiver: Receiver
    keeping: Keeping
    ended: list[str] = field(default_factory=list)
    kept: list[Instance] = field(default_factory=list)
    news: threading.Condition = field(default_factory=threading.Condition)

    @property
    def port(self) -> int:
        """Where it listens on 127.0.0.1."""
        return self.receiver.port

    @property
    def tls_port(self) -> int:
        """Where it listens for DICOM TLS."""
        assert self.receiver.tls_port is not None
        return self.receiver.tls_port

    def wait_until(self, holds: Callable[[], bool], timeout_s: float = 30.0) -> None:
        """Waits for something that the receiver does in its own threads."""
        deadline_s = time.monotonic() + timeout_s
        with self.news:
            while not holds():
                left_s = deadline_s - time.monotonic()
                assert left_s > 0, "it did not happen in time"
                self.news.wait(min(left_s, 0.05))


@contextmanager
def an_open_door(
    folder: Path,
    *,
    keep: Callable[[Arrival], Instance] | None = None,
    min_free_bytes: int = 0,
    **settings: Any,
) -> Iterator[Door]:
    """Listens for LUNG from anybody, unless the settings say otherwise.

    Args:
        folder: Of the store.
        keep: In place of the store's own.
        min_free_bytes: Of the store.
        **settings: Of `ScpSettings`.
    """
    settings.setdefault("ae_titles", [{"ae-title": "LUNG", "pipelines": ["lung_ct"]}])
    settings.setdefault("reject_unknown_sources", False)
    settings.setdefault("host", "127.0.0.1")
    scp = ScpSettings(port=0, **settings)
    with a_store(folder, min_free_bytes=min_free_bytes) as keeping:
        door: Door

        def keep_and_note(arrival: Arrival) -> Instance:
            instance = (keep or keeping.store.keep)(arrival)
            with door.news:
                door.kept.append(instance)
                door.news.notify_all()
            return instance

        def note_the_end(association_id: str, in_order: bool) -> None:
            keeping.index.association_ended(association_id, in_order=in_order)
            with door.news:
                door.ended.append(association_id)
                door.news.notify_all()

        receiver = Receiver(
            scp,
            keep_and_note,
            note_the_end,
            spool=Spool(keeping.folder / "incoming", min_free_bytes),
            commitments=Commitments(keeping.engine, holdings_of(keeping.engine, keeping.folder)),
        )
        door = Door(receiver, keeping)
        door.receiver.start()
        try:
            yield door
        finally:
            door.receiver.stop()
