"""The text that Prometheus reads: well-formed, named as it wants, and bounded whatever comes."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from dicom_gateway.observe.metrics import ARENA, JOBS, STAGES, Measured, Metrics
from tests.support.metrics import scraped, value


def some_metrics(measured: Measured | None = None) -> Metrics:
    """Of a gateway with one of each."""
    return Metrics(
        called_ae_titles=["LUNG"],
        pipelines=["lung_ct"],
        destinations=["pacs"],
        measure=lambda: measured or {},
    )


def text_of(metrics: Metrics) -> str:
    """A scrape."""
    return metrics.text().decode()


def test_what_happens_is_counted_under_the_names_of_the_settings() -> None:
    """Each kind of event has its sample."""
    metrics = some_metrics()
    metrics.kept("cstore", "LUNG", 1000)
    metrics.kept("cstore", "LUNG", 500)
    metrics.refused("stow", "not_a_data_set")
    metrics.rejected("called AE title not recognised")
    metrics.association_ended(in_order=False)
    metrics.series_ended("ignored")
    metrics.job_ended("lung_ct", None)
    metrics.job_ended("lung_ct", "missing_slices")
    metrics.stage("lung_ct", "inferred", 3.0)
    metrics.delivery_ended("pacs", None)
    metrics.delivery_ended("pacs", "destination_refused")
    metrics.delivered("lung_ct", 12.0)

    found = scraped(text_of(metrics))
    here = {"called_ae_title": "LUNG", "transport": "cstore"}
    assert value(found, "tritome_instances_acknowledged_total", **here) == 2
    assert value(found, "tritome_instances_acknowledged_bytes_total", **here) == 1500
    refused = {"transport": "stow", "code": "not_a_data_set"}
    assert value(found, "tritome_instances_refused_total", **refused) == 1
    reason = "called_AE_title_not_recognised"
    assert value(found, "tritome_associations_rejected_total", reason=reason) == 1
    assert value(found, "tritome_associations_ended_total", how="lost") == 1
    assert value(found, "tritome_series_ended_total", state="ignored") == 1
    assert value(found, "tritome_jobs_processed_total", pipeline="lung_ct") == 1
    failed = {"pipeline": "lung_ct", "code": "missing_slices"}
    assert value(found, "tritome_jobs_failed_total", **failed) == 1
    inferred = {"pipeline": "lung_ct", "stage": "inferred"}
    assert value(found, "tritome_stage_seconds_bucket", le="2.5", **inferred) == 0
    assert value(found, "tritome_stage_seconds_bucket", le="5.0", **inferred) == 1
    assert value(found, "tritome_deliveries_delivered_total", destination="pacs") == 1
    undelivered = {"destination": "pacs", "code": "destination_refused"}
    assert value(found, "tritome_deliveries_failed_total", **undelivered) == 1
    assert value(found, "tritome_arrival_to_delivered_seconds_sum", pipeline="lung_ct") == 12


def test_what_may_happen_is_there_as_zero_before_it_has() -> None:
    """Otherwise Prometheus doesn't see the first one as an increase."""
    found = scraped(text_of(some_metrics()))
    here = {"called_ae_title": "LUNG", "transport": "cstore"}
    assert value(found, "tritome_instances_acknowledged_total", **here) == 0
    assert value(found, "tritome_deliveries_delivered_total", destination="pacs") == 0
    for stage in STAGES:
        there = {"pipeline": "lung_ct", "stage": stage}
        assert value(found, "tritome_stage_seconds_count", **there) == 0


def test_nobody_outside_decides_how_many_series_there_are() -> None:
    """Names that aren't in the settings count as one, and so do codes past a limit."""
    metrics = some_metrics()
    before = len(scraped(text_of(metrics)))
    for number in range(500):
        metrics.kept("cstore", f"T{number}", 1)
        metrics.delivery_ended(f"d{number}", None)
        metrics.job_ended(f"p{number}", None)
    found = scraped(text_of(metrics))
    other = {"called_ae_title": "other", "transport": "cstore"}
    assert value(found, "tritome_instances_acknowledged_total", **other) == 500
    assert value(found, "tritome_deliveries_delivered_total", destination="other") == 500
    assert len(found) == before + 4

    for number in range(500):
        metrics.refused("cstore", f"code_{number}")
    assert len(scraped(text_of(metrics))) <= len(found) + 65


def test_names_and_units_are_as_prometheus_wants_them() -> None:
    """Ours begin with tritome, counters end with total, times are seconds, sizes bytes."""
    measured: Mapping[str, str] = {
        family.name: family.type
        for family in text_string_to_metric_families(
            text_of(some_metrics({ARENA: {(): 4096}, JOBS: {("lung_ct", "failed", "a"): 1}}))
        )
    }
    assert measured["tritome_arena_bytes"] == "gauge"
    assert measured["tritome_jobs"] == "gauge"
    assert measured["tritome_stage_seconds"] == "histogram"
    assert "process_resident_memory_bytes" in measured
    for name in measured:
        assert name.startswith(("tritome_", "process_", "python_")), name
        assert not name.endswith(("_ms", "_s", "_mb", "_created")), name
    assert {kind for name, kind in measured.items() if name.startswith("tritome")} <= {
        *("counter", "gauge", "histogram")
    }
