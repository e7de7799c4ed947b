"""A judge without a thread, on a real store: `with a_bench(folder, rules=[...]) as bench`.

Comes in: data sets, as if by associations. Goes out: what the judge makes of them when it is
asked to look. Triton is away; the contracts are those that were seen before.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydicom import Dataset

from dicom_gateway.assemble.headers import read_header
from dicom_gateway.config import GatewaySettings
from dicom_gateway.database import instances, job_instances, reading
from dicom_gateway.database import series as series_table
from dicom_gateway.infer import TritonClient
from dicom_gateway.jobs import JobQueue
from dicom_gateway.judge import Judge
from dicom_gateway.records import Job, SeriesState
from dicom_gateway.store import Docket
from tests.support.dicom import an_arrival
from tests.support.gateway import Keeping, a_store
from tests.support.processes import free_port

AT_ONCE = {"after-release-s": 0.0, "quiet-s": 0.001, "give-up-s": 0.001, "study-quiet-s": 0.001}
"""No evidence is waited for: each look decides."""

PATIENT = {"after-release-s": 0.0, "quiet-s": 900, "give-up-s": 900, "study-quiet-s": 900}
"""The clock decides nothing in a test."""


def a_contract_text(pipeline: str, modality: str = "CT") -> str:
    """What a pipeline for volumes says of itself."""
    return json.dumps(
        {
            "schema_version": 1,
            "builder_version": "0.1.0",
            "pipeline": pipeline,
            "version": "1.0.0",
            "input": {"kind": "volume", "modality": modality},
            "outputs": [
                {"name": "MASK", "kind": "labelmap", "datatype": "UINT8", "dims": [-1, -1, -1]}
            ],
        }
    )


@dataclass(frozen=True)
class Bench:
    """A judge and what it judges.

    Attributes:
        ended: What it told of the series that it has decided.
    """

    keeping: Keeping
    queue: JobQueue
    docket: Docket
    judge: Judge
    ended: list[SeriesState]

    def receive(
        self,
        datasets: Sequence[Dataset],
        association_id: str = "a1",
        *,
        called: str = "AI",
        calling: str = "SENDER",
        ends: str | None = "in order",
    ) -> None:
        """Keeps them; the association ends `in order`, `aborted`, or stays open (None)."""
        for ds in datasets:
            arrival = an_arrival(
                ds,
                association_id=association_id,
                called_ae_title=called,
                calling_ae_title=calling,
            )
            self.keeping.store.keep(arrival)
        if ends is not None:
            self.keeping.index.association_ended(association_id, in_order=ends == "in order")

    def look(self, times: int = 1) -> None:
        """The judge looks at what is open."""
        for _ in range(times):
            time.sleep(0.002)
            self.judge.look()

    def settle(self) -> None:
        """The judge looks until nothing is open."""
        for _ in range(50):
            self.look()
            if not self.keeping.index.open_series():
                return
        msg = f"still open: {self.keeping.index.open_series()}"
        raise AssertionError(msg)

    def jobs(self, study: str | None = None) -> list[Job]:
        """All jobs, oldest first."""
        found = [
            job
            for job in self.queue.list_jobs(limit=10_000)
            if study in (None, job.study_instance_uid)
        ]
        return sorted(found, key=lambda job: job.created_at_s)

    def standing(self, study: str | None = None) -> list[Job]:
        """The jobs whose place no other one has taken."""
        return [job for job in self.jobs(study) if job.superseded_by is None]

    def uses(self, job: Job) -> set[str]:
        """SOP Instance UIDs that a job was made from."""
        query = (
            sa.select(instances.c.sop_instance_uid)
            .join(job_instances, job_instances.c.instance_id == instances.c.id)
            .where(job_instances.c.job_id == job.job_id)
        )
        with reading(self.keeping.engine) as connection:
            return set(connection.execute(query).scalars())

    def states(self, study: str) -> Mapping[str, tuple[str, str]]:
        """Series Instance UID -> state and reasons."""
        query = sa.select(
            series_table.c.series_instance_uid, series_table.c.state, series_table.c.reasons
        ).where(series_table.c.study_instance_uid == study)
        with reading(self.keeping.engine) as connection:
            return {uid: (state, why) for uid, state, why in connection.execute(query)}

    def story(self, series_instance_uid: str) -> list[str]:
        """What was decided about a series: `ruling: reasons` per line."""
        return [
            f"{one.ruling.value}: {one.reasons}"
            for one in self.docket.decisions(series_instance_uid)
        ]


@contextmanager
def a_bench(
    folder: Path,
    *,
    rules: Sequence[Mapping[str, Any]] = (),
    pipelines: Mapping[str, str] | None = None,
    completeness: Mapping[str, float] | None = None,
    short_form: Sequence[str] = (),
) -> Iterator[Bench]:
    """Opens a store and a judge on it.

    Args:
        folder: For both.
        rules: Of `routing.rules`, for AE title AI.
        pipelines: Name -> modality; lung_ct for CT where not given.
        completeness: In place of `AT_ONCE`.
        short_form: Pipelines of AE title AI beside the rules.
    """
    title: dict[str, Any] = {"ae-title": "AI"}
    if short_form:
        title["pipelines"] = list(short_form)
    settings = GatewaySettings.model_validate(
        {
            "dicom": {"scp": {"ae-titles": [title], "reject-unknown-sources": False}},
            "triton": {"url": f"127.0.0.1:{free_port()}"},
            "completeness": dict(completeness or AT_ONCE),
            "routing": {"rules": [dict(rule) for rule in rules]},
        }
    )
    seen = folder / "contracts"
    seen.mkdir(parents=True)
    for name, modality in (pipelines or {"lung_ct": "CT"}).items():
        (seen / f"{name}.json").write_text(a_contract_text(name, modality), encoding="utf-8")
    with _judging(folder, settings, seen) as bench:
        yield bench


@contextmanager
def a_sending_bench(folder: Path, rules: Sequence[Mapping[str, Any]]) -> Iterator[Bench]:
    """A bench whose rules may name the destinations `a` and `b`; also on a folder that has had one.

    Args:
        folder: For store and judge.
        rules: Of `routing.rules`, for AE title AI and the pipeline lung_ct.
    """
    peers = [
        {"name": name, "host-ip": "127.0.0.1", "port": free_port(), "ae-title": name.upper()}
        for name in ("a", "b")
    ]
    settings = GatewaySettings.model_validate(
        {
            "dicom": {
                "scp": {"ae-titles": [{"ae-title": "AI"}], "reject-unknown-sources": False},
                "scu": {"destinations": peers},
            },
            "triton": {"url": f"127.0.0.1:{free_port()}"},
            "completeness": dict(AT_ONCE),
            "routing": {"rules": [dict(rule) for rule in rules]},
        }
    )
    seen = folder / "contracts"
    seen.mkdir(parents=True, exist_ok=True)
    (seen / "lung_ct.json").write_text(a_contract_text("lung_ct", "CT"), encoding="utf-8")
    with _judging(folder, settings, seen) as bench:
        yield bench


@contextmanager
def _judging(folder: Path, settings: GatewaySettings, seen: Path) -> Iterator[Bench]:
    with a_store(folder) as keeping:
        triton = TritonClient(settings.triton, seen)
        queue = JobQueue(keeping.engine, folder)
        ended: list[SeriesState] = []
        judge = Judge(
            settings,
            keeping.engine,
            keeping.index,
            queue=queue,
            triton=triton,
            read_header=lru_cache(maxsize=None)(read_header),
            ended=ended.append,
        )
        try:
            yield Bench(keeping, queue, Docket(keeping.engine), judge, ended)
        finally:
            triton.close()
