"""Associations of pynetdicom's with a door of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pydicom import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association

from tests.support.gateway import Door


@contextmanager
def an_association(
    door: Door,
    contexts: list[tuple[str, list[str]]] | None = None,
    *,
    calling: str = "SENDER",
    called: str = "LUNG",
) -> Iterator[Association]:
    """An association of pynetdicom's, not yet checked for being established."""
    entity = AE(calling)
    for abstract_syntax, syntaxes in contexts or [(CTImageStorage, [ExplicitVRLittleEndian])]:
        entity.add_requested_context(abstract_syntax, syntaxes)
    association = entity.associate("127.0.0.1", door.port, ae_title=called)
    raw = association.dul.socket.socket if association.dul.socket is not None else None
    try:
        yield association
    finally:
        if association.is_established:
            association.release()
        else:
            association.abort()
        if association.is_alive():
            association.join(10)
        if raw is not None:
            raw.close()  # of a lost connection pynetdicom leaves it to the garbage collector


def status_of(association: Association, ds: Dataset) -> int:
    """The status with which a C-STORE is answered."""
    assert association.is_established
    return int(association.send_c_store(ds).Status)
