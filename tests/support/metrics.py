"""What Prometheus would make of a scrape: `scraped(text)["tritome_triton_up", ()]`."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families

from dicom_gateway.observe import metrics as names
from dicom_gateway.observe.metrics import Gauge, Metrics

Scrape = dict[tuple[str, tuple[tuple[str, str], ...]], float]
"""(name, ((label, value), ...)) -> value; the labels in alphabetical order."""


def scraped(text: str) -> Scrape:
    """Every sample, by Prometheus' own parser for Python."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(scrape: Scrape, name: str, **labels: str) -> float | None:
    """One sample; None where it isn't there."""
    return scrape.get((name, tuple(sorted(labels.items()))))


def label_values(scrape: Scrape, *but: str) -> Iterator[str]:
    """All values of labels that aren't called `but`."""
    for _, labels in scrape:
        yield from (value for name, value in labels if name not in but)


def every_name() -> set[str]:
    """All that /metrics may have, as it stands in a scrape; histograms without their suffix too."""
    gauges = [one for one in vars(names).values() if isinstance(one, Gauge)]
    metrics = Metrics(
        called_ae_titles=["LUNG"],
        pipelines=["lung_ct"],
        destinations=["pacs"],
        measure=lambda: {one: {("x",) * len(one.labels): 1.0} for one in gauges},
    )
    for failure in (None, "code"):
        metrics.job_ended("lung_ct", failure)
        metrics.delivery_ended("pacs", failure)
    metrics.refused("cstore", "code")
    metrics.rejected("reason")
    families = list(text_string_to_metric_families(metrics.text().decode()))
    histograms = {one.name for one in families if one.type == "histogram"}
    return histograms | {sample.name for one in families for sample in one.samples}
