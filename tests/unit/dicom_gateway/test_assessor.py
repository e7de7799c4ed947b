"""What the judge goes by: read once, and again when it has changed."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dicom_gateway.assemble.headers import Header, read_header
from dicom_gateway.assessor import Assessor
from dicom_gateway.config import GatewaySettings
from dicom_gateway.infer import TritonClient
from dicom_gateway.jobs import JobQueue
from dicom_gateway.records import Series
from dicom_gateway.route import Candidate
from tests.support.dicom import a_ct_series, an_arrival
from tests.support.gateway import Keeping, a_store
from tests.support.processes import free_port


@contextmanager
def an_assessor(
    folder: Path, read: Callable[[Path], Header] = read_header
) -> Iterator[tuple[Assessor, Keeping]]:
    """Of a gateway whose Triton is away, and what it looks at."""
    settings = GatewaySettings.model_validate(
        {
            "dicom": {
                "scp": {
                    "ae-titles": [{"ae-title": "LUNG", "pipelines": ["lung_ct"]}],
                    "reject-unknown-sources": False,
                }
            },
            "triton": {"url": f"127.0.0.1:{free_port()}"},
            "completeness": {"after-release-s": 0},
        }
    )
    with a_store(folder) as keeping:
        triton = TritonClient(settings.triton, folder / "contracts")
        try:
            yield (
                Assessor(
                    settings,
                    keeping.engine,
                    keeping.index,
                    queue=JobQueue(keeping.engine, folder),
                    triton=triton,
                    read_header=read,
                    say=lambda *_: None,
                ),
                keeping,
            )
        finally:
            triton.close()


def look(assessor: Assessor, keeping: Keeping) -> tuple[Series, Candidate]:
    """One look at the one open series."""
    assessor.begin(set())
    (one,) = keeping.index.open_series()
    assessed = assessor.of_series(one)
    assert not isinstance(assessed, float)
    series, verdict = assessed
    return series, assessor.routed(series, verdict, one)[1]


def test_headers_of_a_series_that_waits_are_read_once_for_all_looks(tmp_path: Path) -> None:
    """Hundreds of series may wait at once; a late instance makes a new look of it."""
    *first, late = a_ct_series(6, rows=4, columns=4)
    read: Counter[Path] = Counter()

    def count(path: Path) -> Header:
        read[path] += 1
        return read_header(path)

    with an_assessor(tmp_path, count) as (assessor, keeping):
        for ds in first:
            keeping.store.keep(an_arrival(ds))
        _, candidate = look(assessor, keeping)
        once = dict(read)
        assert len(once) == candidate.facts.slices == 5
        look(assessor, keeping)
        look(assessor, keeping)
        assert read == once
        keeping.store.keep(an_arrival(late))
        series, candidate = look(assessor, keeping)
        assert len(series.instances) == candidate.facts.slices == 6


def test_nothing_stays_of_a_series_that_waits_no_more(tmp_path: Path) -> None:
    """The header that speaks for it is a whole one; of an enhanced object it has megabytes."""
    with an_assessor(tmp_path) as (assessor, keeping):
        for ds in a_ct_series(3, rows=4, columns=4):
            keeping.store.keep(an_arrival(ds))
        header = weakref.ref(look(assessor, keeping)[1].facts.header)
        assessor.begin(set())
        assessor.begin(set())
        gc.collect()
        assert header() is None
