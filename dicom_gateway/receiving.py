"""What receiving needs of the store, and the receiving process itself.

In: gateway.yaml's settings. Out: `keep` and storage commitment for `receive`; as a program
(`python -m dicom_gateway.receiving`), one of several processes on one port. What survives a
crash is in the store.

Part of `app.py`, in a file of its own: it knows receive, store, deliver and the audit trail,
which don't know each other.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import sqlalchemy as sa

from dicom_gateway.auditing import Audit
from dicom_gateway.config import LOG_LEVEL, LOG_STYLE, GatewaySettings
from dicom_gateway.database import instances, open_database, reading
from dicom_gateway.deliver import CommitmentReports, Entries
from dicom_gateway.deliver.commitment import read_report
from dicom_gateway.deliver.entries import Told
from dicom_gateway.observe import get_logger, level_of, set_up_logging
from dicom_gateway.receive.commitment import Commitments, Holdings
from dicom_gateway.receive.host import AssociationHost
from dicom_gateway.receive.incoming import Spool
from dicom_gateway.receive.processes import (
    Child,
    RemoteDesk,
    receive_greeting,
    serve_connections,
)
from dicom_gateway.receive.reports import Reports
from dicom_gateway.records import Arrival, Delivery, Instance
from dicom_gateway.store import InstanceStore

_GRACE_S = 10.0
_AT_ONCE = 500


def spool_of(settings: GatewaySettings) -> Spool:
    """Large data sets stay inside the store while they come."""
    return Spool(settings.store.folder.resolve() / "incoming", settings.store.min_free_bytes)


def commitments_of(settings: GatewaySettings, engine: sa.Engine) -> Commitments:
    """Storage commitment, answered from the index and the files that it names."""
    return Commitments(engine, holdings_of(engine, settings.store.folder.resolve()))


def reports_of(settings: GatewaySettings, engine: sa.Engine, told: Told) -> Reports | None:
    """What PACS report on our own results; None where none is asked to.

    Any receiving process may get a report: what it says goes to the delivery rows.

    Args:
        settings: The whole of gateway.yaml.
        engine: From `open_database`.
        told: Hears of each delivery that ends with a report.
    """
    scu = settings.dicom.scu
    asked = [one for one in scu.destinations if one.confirm == "storage-commitment"]
    if not asked:
        return None
    noted = CommitmentReports(
        Entries(engine, settings.store.folder.resolve(), scu, told), scu.destinations
    )
    return Reports(
        called_ae_title=scu.ae_title,
        calling_ae_titles=frozenset(one.proof_place.ae_title for one in asked),
        take=lambda information: noted.take(read_report(information)),
    )


def holdings_of(engine: sa.Engine, folder: Path) -> Holdings:
    """What is safely kept under each SOP Instance UID: a row, and the whole file it names."""

    def holdings(sop_instance_uids: Sequence[str]) -> Mapping[str, set[str]]:
        held: dict[str, set[str]] = {}
        for first in range(0, len(sop_instance_uids), _AT_ONCE):
            some = sop_instance_uids[first : first + _AT_ONCE]
            with reading(engine) as connection:
                rows = connection.execute(
                    sa.select(
                        instances.c.sop_instance_uid,
                        instances.c.sop_class_uid,
                        instances.c.path,
                        instances.c.size_bytes,
                    ).where(instances.c.sop_instance_uid.in_(some))
                ).all()
            for row in rows:
                try:
                    whole = (folder / row.path).stat().st_size == row.size_bytes
                except OSError:
                    whole = False  # a row is no promise; the file is
                if whole:
                    held.setdefault(row.sop_instance_uid, set()).add(row.sop_class_uid)
        return held

    return holdings


def receiving_child(settings: GatewaySettings) -> Child:
    """How a process that only receives is started."""
    return Child(
        (sys.executable, "-m", "dicom_gateway.receiving"),
        # What nobody has written isn't always what somebody may write: no pipelines, say.
        settings.model_dump_json(by_alias=True, exclude_defaults=True),
    )


def main(arguments: Sequence[str]) -> int:
    """A receiving process; its one argument is the file descriptor of its line."""
    with socket.socket(fileno=int(arguments[0])) as line:
        settings = GatewaySettings.model_validate_json(receive_greeting())
        level = level_of(os.environ.get(LOG_LEVEL))
        set_up_logging("console" if _for_people() else "json", level)
        log = get_logger(room="receive")
        scp = settings.dicom.scp
        engine = open_database(settings.database_url, scp.max_associations + 1)
        try:
            store = InstanceStore(
                settings.store.folder.resolve(),
                engine,
                settings.store.min_free_bytes,
                settings.store.resume_free_bytes,
            )
            desk = RemoteDesk(line, scp.handshake_timeout_s)

            def keep(arrival: Arrival) -> Instance:
                instance = store.keep(arrival)
                desk.kept(instance.path, arrival.called_ae_title, instance.size_bytes)
                return instance

            audit = Audit(settings, engine)

            def delivery_ended(delivery: Delivery, failure: str | None) -> None:
                audit.sent(delivery, failure)
                desk.delivered(delivery.job_id, delivery.destination, failure)

            host = AssociationHost(
                scp,
                keep,
                desk,
                spool=spool_of(settings),
                commitments=commitments_of(settings, engine),
                reports=reports_of(settings, engine, delivery_ended),
                refused=desk.refused,
            )
            serve_connections(line, desk, host.begin)
            host.stop(_GRACE_S)
            log.info("receiving process ends")
        finally:
            engine.dispose()
    return 0


def _for_people() -> bool:
    return sys.stderr.isatty() or os.environ.get(LOG_STYLE) == "console"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
