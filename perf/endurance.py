"""What is left behind by many studies in a row: memory, files, threads, shared memory.

In: a site, and small studies of a few sizes in turn (a heap that meets one size alone never
breaks up). Out: one sample after each study, when its result is there and its job has ended.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from perf.fit import Growth, growth
from perf.procfs import (
    anonymous_bytes,
    files_below,
    open_files,
    shared_memory_of,
    threads,
)
from perf.road import RoadFailed
from perf.site import RESULT_TIMEOUT_S, Site, renewed

_ENDED = ("delivered",)

Say = Callable[[str], None]
Sample = Mapping[str, float]
"""By what it is, such as `memory: gateway`: MB, or how many."""

MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class Endurance:
    """What was found: a sample after each study."""

    samples: Sequence[Sample]
    warm_up: int

    def names(self) -> list[str]:
        """Whatever was there in every sample after the warm-up."""
        kept = self.samples[self.warm_up :]
        return [name for name in kept[0] if all(name in one for one in kept)]

    def values(self, name: str) -> list[float]:
        """One quantity, study by study."""
        return [one.get(name, 0.0) for one in self.samples]

    def growth(self, name: str) -> Growth:
        """Of one quantity."""
        return growth(self.values(name), self.warm_up)


def endure(
    site: Site,
    title: str,
    sources: Sequence[Path],
    *,
    scratch: Path,
    studies: int,
    warm_up: int,
    say: Say,
) -> Endurance:
    """Sends so many studies, one when the one before has ended.

    Args:
        site: Fresh or used.
        title: Called AE title.
        sources: Studies to send in turn.
        scratch: For the files of the study that is sent.
        studies: How many.
        warm_up: Not counted, of them.
        say: Hears how far it is.

    Raises:
        RoadFailed: a result did not come.
    """
    samples: list[Sample] = []
    for number in range(studies):
        files = scratch / "files"
        study = renewed(sources[number % len(sources)], files)
        site.send(files, title)
        site.destination.wait(study)
        shutil.rmtree(files)
        wait_until_all_ended(site)
        samples.append(sample(site))
        if (number + 1) % 20 == 0:
            say(f"{number + 1} of {studies} studies")
    return Endurance(samples, warm_up)


def wait_until_all_ended(site: Site) -> None:
    """Until no job is under way.

    Raises:
        RoadFailed: one still is after a long time.
    """
    deadline_s = time.monotonic() + RESULT_TIMEOUT_S
    while set(site.jobs_by_state()) - set(_ENDED):
        if time.monotonic() > deadline_s:
            msg = f"jobs don't end: {site.jobs_by_state()}"
            raise RoadFailed(msg)
        time.sleep(0.05)


def sample(site: Site) -> Sample:
    """What all of it holds just now."""
    found: dict[str, float] = {}
    roles = site.roles()
    for role, pids in roles.items():
        found[f"{MEMORY}: {role}"] = anonymous_bytes(pids) / 1e6
    for side in ("gateway", "server"):
        pids = [pid for role, ids in roles.items() if role.startswith(side) for pid in ids]
        found[f"open files: {side}"] = open_files(pids)
        found[f"threads: {side}"] = threads(pids)
        found[f"processes: {side}"] = len(pids)
    everybody = [pid for ids in roles.values() for pid in ids]
    # What is mapped by one of them, or has the name of this very server: others may have theirs.
    shared = shared_memory_of(everybody, (site.stub_prefix,))
    found["files: shared memory"] = len(shared)
    found[f"{MEMORY}: shared"] = sum(shared.values()) / 1e6
    found["files: temporary"] = files_below(site.temporary) + files_below(
        site.home / "store" / "incoming"
    )
    return found
