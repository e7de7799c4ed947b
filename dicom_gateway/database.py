"""The index: tables, engine, the database's own clock. SQLite (WAL) or PostgreSQL.

Ground for every room that keeps something (store, jobs, deliver), like `records`: the
processes of a gateway meet here and in the instance store, nowhere else. Migrations are
alembic's, under `migrations/`; `open_database` brings an older database up to date.

Times are seconds since the epoch by the database's clock (`now_s`), so that two hosts
whose clocks differ still agree on leases.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import sqlalchemy.ext.compiler
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from dicom_gateway.errors import ConfigurationError, DatabaseUnavailable

metadata = sa.MetaData()

instances = sa.Table(
    "instances",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("sop_instance_uid", sa.String(64), nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("sop_class_uid", sa.String(64), nullable=False),
    sa.Column("transfer_syntax_uid", sa.String(64), nullable=False),
    sa.Column("series_instance_uid", sa.String(64), nullable=False),
    sa.Column("study_instance_uid", sa.String(64), nullable=False),
    sa.Column("modality", sa.String(16), nullable=False),
    sa.Column("path", sa.Text, nullable=False),  # relative to the store's folder
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("received_at_s", sa.Double, nullable=False),
    sa.UniqueConstraint("sop_instance_uid", "sha256"),
    sa.Index("ix_instances_series", "series_instance_uid"),
)

# Which instance came to which called AE title: the same series may be sent to two.
arrivals = sa.Table(
    "arrivals",
    metadata,
    sa.Column("instance_id", sa.ForeignKey("instances.id"), primary_key=True),
    sa.Column("called_ae_title", sa.String(16), primary_key=True),
    sa.Column("calling_ae_title", sa.String(16), nullable=False),
    sa.Column("association_id", sa.String(32), nullable=False),
    # Other bytes under this SOP Instance UID are the ones in use for this title.
    sa.Column("conflicts", sa.Boolean, nullable=False, default=False),
    sa.Column("received_at_s", sa.Double, nullable=False),
    sa.Index("ix_arrivals_association", "association_id"),
)

series = sa.Table(
    "series",
    metadata,
    sa.Column("series_instance_uid", sa.String(64), primary_key=True),
    sa.Column("called_ae_title", sa.String(16), primary_key=True),
    sa.Column("calling_ae_title", sa.String(16), nullable=False),
    sa.Column("study_instance_uid", sa.String(64), nullable=False),
    sa.Column("modality", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),  # SeriesState
    sa.Column("reasons", sa.Text, nullable=False, default=""),  # why it was so decided
    sa.Column("last_arrival_at_s", sa.Double, nullable=False),
    sa.Column("released_at_s", sa.Double),  # the last open association ended
    sa.Column("broken_off", sa.Boolean, nullable=False, default=False),  # one was aborted or lost
    # It was ignored or had failed before it was opened again: other bytes under a known SOP
    # Instance UID are the corrected ones.
    sa.Column("renewable", sa.Boolean, nullable=False, default=False),
    sa.Index("ix_series_state", "state"),
    sa.Index("ix_series_study", "study_instance_uid"),
)

# Which associations are open just now, and what they have brought. None after a start.
open_associations = sa.Table(
    "open_associations",
    metadata,
    sa.Column("association_id", sa.String(32), primary_key=True),
    sa.Column("series_instance_uid", sa.String(64), primary_key=True),
    sa.Column("called_ae_title", sa.String(16), primary_key=True),
)

# How many there should be, as a PACS states it: instances of a series or study, series of a
# study. May be written before the first of them has come.
stated_counts = sa.Table(
    "stated_counts",
    metadata,
    sa.Column("uid", sa.String(64), primary_key=True),  # of a series or a study
    sa.Column("called_ae_title", sa.String(16), primary_key=True),
    sa.Column("what", sa.String(16), primary_key=True),  # instances or series
    sa.Column("source", sa.String(64), primary_key=True),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("stated_at_s", sa.Double, nullable=False),
)

# Series and studies that a person has declared complete; until they are decided.
completed_by_hand = sa.Table(
    "completed_by_hand",
    metadata,
    sa.Column("uid", sa.String(64), primary_key=True),  # of a series or a study
    sa.Column("called_ae_title", sa.String(16), primary_key=True),
    sa.Column("at_s", sa.Double, nullable=False),
)

# What was decided about a series, when, and why: `tritome series show`.
series_decisions = sa.Table(
    "series_decisions",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("series_instance_uid", sa.String(64), nullable=False),
    sa.Column("called_ae_title", sa.String(16), nullable=False),
    sa.Column("at_s", sa.Double, nullable=False),
    sa.Column("ruling", sa.String(16), nullable=False),  # Ruling of records.py
    sa.Column("reasons", sa.Text, nullable=False),
    sa.Index("ix_series_decisions_series", "series_instance_uid"),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("job_id", sa.String(32), primary_key=True),
    sa.Column("unique_key", sa.String(64), nullable=False, unique=True),
    sa.Column("pipeline", sa.String(128), nullable=False),
    sa.Column("called_ae_title", sa.String(16), nullable=False),
    sa.Column("calling_ae_title", sa.String(16), nullable=False),
    sa.Column("study_instance_uid", sa.String(64), nullable=False),
    sa.Column("series_instance_uid", sa.String(64), nullable=False),
    sa.Column("destinations", sa.JSON, nullable=False),
    sa.Column("priority", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("strikes", sa.Integer, nullable=False, default=0),  # see jobs/strikes.py
    sa.Column("fence", sa.Integer, nullable=False, default=0),
    sa.Column("lease_owner", sa.String(128)),
    sa.Column("lease_until_s", sa.Double),
    sa.Column("created_at_s", sa.Double, nullable=False),
    sa.Column("not_before_s", sa.Double, nullable=False),
    sa.Column("started_at_s", sa.Double),
    sa.Column("finished_at_s", sa.Double),
    sa.Column("failure_code", sa.String(64)),
    sa.Column("failure_reason", sa.Text),
    # What a newer job of the same pipeline takes over: a series, or a rule's choice in a study.
    sa.Column("subject", sa.String(160), nullable=False),
    sa.Column("rule", sa.String(64), nullable=False, default=""),
    sa.Column("roles", sa.JSON, nullable=False, default=dict),  # role -> Series Instance UID
    sa.Column("superseded_by", sa.String(32)),  # the job that has taken its place
    # The last one only so that what isn't due yet is passed over without a look at its row.
    sa.Index("ix_jobs_claim", "state", "priority", "not_before_s", "created_at_s"),
    sa.Index("ix_jobs_series", "series_instance_uid"),
    sa.Index("ix_jobs_study", "study_instance_uid"),
    sa.Index("ix_jobs_subject", "subject"),
    sa.Index("ix_jobs_superseded_by", "superseded_by"),
)

# Whose turn it is among the priorities (jobs/shares.py): every process goes by the same.
job_turns = sa.Table(
    "job_turns",
    metadata,
    sa.Column("priority", sa.String(16), primary_key=True),
    sa.Column("credit", sa.Integer, nullable=False),
)

# The exact instances a job was made from: a late one makes a new job.
job_instances = sa.Table(
    "job_instances",
    metadata,
    sa.Column("job_id", sa.ForeignKey("jobs.job_id"), primary_key=True),
    sa.Column("instance_id", sa.ForeignKey("instances.id"), primary_key=True),
    sa.Index("ix_job_instances_instance", "instance_id"),
)

job_events = sa.Table(
    "job_events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("job_id", sa.ForeignKey("jobs.job_id"), nullable=False),
    sa.Column("at_s", sa.Double, nullable=False),
    sa.Column("stage", sa.String(32), nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("duration_s", sa.Double),
    sa.Index("ix_job_events_job", "job_id"),
)

results = sa.Table(
    "results",
    metadata,
    sa.Column("sop_instance_uid", sa.String(64), primary_key=True),
    sa.Column("sop_class_uid", sa.String(64), nullable=False),
    sa.Column("job_id", sa.ForeignKey("jobs.job_id"), nullable=False),
    sa.Column("output", sa.String(64), nullable=False),
    sa.Column("path", sa.Text, nullable=False),  # relative to the store's folder
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Index("ix_results_job", "job_id"),
)

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("job_id", sa.ForeignKey("jobs.job_id"), nullable=False),
    sa.Column("sop_instance_uid", sa.ForeignKey("results.sop_instance_uid"), nullable=False),
    sa.Column("destination", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("created_at_s", sa.Double, nullable=False),
    sa.Column("not_before_s", sa.Double, nullable=False),
    sa.Column("delivered_at_s", sa.Double),
    sa.Column("last_error", sa.Text),
    sa.Column("refusals", sa.Integer, nullable=False, default=0),
    sa.Column("losses", sa.Integer, nullable=False, default=0),
    sa.Column("sent_at_s", sa.Double),  # the peer accepted it
    sa.Column("proof_tries", sa.Integer, nullable=False, default=0),
    sa.UniqueConstraint("sop_instance_uid", "destination"),
    sa.Index("ix_deliveries_due", "destination", "state", "not_before_s"),
)

# Which storage commitments were asked for, since the object was last accepted. A report on any of
# them counts, also after it was asked again.
proof_requests = sa.Table(
    "proof_requests",
    metadata,
    sa.Column("transaction_uid", sa.String(64), primary_key=True),
    sa.Column("delivery_id", sa.ForeignKey("deliveries.id", ondelete="CASCADE"), primary_key=True),
    sa.Index("ix_proof_requests_delivery", "delivery_id"),
)

# What the headers of instances and results say that QIDO-RS asks for; written again from the
# files where it is missing.
catalogue = sa.Table(
    "catalogue",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("instance_id", sa.ForeignKey("instances.id", ondelete="CASCADE"), unique=True),
    sa.Column(
        "result_uid", sa.ForeignKey("results.sop_instance_uid", ondelete="CASCADE"), unique=True
    ),
    sa.Column("study_instance_uid", sa.String(64), nullable=False),
    sa.Column("series_instance_uid", sa.String(64), nullable=False),
    sa.Column("sop_instance_uid", sa.String(64), nullable=False),
    sa.Column("sop_class_uid", sa.String(64), nullable=False),
    sa.Column("modality", sa.String(16), nullable=False),
    sa.Column("patient_name", sa.Text, nullable=False),  # in small letters
    sa.Column("patient_id", sa.Text, nullable=False),
    sa.Column("patient_birth_date", sa.Text, nullable=False),
    sa.Column("referring_physician_name", sa.Text, nullable=False),  # in small letters
    sa.Column("accession_number", sa.Text, nullable=False),
    sa.Column("study_id", sa.Text, nullable=False),
    sa.Column("study_date", sa.Text, nullable=False),
    sa.Column("study_time", sa.Text, nullable=False),
    sa.Column("study_description", sa.Text, nullable=False),
    sa.Column("series_description", sa.Text, nullable=False),
    sa.Column("series_number", sa.BigInteger),
    sa.Column("instance_number", sa.BigInteger),
    sa.Column("attributes", sa.JSON, nullable=False),  # DICOM JSON (PS3.18 F)
    sa.Index("ix_catalogue_study", "study_instance_uid"),
    sa.Index("ix_catalogue_series", "series_instance_uid"),
    sa.Index("ix_catalogue_sop", "sop_instance_uid"),
    sa.Index("ix_catalogue_patient", "patient_id"),
    sa.Index("ix_catalogue_accession", "accession_number"),
)

# What `tritome fetch` asks the running gateway to fetch from a PACS, and how far it is.
fetches = sa.Table(
    "fetches",
    metadata,
    sa.Column("fetch_id", sa.String(32), primary_key=True),
    sa.Column("peer", sa.String(64), nullable=False),
    sa.Column("called_ae_title", sa.String(16), nullable=False),
    sa.Column("keys", sa.JSON, nullable=False),  # keyword -> value; forgotten when it has ended
    sa.Column("series", sa.JSON, nullable=False),  # only these Series Instance UIDs, if any
    sa.Column("state", sa.String(16), nullable=False),  # FetchState of records.py
    sa.Column("expected", sa.Integer),  # None until the PACS has said
    sa.Column("kept", sa.Integer, nullable=False, default=0),
    sa.Column("failed", sa.Integer, nullable=False, default=0),
    sa.Column("note", sa.Text, nullable=False, default=""),
    sa.Column("created_at_s", sa.Double, nullable=False),
    sa.Column("finished_at_s", sa.Double),
    sa.Index("ix_fetches_state", "state", "created_at_s"),
)

# Storage commitments that were asked for and not yet reported.
storage_commitments = sa.Table(
    "storage_commitments",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("transaction_uid", sa.String(64), nullable=False),
    sa.Column("called_ae_title", sa.String(16), nullable=False),
    sa.Column("calling_ae_title", sa.String(16), nullable=False),
    sa.Column("association_id", sa.String(32), nullable=False),
    sa.Column("instances", sa.Text, nullable=False),  # JSON: [SOP class UID, instance UID], ...
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("requested_at_s", sa.Double, nullable=False),
    sa.Column("not_before_s", sa.Double),  # null while its own association may report it
    sa.Index("ix_storage_commitments_due", "not_before_s"),
)


class now_s(sa.sql.functions.FunctionElement[float]):  # noqa: N801 - reads as a SQL function
    """The database's clock: seconds since the epoch, with fractions."""

    type = sa.Double()
    inherit_cache = True


@sa.ext.compiler.compiles(now_s, "sqlite")
def _now_sqlite(element: Any, compiler: Any, **kw: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@sa.ext.compiler.compiles(now_s, "postgresql")
def _now_postgresql(element: Any, compiler: Any, **kw: Any) -> str:
    # clock_timestamp, not now(): the latter stands still within a transaction.
    return "extract(epoch from clock_timestamp())::double precision"


_READS_ONLY = "tritome_reads_only"

CONNECTIONS = 8
"""Enough for a command line; a gateway counts its threads."""


def open_database(url: str, connections: int = CONNECTIONS) -> sa.Engine:
    """Connects, migrates to the newest schema, and returns the engine.

    SQLite runs in WAL mode with synchronous=FULL: a committed row survives a power cut,
    which the promise behind 0x0000 needs.

    Args:
        url: As SQLAlchemy writes it.
        connections: How many threads may ask at the same time without waiting for each
            other; each connection is opened when it is first needed, and kept.

    Raises:
        DatabaseUnavailable: the database can't be opened or migrated.
        ConfigurationError: a newer tritome has made it, or its driver isn't installed.
    """
    parsed = sa.make_url(url)
    is_file = parsed.get_backend_name() == "sqlite"
    with _opening(parsed):
        if is_file and parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        # A server may have gone and come back; a file hasn't. The connection that was used last
        # is used next: few are open, and few fill their page cache.
        engine = sa.create_engine(
            url, pool_pre_ping=not is_file, pool_size=connections, pool_use_lifo=True
        )
        if is_file:
            sa.event.listen(engine, "connect", _prepare_sqlite)
            sa.event.listen(engine, "begin", _begin)
        _migrate(engine)
    return engine


def require_server(url: str, timeout_s: int = 5) -> None:
    """Asks a database server whether it lets us in; changes nothing.

    Raises:
        DatabaseUnavailable: it doesn't.
        ConfigurationError: its driver isn't installed.
    """
    with _opening(sa.make_url(url)):
        engine = sa.create_engine(url, connect_args={"connect_timeout": timeout_s})
        try:
            engine.connect().close()
        finally:
            engine.dispose()


@contextmanager
def _opening(url: sa.URL) -> Iterator[None]:
    """What goes wrong while a database is opened, in words."""
    what = f"the index at {url.render_as_string(hide_password=True)}"
    try:
        yield
    except ModuleNotFoundError as error:
        msg = f"{what} needs the package {error.name}: pip install 'tritome[postgres]'"
        raise ConfigurationError(msg) from error
    except CommandError as error:
        msg = (
            f"{what} was brought up to date by a newer tritome than this one: run that one, or put "
            "back the copy of the index that was made before"
        )
        raise ConfigurationError(msg) from error
    except (DBAPIError, OSError) as error:
        remedy = (
            "make its file and folder readable and writable for this user; where it is damaged, "
            "'tritome store rebuild' makes it anew from the kept files"
            if url.get_backend_name() == "sqlite"
            else "start that PostgreSQL, or correct store.database-url"
        )
        msg = f"{what} can't be opened ({_why(error)}); {remedy}"
        raise DatabaseUnavailable(msg) from error


def _why(error: DBAPIError | OSError) -> str:
    """The database's own words, without what it says below them: that may quote a row."""
    said = error.orig if isinstance(error, DBAPIError) else error.strerror
    return next(iter(str(said).splitlines()), "")


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin on its own
    connection.execute("PRAGMA busy_timeout=30000")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin(connection: sa.Connection) -> None:
    # One writer at a time: take the write lock when a transaction begins, so that two
    # readers never both try to become the writer (SQLITE_BUSY without a retry). Who only
    # reads takes no lock: in WAL mode it sees the last commit, whoever is writing.
    reads_only = connection.get_execution_options().get(_READS_ONLY, False)
    connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")


def _migrate(engine: sa.Engine) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            # Several processes of one gateway may start at once.
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(74727469)")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


@contextmanager
def transaction(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One transaction; commits at the end, rolls back on any exception.

    Raises:
        DatabaseUnavailable: the database is away, stayed locked, or every connection is in
            use. Constraint violations pass through as `sqlalchemy.exc.IntegrityError` for
            the room to interpret.
    """
    with _mapped(), engine.begin() as connection:
        yield connection


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One consistent look at the index; never waits for a writer, and must not write.

    Raises:
        DatabaseUnavailable: the database is away, or every connection is in use.
    """
    with _mapped(), engine.connect() as connection:
        connection.execution_options(**{_READS_ONLY: True})  # of this look, not of the engine
        with connection.begin():
            yield connection


def is_full(error: DatabaseUnavailable) -> bool:
    """True where the index can't grow because its disk is full; nothing was committed then.

    SQLite says SQLITE_FULL (13), or that it can't enlarge the file it shares between
    processes; PostgreSQL says `disk_full`. Both have rolled back when they say so.
    """
    cause = getattr(error.__cause__, "orig", None)
    code = getattr(cause, "sqlite_errorcode", None)
    return code in _SQLITE_IS_FULL or getattr(cause, "sqlstate", None) == "53100"


_SQLITE_IS_FULL = frozenset((13, 10 | 19 << 8, 10 | 18 << 8))
"""SQLITE_FULL, SQLITE_IOERR_SHMSIZE, SQLITE_IOERR_SHMOPEN."""


@contextmanager
def _mapped() -> Iterator[None]:
    try:
        yield
    except IntegrityError:
        raise
    except (DBAPIError, PoolTimeoutError) as error:
        msg = "the index does not answer; it will be tried again"
        raise DatabaseUnavailable(msg) from error
