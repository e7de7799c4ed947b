"""Sends what appears in a folder, once it has stopped growing; remembers what was sent.

In: folders. Out: objects accepted by the peer. Survives a crash: the memory, one line for each
file that the peer has answered for good; what was under way when it stopped is sent again,
which a receiver answers with success.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clients.errors import ClientError, NotAccepted
from clients.found import Found, Search, find_instances

LOOK_EVERY_S = 1.0
SETTLED_AFTER_S = 2.0
"""A folder in which nothing has changed for so long is whole: copies make no pauses."""
TRY_AGAIN_AFTER_S = 10.0
MEMORY_NAME = ".tritome-sent"

_OUT_OF_RESOURCES = range(0xA700, 0xA800)


@dataclass(frozen=True, slots=True)
class Look:
    """A file as it was when it was looked at."""

    size_bytes: int
    changed_ns: int

    @classmethod
    def at(cls, path: Path) -> Look | None:
        """None where it is gone."""
        try:
            found = path.stat()
        except OSError:
            return None
        return cls(found.st_size, found.st_mtime_ns)


class Memory:
    """Which files were answered for good, and by whom.

    Args:
        path: One JSON document for each line; made when it is first needed.
        peer: The memory of one peer says nothing about another.

    Raises:
        ClientError: it can't be read.
    """

    def __init__(self, path: Path, peer: str) -> None:
        self._path = path
        self._peer = peer
        self._known: dict[str, Look] = {}
        try:
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        except (OSError, UnicodeDecodeError) as error:
            msg = f"what was sent before can't be read from {path}; name another with --memory"
            raise ClientError(msg) from error
        for line in lines:
            try:
                one = json.loads(line)
                if one["peer"] == peer:
                    self._known[one["file"]] = Look(one["size_bytes"], one["changed_ns"])
            except (ValueError, KeyError, TypeError):
                continue  # half a line of a killed process: that file is sent again

    def has(self, path: Path, look: Look) -> bool:
        """Whether the file was answered for as it is now."""
        return self._known.get(str(path)) == look

    def add(self, answered: Iterable[tuple[Path, Look]]) -> None:
        """Remembers for good.

        Raises:
            ClientError: it can't be written.
        """
        lines = []
        for path, look in answered:
            self._known[str(path)] = look
            lines.append(
                json.dumps(
                    {
                        "peer": self._peer,
                        "file": str(path),
                        "size_bytes": look.size_bytes,
                        "changed_ns": look.changed_ns,
                    }
                )
            )
        if not lines:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n".join(("", *lines, "")))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            msg = (
                f"what was sent can't be remembered in {self._path} ({error.strerror}); name "
                "another file with --memory"
            )
            raise ClientError(msg) from error


class Watch:
    """Looks at folders again and again.

    Args:
        folders: Searched to the bottom.
        memory: What needn't be sent any more.
        send: Sends some instances; gives those that were answered for good. Raises
            `NotAccepted` where no association comes about.
        settled_after_s: How long what is new in a file's folder must stay as it is.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        memory: Memory,
        send: Callable[[Search], Iterable[Found]],
        *,
        settled_after_s: float = SETTLED_AFTER_S,
    ) -> None:
        for folder in folders:
            if not folder.is_dir():
                msg = f"{folder} is no folder; only folders can be watched"
                raise ClientError(msg)
        self._folders = folders
        self._memory = memory
        self._send = send
        self._settled_after_s = settled_after_s
        self._seen: dict[Path, tuple[Look, float]] = {}  # as it is, and since when
        self._not_before_s: dict[Path, float] = {}

    def run(
        self, stop: threading.Event, *, on_trouble: Callable[[NotAccepted], None] | None = None
    ) -> None:
        """Looks and sends until `stop` is set."""
        while not stop.is_set():
            try:
                self.look()
            except NotAccepted as trouble:
                if on_trouble is not None:
                    on_trouble(trouble)
                stop.wait(TRY_AGAIN_AFTER_S)
            stop.wait(LOOK_EVERY_S)

    def look(self) -> int:
        """Sends what has settled since; gives how many files were answered for good.

        Raises:
            NotAccepted: the peer is away or rejects us; all of it is tried again.
        """
        settled = self._settled()
        if not settled:
            return 0
        search = _find(settled)
        # What is no DICOM file is not looked at again until it changes.
        answered = [(path, settled[path]) for path in search.skipped]
        try:
            if search.instances:
                done = list(self._send(search))
                answered += [(found.path, settled[found.path]) for found in done]
        finally:
            self._memory.add(answered)
            later_s = time.monotonic() + TRY_AGAIN_AFTER_S
            known = {path for path, _ in answered}
            self._not_before_s.update((path, later_s) for path in settled if path not in known)
        return len(answered)

    def _settled(self) -> dict[Path, Look]:
        now_s = time.monotonic()
        settled: dict[Path, Look] = {}
        seen: dict[Path, tuple[Look, float]] = {}
        for path in self._files():
            look = Look.at(path)
            if look is None or self._memory.has(path, look):
                continue
            before = self._seen.get(path)
            since_s = before[1] if before is not None and before[0] == look else now_s
            seen[path] = (look, since_s)
        # A series is copied file by file; it shall go by one association.
        busy_until_s: dict[Path, float] = {}
        for path, (_, since_s) in seen.items():
            latest_s = max(busy_until_s.get(path.parent, since_s), since_s)
            busy_until_s[path.parent] = latest_s
        for path, (look, _) in seen.items():
            if (
                now_s - busy_until_s[path.parent] >= self._settled_after_s
                and self._not_before_s.get(path, now_s) <= now_s
            ):
                settled[path] = look
        self._seen = seen
        self._not_before_s = {p: s for p, s in self._not_before_s.items() if p in seen}
        return settled

    def _files(self) -> list[Path]:
        # Hidden files are other programs' (rsync's, for one), and our own memory.
        return sorted(
            path
            for folder in self._folders
            for path in folder.rglob("*")
            if not path.name.startswith(".") and path.is_file()
        )


def _find(paths: Iterable[Path]) -> Search:
    """What can be read just now; the rest is looked at again later."""
    instances: list[Found] = []
    skipped: list[Path] = []
    for path in paths:
        try:
            one = find_instances([path])
        except ClientError:
            continue  # gone, or not ours to read yet
        instances += one.instances
        skipped += one.skipped
    return Search(tuple(instances), tuple(skipped))


def is_final(status: int | None) -> bool:
    """Whether sending an object again would be answered the same way.

    Source: PS3.4 Table B.2-1.
    """
    return status is not None and status not in _OUT_OF_RESOURCES
