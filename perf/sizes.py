"""What a study of more slices costs: time from its last instance to its result, and memory.

In: a site, and how many slices. Out: seconds and bytes for each number of slices. The chest is
the same one for all, cut into thinner slices, as scanners do; so it is the voxels that grow, and
the network, which sees the chest at its own spacing, does not.

A first round, in ascending order, warms up and watches memory (which costs time, so nothing is
timed there); then every size in each round, in an order that changes.

What the server took for a study is what its processes and its shared memory held at most, less
what they held before the first study: neither gives everything back, so in ascending order, and
only there, each size shows its own need.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clients.demo.phantom_study import write_phantom_study
from perf.procfs import MemoryWatch, anonymous_bytes, file_share_bytes, shared_memory_of
from perf.site import Site

COVERED_MM = (320.0, 400.0, 400.0)
"""A whole chest, whatever the number of voxels."""
_SEED = 20

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Memory:
    """What one study took at most.

    Attributes:
        gateway_bytes: All processes of the gateway, without shared memory.
        server_bytes: Server, stubs and their shared memory, above what they held before all.
        by_role: The most that each role held.
    """

    gateway_bytes: int
    server_bytes: int
    by_role: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Sizes:
    """What was found.

    Attributes:
        size: Rows and columns.
        seconds: By slices, from the last instance's acknowledgement to the result's arrival.
        memory: By slices.
        server_kept_bytes: What the server held after all of it, above what it held before.
        shared: Bytes of the gateway's files in shared memory.
    """

    size: int
    seconds: Mapping[int, list[float]]
    memory: Mapping[int, Memory]
    server_kept_bytes: int = 0
    shared: Mapping[str, int] = field(default_factory=dict)

    def volume_bytes(self, slices: int) -> int:
        """One volume: 16 bits for each voxel."""
        return 2 * slices * self.size**2

    def voxels(self, slices: int) -> int:
        """How many there are."""
        return slices * self.size**2


def write_chests(folder: Path, slices: Sequence[int], size: int, say: Say) -> dict[int, Path]:
    """The same chest, cut into so many slices each."""
    chests = {}
    for count in slices:
        say(f"painting a chest of {count} slices")
        shape = (count, size, size)
        k, j, i = (mm / n for mm, n in zip(COVERED_MM, shape, strict=True))
        write_phantom_study(folder / str(count), seed=_SEED, shape_kji=shape, spacing_mm=(k, j, i))
        chests[count] = folder / str(count)
    return chests


def measure_sizes(
    site: Site,
    title: str,
    chests: Mapping[int, Path],
    *,
    size: int,
    scratch: Path,
    rounds: int,
    say: Say,
) -> Sizes:
    """All sizes, `rounds` times after the one that warms up.

    Args:
        site: A fresh one: nothing was sent to it yet.
        title: Called AE title.
        chests: By slices.
        size: Rows and columns.
        scratch: For the files of the study that is sent.
        rounds: Timed ones.
        say: Hears how far it is.

    Raises:
        RoadFailed: a result did not come.
    """
    before = _server_bytes(site)
    memory: dict[int, Memory] = {}
    seconds: dict[int, list[float]] = {count: [] for count in chests}
    order = sorted(chests)
    for count in order:
        with MemoryWatch(site.roles, (site.stub_prefix,)) as watch:
            _, took_s = site.there_and_back(chests[count], title, scratch)
        roles = site.roles()
        files = dict.fromkeys(("gateway", "server"), 0)
        for role, pids in roles.items():
            files[role.partition(" ")[0]] += file_share_bytes(pids)
        memory[count] = Memory(
            watch.peak_sum["gateway"] + files["gateway"],
            watch.peak_sum["server"] + files["server"] - before,
            dict(watch.peaks),
        )
        say(f"{count} slices while memory is watched: {took_s:.1f} s")
    chance = random.Random(_SEED)
    for number in range(rounds):
        chance.shuffle(order)
        for count in order:
            _, took_s = site.there_and_back(chests[count], title, scratch)
            seconds[count].append(took_s)
            say(f"round {number + 1} of {rounds}, {count} slices: {took_s:.2f} s")
    shared = shared_memory_of([site.gateway_pid], ())
    return Sizes(size, seconds, memory, _server_bytes(site) - before, shared)


def _server_bytes(site: Site) -> int:
    pids = [pid for role, ids in site.roles().items() if role.startswith("server") for pid in ids]
    shared = shared_memory_of((), (site.stub_prefix,))
    return anonymous_bytes(pids) + file_share_bytes(pids) + sum(shared.values())
