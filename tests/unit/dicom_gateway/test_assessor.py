"""What the judge goes by: read once, and again when it has changed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from dicom_gateway.assemble.headers import Header, read_header
from dicom_gateway.assessor import Assessor
from dicom_gateway.config import GatewaySettings
from dicom_gateway.infer import TritonClient
from dicom_gateway.jobs import JobQueue
from tests.support.dicom import a_ct_series, an_arrival
from tests.support.gateway import a_store
from tests.support.processes import free_port


def test_headers_of_a_series_that_waits_are_read_once_for_all_looks(tmp_path: Path) -> None:
    """Hundreds of series may wait at once; a late instance makes a new look of it."""
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
    *first, late = a_ct_series(6, rows=4, columns=4)
    read: Counter[Path] = Counter()

    def count(path: Path) -> Header:
        read[path] += 1
        return read_header(path)

    with a_store(tmp_path) as keeping:
        triton = TritonClient(settings.triton, tmp_path / "contracts")
        assessor = Assessor(
            settings,
            keeping.engine,
            keeping.index,
            queue=JobQueue(keeping.engine, tmp_path),
            triton=triton,
            read_header=count,
            say=lambda *_: None,
        )

        def look() -> tuple[int, int]:
            """How many instances it goes by, and how many there are for the rules."""
            assessor.begin(set())
            (one,) = keeping.index.open_series()
            assessed = assessor.of_series(one)
            assert not isinstance(assessed, float)
            series, verdict = assessed
            _, candidate = assessor.routed(series, verdict, one)
            return len(series.instances), candidate.facts.slices

        for ds in first:
            keeping.store.keep(an_arrival(ds))
        assert look() == (5, 5)
        once = dict(read)
        assert look() == look() == (5, 5)
        assert read == once
        keeping.store.keep(an_arrival(late))
        assert look() == (6, 6)
        assert set(read) > set(once)
        triton.close()
