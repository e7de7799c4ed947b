"""A small receiving PACS: answers C-ECHO, takes every C-STORE, writes it to a folder.

In: associations on loopback. Out: one PS3.10 file per object, written beside, synced and
renamed before 0x0000 is answered. For the demo and for tests; a hospital has a real one.
"""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path
from typing import Any

_SUCCESS = 0x0000
_CANNOT_WRITE = 0xA700


class Receiver:
    """Listens on `port` (0: the system's choice) until the context ends.

    Attributes:
        port: Where it listens, once entered.
    """

    def __init__(self, folder: Path, *, ae_title: str = "RECEIVER", port: int = 0) -> None:
        self.folder = folder
        self.ae_title = ae_title
        self.port = port
        self._received: list[Path] = []
        self._something_came = threading.Condition()
        self._server: Any = None

    def __enter__(self) -> Receiver:
        from pynetdicom import AE, AllStoragePresentationContexts, evt  # noqa: PLC0415
        from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # noqa: PLC0415

        self.folder.mkdir(parents=True, exist_ok=True)
        ae = AE(ae_title=self.ae_title)
        ae.supported_contexts = AllStoragePresentationContexts
        ae.add_supported_context(Verification)
        self._server = ae.start_server(
            ("127.0.0.1", self.port),
            block=False,
            evt_handlers=[(evt.EVT_C_STORE, self._keep), (evt.EVT_C_ECHO, lambda _: _SUCCESS)],
        )
        self.port = int(self._server.server_address[1])
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()

    @property
    def received(self) -> tuple[Path, ...]:
        """Files of the objects so far, in the order they came."""
        with self._something_came:
            return tuple(self._received)

    def wait(self, timeout_s: float) -> None:
        """Returns when the next object comes, or after `timeout_s`."""
        with self._something_came:
            self._something_came.wait(timeout_s)

    def _keep(self, event: Any) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        # A received UID never becomes part of a path: it could point outside the folder.
        name = f"{event.request.AffectedSOPClassUID.name.split(' ')[0].lower()}-"
        name = "".join(c for c in name if c.isalnum() or c == "-")
        path = self.folder / f"{name}{hashlib.sha256(uid.encode()).hexdigest()[:12]}.dcm"
        beside = path.with_suffix(".part")
        try:
            with beside.open("wb") as file:
                file.write(event.encoded_dataset())
                file.flush()
                os.fsync(file.fileno())
            beside.rename(path)
        except OSError:
            return _CANNOT_WRITE
        with self._something_came:
            if path not in self._received:
                self._received.append(path)
            self._something_came.notify_all()
        return _SUCCESS
