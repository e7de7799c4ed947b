"""Keep, a look at the files themselves: what is there, and is it what it was?

In: the store's folder. Out: one `Examined` for each kept file, with its place, its head, its
notes, and whether its bytes are still the ones that were acknowledged: the name of a file is
a digest of its content. Nothing is changed here.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from dicom_gateway.errors import Refused
from dicom_gateway.store.envelope import Envelope, Note, NotOurs, read_head, relative_path
from dicom_gateway.store.identity import Identity, identify_bytes
from dicom_gateway.store.notes import note_path, read_notes

INSTANCES = "instances"
RESULTS = "results"
HELD = "held"
"""Objects that the geometry gate has held, in a folder for each job."""
DAMAGED = "damaged"
_TOGETHER = 512
"""So many files are handed to the threads at once."""


@dataclass(frozen=True, slots=True)
class Examined:
    """One file of the store.

    Attributes:
        relative: Its path inside the store's folder.
        envelope: What its head says; None where it is damaged or none of ours.
        identity: What its data set says; None as above.
        sha256: Of its data set, as found.
        notes: How it came to each called AE title; empty where it is damaged.
        trouble: In words; empty where it is what it was.
    """

    relative: Path
    size_bytes: int
    envelope: Envelope | None = None
    identity: Identity | None = None
    sha256: str = ""
    notes: tuple[Note, ...] = ()
    trouble: str = ""


def instance_files(folder: Path) -> list[Path]:
    """All kept files, as paths inside `folder`."""
    return sorted(
        path.relative_to(folder) for path in (folder / INSTANCES).rglob("*.dcm") if path.is_file()
    )


def examine_all(
    folder: Path, relatives: list[Path], on_file: Callable[[Examined], None] = lambda _one: None
) -> Iterator[Examined]:
    """Examines files, several at a time, in their order.

    Args:
        folder: The store's.
        relatives: From `instance_files`.
        on_file: Called after each, for a progress bar.
    """
    waiting = iter(relatives)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        while some := list(islice(waiting, _TOGETHER)):
            for one in threads.map(lambda relative: examine(folder, relative), some):
                on_file(one)
                yield one


def examine(folder: Path, relative: Path) -> Examined:
    """Reads one file to its end and compares it with its name."""
    path = folder / relative
    size_bytes = 0
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            envelope = read_head(file)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if relative_path(envelope.sop_instance_uid, sha256).name != relative.name:
                return Examined(relative, size_bytes, trouble="its bytes have changed")
            identity = _identify(file.fileno(), envelope)
    except FileNotFoundError:
        return Examined(relative, 0, trouble="it has gone")
    except OSError as error:
        return Examined(relative, size_bytes, trouble=f"it can't be read ({error.strerror})")
    except NotOurs:
        return Examined(relative, size_bytes, trouble="it has no head of this store")
    except Refused as error:
        return Examined(relative, size_bytes, trouble=f"it is no instance ({error.code})")
    return Examined(
        relative, size_bytes, envelope, identity, sha256, _notes(folder, relative, envelope.note)
    )


def _identify(fd: int, envelope: Envelope) -> Identity:
    with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as encoded:
        return identify_bytes(encoded, envelope.transfer_syntax_uid, envelope.begins_at)


def _notes(folder: Path, relative: Path, in_file: Note) -> tuple[Note, ...]:
    """What the file and the notes beside it say; a note goes before the file."""
    by_title = {in_file.called_ae_title: in_file}
    with suppress(OSError, NotOurs):  # mostly there are none; damaged ones say nothing
        for note in read_notes(folder / note_path(relative)):
            by_title[note.called_ae_title] = note
    return tuple(note for note in by_title.values() if not note.removed)
