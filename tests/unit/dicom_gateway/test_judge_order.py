"""However a study comes in, the verdict is the one of its coming in order.

Late, missing, duplicated, interleaved and out-of-order instances, associations that end or
break off, the judge looking in between: on a real store and index. TRITOME_FUZZ=500 tries more.
"""

from __future__ import annotations

import itertools
import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydicom import Dataset

from tests.support.bench import Bench, a_bench
from tests.support.dicom import CORONAL, a_ct_series

EXAMPLES = int(os.environ.get("TRITOME_FUZZ", "20"))

RULES = [
    {
        "name": "thinnest",
        "where": [{"slice-thickness-mm": {"at-most": 3}}],
        "choose": "thinnest",
        "pipelines": ["lung_ct"],
    },
    {"name": "few", "where": [{"slices": {"at-most": 4}}], "pipelines": ["few_ct"]},
    {
        "name": "pair",
        "roles": {
            "flat": {"where": [{"plane": "axial"}]},
            "upright": {"where": [{"plane": "coronal"}]},
        },
        "pipelines": ["pair_ct"],
    },
]
PIPELINES = {"lung_ct": "CT", "few_ct": "CT", "pair_ct": "CT"}
_RUN = itertools.count(1)


@dataclass(frozen=True)
class Part:
    """One series: its make, and which of its instances never come, or lie twice at a place."""

    frames: int
    spacing_mm: float
    coronal: bool
    missing: int | None
    doubled: int | None


@dataclass(frozen=True)
class Way:
    """How a study comes: in which order, by which associations, watched when."""

    seed: int
    resent: int
    """How many instances come twice."""
    associations: int
    aborts: bool
    looks: int
    interleaved: bool


parts = st.builds(
    Part,
    frames=st.integers(2, 6),
    spacing_mm=st.sampled_from([1.0, 2.5, 5.0]),
    coronal=st.booleans(),
    missing=st.none() | st.integers(0, 5),
    doubled=st.none() | st.integers(0, 5),
)
ways = st.builds(
    Way,
    seed=st.integers(0, 2**32),
    resent=st.integers(0, 4),
    associations=st.integers(1, 4),
    aborts=st.booleans(),
    looks=st.integers(0, 4),
    interleaved=st.booleans(),
)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    """One store for all examples: each has a study of its own.

    In memory where that can be had: thousands of file syncs are another test's subject.
    """
    memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder,
        a_bench(Path(folder), rules=RULES, pipelines=PIPELINES) as opened,
    ):
        yield opened


def a_study(parts: list[Part]) -> tuple[str, list[list[Dataset]]]:
    """A new study of these series; UIDs differ from study to study only in one component."""
    study = f"1.2.826.{next(_RUN)}"
    made = []
    for number, part in enumerate(parts, 1):
        frames = a_ct_series(
            part.frames,
            rows=4,
            columns=4,
            spacing_mm=part.spacing_mm,
            gap_at=part.missing if part.missing != part.doubled else None,
            duplicate_at=part.doubled,
            study_instance_uid=study,
            series_instance_uid=f"{study}.{number}",
            frame_of_reference_uid=f"{study}.0",
            **({"orientation": CORONAL} if part.coronal else {}),
        )
        for ds in frames:
            ds.SOPInstanceUID = f"{study}.{number}.{ds.InstanceNumber}"
            ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        made.append(frames)
    return study, made


def send_in_order(bench: Bench, parts: list[Part]) -> dict[str, Any]:
    """One association, each instance once, series by series, judged when all is there."""
    study, series = a_study(parts)
    bench.receive([ds for frames in series for ds in frames], f"{study} whole")
    bench.settle()
    return verdict(bench, study)


def send_somehow(bench: Bench, parts: list[Part], way: Way) -> dict[str, Any]:
    """The same study, in the way that was drawn."""
    study, series = a_study(parts)
    chance = random.Random(way.seed)
    if not way.interleaved:
        chance.shuffle(series)
    all_of_it = [ds for frames in series for ds in frames]
    events = all_of_it + chance.choices(all_of_it, k=way.resent)
    if way.interleaved:
        chance.shuffle(events)
    looks = set(chance.choices(range(len(events)), k=way.looks)) if way.looks else set()
    cuts = sorted(chance.choices(range(len(events) + 1), k=way.associations - 1))
    for number, (start, end) in enumerate(itertools.pairwise([0, *cuts, len(events)])):
        name = f"{study} {number}"
        for place in range(start, end):
            bench.receive([events[place]], name, ends=None)
            if place in looks:
                bench.look()
        last = end == len(events)
        ends = "aborted" if way.aborts and not last and chance.random() < 0.5 else "in order"
        bench.receive([], name, ends=ends)
        if chance.random() < 0.3:
            bench.look()
    bench.settle()
    return verdict(bench, study)


def verdict(bench: Bench, study: str) -> dict[str, Any]:
    """What became of a study, free of the study's own number, times and histories."""

    def plain(text: str) -> str:
        return text.replace(study, "STUDY")

    return {
        "jobs": sorted(
            (
                job.pipeline,
                job.rule,
                job.priority.value,
                job.failure_code or "",
                plain(job.failure_reason or ""),
                sorted((role, plain(uid)) for role, uid in job.roles.items()),
                sorted(plain(uid) for uid in bench.uses(job)),
            )
            for job in bench.standing(study)
        ),
        "states": {plain(uid): state for uid, (state, _) in bench.states(study).items()},
        "reasons": {
            plain(uid): [
                part
                for part in plain(reasons).split("; ")
                if part.startswith(("rule ", "no pipeline", "slices missing"))
            ]
            for uid, (_, reasons) in bench.states(study).items()
        },
    }


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="TRITOME_FUZZ" not in os.environ,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(parts=st.lists(parts, min_size=1, max_size=3), way=ways)
def test_the_verdict_is_the_same_however_a_study_comes(
    bench: Bench, parts: list[Part], way: Way
) -> None:
    """Jobs that stand, what they use, states and reasons of all series."""
    assert send_somehow(bench, parts, way) == send_in_order(bench, parts)
