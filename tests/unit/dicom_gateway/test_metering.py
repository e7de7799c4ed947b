"""What the gateway counts and measures, beside a real index."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from dicom_gateway.config import GatewaySettings
from dicom_gateway.database import arrivals, job_instances, jobs, now_s, transaction
from dicom_gateway.deliver import Entries
from dicom_gateway.jobs import JobQueue
from dicom_gateway.metering import Meter
from dicom_gateway.records import Job, SeriesState
from tests.support.gateway import Keeping, a_store
from tests.support.jobs import a_finished_job
from tests.support.metrics import Scrape, scraped, value


def settings_of(folder: Path) -> GatewaySettings:
    """A gateway that sends to `pacs` and `archive`."""
    return GatewaySettings.model_validate(
        {
            "dicom": {
                "scp": {
                    "ae-titles": [{"ae-title": "LUNG", "pipelines": ["lung_ct"]}],
                    "reject-unknown-sources": False,
                },
                "scu": {
                    "destinations": [
                        {"name": name, "host-ip": "10.0.0.5", "port": 104, "ae-title": "PACS"}
                        for name in ("pacs", "archive")
                    ]
                },
            },
            "store": {"folder": str(folder), "min-free-bytes": 1234},
        }
    )


def scrape(meter: Meter) -> Scrape:
    """What Prometheus reads."""
    return scraped(meter.text().decode())


def _arrived(engine: sa.Engine, job: Job, ago_s: float) -> None:
    """Its instances came to LUNG so long ago, and to another title just now."""
    with transaction(engine) as connection:
        used = connection.execute(
            sa.select(job_instances.c.instance_id).where(job_instances.c.job_id == job.job_id)
        ).scalars()
        for instance_id in used.all():
            for title, at_s in (("LUNG", now_s() - ago_s), ("LIVER", now_s())):
                connection.execute(
                    arrivals.insert().values(
                        instance_id=instance_id,
                        called_ae_title=title,
                        calling_ae_title="CT_1",
                        association_id="1",
                        conflicts=False,
                        received_at_s=at_s,
                    )
                )


def _deliver(keeping: Keeping, meter: Meter, *destinations: str) -> None:
    settings = settings_of(keeping.folder)

    entries = Entries(
        keeping.engine,
        keeping.folder,
        settings.dicom.scu,
        lambda delivery, failure: meter.delivery_ended(
            delivery.job_id, delivery.destination, failure
        ),
    )
    for destination in destinations:
        delivery = entries.claim(destination)
        assert delivery is not None
        meter.sent(delivery, 0.3)
        entries.delivered(delivery, "accepted", 0.3)


def test_a_job_is_delivered_with_its_last_result_and_counted_once(tmp_path: Path) -> None:
    """From the last arrival for its AE title on; also where two outboxes end at the same moment."""
    with a_store(tmp_path) as keeping:
        meter = Meter(settings_of(tmp_path), keeping.engine)
        queue = JobQueue(keeping.engine, keeping.folder)
        job, _ = a_finished_job(queue, keeping.engine, keeping.folder, "pacs", "archive")
        _arrived(keeping.engine, job, 100.0)
        meter.job_ended(job, None)
        _deliver(keeping, meter, "pacs")
        before = scrape(meter)
        _deliver(keeping, meter, "archive")
        meter.delivery_ended(job.job_id, "archive", None)
        after = scrape(meter)

    whole = "tritome_arrival_to_delivered_seconds"
    assert value(before, f"{whole}_count", pipeline="lung_ct") == 0
    assert value(after, f"{whole}_count", pipeline="lung_ct") == 1
    took_s = value(after, f"{whole}_sum", pipeline="lung_ct")
    assert took_s is not None
    assert took_s >= 100
    assert value(after, "tritome_jobs_processed_total", pipeline="lung_ct") == 1
    assert value(after, "tritome_stage_seconds_count", pipeline="lung_ct", stage="sent") == 2


def test_what_waits_is_read_from_the_index(tmp_path: Path) -> None:
    """Zeros where nothing does; a pipeline that the settings don't name counts as other."""
    with a_store(tmp_path) as keeping:
        queue = JobQueue(keeping.engine, keeping.folder)
        job, _ = a_finished_job(queue, keeping.engine, keeping.folder, "pacs")
        a_finished_job(queue, keeping.engine, keeping.folder, "pacs")
        with transaction(keeping.engine) as connection:
            connection.execute(
                jobs.update().where(jobs.c.job_id == job.job_id).values(pipeline="patient_x")
            )
        found = scrape(Meter(settings_of(tmp_path), keeping.engine))

    for pipeline in ("lung_ct", "other"):
        labels = {"pipeline": pipeline, "state": "delivering", "code": ""}
        assert value(found, "tritome_jobs", **labels) == 1
    assert value(found, "tritome_jobs", pipeline="lung_ct", state="failed", code="") == 0
    assert value(found, "tritome_deliveries", destination="pacs", state="waiting") == 2
    assert value(found, "tritome_deliveries", destination="archive", state="failed") == 0
    assert value(found, "tritome_series_receiving") == 0
    assert value(found, "tritome_index_up") == 1
    assert value(found, "tritome_store_min_free_bytes") == 1234
    free = value(found, "tritome_store_free_bytes")
    whole = value(found, "tritome_store_bytes")
    assert free is not None
    assert whole is not None
    assert 0 < free < whole


def test_without_index_and_store_the_rest_is_answered(tmp_path: Path) -> None:
    """Said by one number; ages and counts that nobody knows are missing, not zero."""
    with a_store(tmp_path / "store") as keeping:
        meter = Meter(settings_of(tmp_path / "nowhere"), keeping.engine)
        meter.series_ended(SeriesState.DECIDED)
        keeping.engine.dispose()
        for path in (tmp_path / "store").glob("index.sqlite*"):
            path.write_bytes(b"no database" * 1000)
        found = scrape(meter)
        meter.delivery_ended("1", "pacs", None)  # nor does it hinder who tells

    assert value(found, "tritome_index_up") == 0
    assert value(found, "tritome_series_ended_total", state="decided") == 1
    assert value(found, "process_resident_memory_bytes")
    for missing in ("tritome_series_receiving", "tritome_store_free_bytes"):
        assert value(found, missing) is None
