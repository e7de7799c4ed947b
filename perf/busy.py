"""How much of the cores' time the networks get while several pipelines are busy.

    python -m perf.busy            three pipelines, eight studies in flight, some minutes
    python -m perf.busy --quick    a smoke test

Three pipelines on one tritonserver behind one gateway: lung_ct, whose network is small, one of a
usual size and a large one, given (`--bundle`) or else generated. A site has studies of all kinds:
they are sent in turn, as many of each. For one that has its result the next one is sent, so that
always as many as wanted have arrived and have no result yet; the window of the measurement is
while that is so. Each network's own processor time is counted inside the inferers
(`perf/counted.py`); everybody else's comes from the kernel's clocks. What remains of the cores is
sender, destination, whatever else runs on this machine, and idle.

Before, each pipeline has a study to itself: the processor time that a network takes for a study
then, beside what it takes in the crowd, tells how much of "in the network" is waiting for cores.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from clients.demo.phantom_study import write_phantom_study
from clients.supervise import interrupted_once
from ensemble_builder.bundle import Options, read_bundle
from ensemble_builder.plan import plan as plan_models
from ensemble_builder.repository import write
from perf.counted import FOLDER, Count, count_networks, read_count
from perf.measure import describe_machine
from perf.procfs import cpu_s, machine_cpu_s
from perf.report import Report, Shown
from perf.road import RoadFailed
from perf.sections import Found
from perf.site import Site, site
from perf.sizes import COVERED_MM
from perf.usual_bundle import LARGE, USUAL, write_usual_bundle
from perf.watch import Watch
from perf.workers import same_threads

_PIPELINES = Path(__file__).resolve().parent.parent / "ensemble_builder" / "pipelines"
WANTED_SHARE = 0.85
_GENERATED = (("usual_unet", USUAL), ("large_unet", LARGE))
"""Beside lung_ct, in place of those that are not given."""
_SENDERS = 2
_SAY_EVERY_S = 10
_LOOK_EVERY_S = 1.0
"""A look costs some milliseconds of the cores that are measured."""
_ASK_EVERY_S = 0.5
"""Whether there is room for another study."""
_SEED = 20

_NOT_OURS, _IDLE = "senders, destination, others on this machine", "idle"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        shape_kji: Of each study.
        in_flight: Studies that have arrived and have no result yet, over all pipelines.
        seconds: How long to send.
        workers: Of the gateway.
    """

    shape_kji: tuple[int, int, int] = (120, 512, 512)
    in_flight: int = 8
    seconds: float = 150.0
    workers: int = 8


QUICK = Plan((24, 96, 96), in_flight=3, seconds=15.0, workers=3)


@dataclass(frozen=True, slots=True)
class Look:
    """Everybody's processor time at one moment, in seconds since each began.

    Attributes:
        at_s: On a steady clock.
        in_flight: Studies that have arrived and have no result.
        delivered: Studies whose results have arrived, since the site began.
        by_role: Of the site's processes.
        networks: By model: of the networks in it, a part of the role's.
        calls: By model: calls of its network.
        machine: All cores' busy time, whoever had it.
    """

    at_s: float
    in_flight: int
    delivered: int
    by_role: Mapping[str, float]
    networks: Mapping[str, float]
    calls: Mapping[str, int]
    machine: float


@dataclass(frozen=True, slots=True)
class Shares:
    """Where the cores' time went in a window, each as a share of all of it.

    Attributes:
        seconds: How long the window was.
        networks: By model.
        others: By role, without the networks; then the rest of the machine, and idle.
        calls: By model.
        studies: Whose results arrived.
    """

    seconds: float
    networks: Mapping[str, float]
    others: Mapping[str, float]
    calls: Mapping[str, int] = field(default_factory=dict)
    studies: int = 0

    @property
    def in_networks(self) -> float:
        """Of all cores' time."""
        return sum(self.networks.values())

    @property
    def in_networks_of_busy(self) -> float:
        """Of what the cores were busy with."""
        return self.in_networks / max(1e-9, 1 - self.others[_IDLE])


def shares(first: Look, last: Look, cores: int) -> Shares:
    """From the looks at both ends of a window."""
    seconds = last.at_s - first.at_s
    whole = cores * seconds
    networks = {
        name: (used - first.networks.get(name, 0.0)) / whole for name, used in last.networks.items()
    }
    others: dict[str, float] = {}
    ours = 0.0
    for role, used in last.by_role.items():
        took = (used - first.by_role.get(role, 0.0)) / whole
        ours += took
        name = role.removeprefix("server ")
        if name in networks:
            others[f"{role}, outside the network"] = took - networks[name]
        else:
            others[role] = took
    busy = (last.machine - first.machine) / whole
    others[_NOT_OURS] = max(0.0, busy - ours)
    others[_IDLE] = max(0.0, 1 - max(busy, ours))
    calls = {name: n - first.calls.get(name, 0) for name, n in last.calls.items()}
    studies = last.delivered - first.delivered
    return Shares(seconds, networks, others, calls, studies)


def longest_window(looks: Sequence[Look], in_flight: int) -> tuple[Look, Look] | None:
    """The ends of the longest time with so many studies in flight, or None."""
    best: tuple[Look, Look] | None = None
    begun: Look | None = None
    for look in looks:
        if look.in_flight < in_flight:
            begun = None
            continue
        begun = begun or look
        if best is None or look.at_s - begun.at_s > best[1].at_s - best[0].at_s:
            best = begun, look
    return best if best is not None and best[1].at_s > best[0].at_s else None


class Senders:
    """Send the pipelines' studies in turn, each as soon as there is room for one.

    The studies are one that dcmtk gives new UIDs on the way: hundreds on the disk would have to
    be written by somebody.
    """

    def __init__(self, running: Site, source: Path, titles: Sequence[str], in_flight: int) -> None:
        self._site, self._source, self._wanted = running, source, in_flight
        self._turns = itertools.cycle(titles)
        self._over = threading.Event()
        self._mutex = threading.Lock()
        self._arrived = 0
        self._failed: list[str] = []
        self._threads = [threading.Thread(target=self._send, daemon=True) for _ in range(_SENDERS)]
        self._before = delivered(running)

    @property
    def arrived(self) -> int:
        """How many studies have been acknowledged."""
        with self._mutex:
            return self._arrived

    def in_flight(self) -> int:
        """How many of them have no result."""
        arrived = self.arrived
        return arrived + self._before - delivered(self._site)

    def __enter__(self) -> Senders:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        if self._failed:
            msg = f"a study was not taken: {self._failed[0]}"
            raise RoadFailed(msg)

    def _send(self) -> None:
        while not self._over.wait(_ASK_EVERY_S):
            # More than wanted: while one arrives, as many as wanted are in flight.
            while self.in_flight() < self._wanted + _SENDERS and not self._over.is_set():
                with self._mutex:
                    title = next(self._turns)
                try:
                    self._site.send_anew(self._source, title)
                except subprocess.CalledProcessError as error:
                    self._failed.append(f"storescu ended with {error.returncode}")
                    return
                with self._mutex:
                    self._arrived += 1


class BusyWatch(Watch):
    """Everybody's clocks, again and again."""

    def __init__(self, running: Site, counts: Path, in_flight: Callable[[], int]) -> None:
        super().__init__(_LOOK_EVERY_S)
        self._site = running
        self._counts = counts
        self._in_flight = in_flight
        self.looks: list[Look] = []

    def look(self) -> None:
        """Takes down one."""
        self.looks.append(look(self._site, self._counts, self._in_flight()))


def delivered(running: Site) -> int:
    """Studies whose results have arrived, since the site began."""
    return running.jobs_by_state().get("delivered", 0)


def look(running: Site, counts: Path, in_flight: int) -> Look:
    """Everybody's clocks, now."""
    by_role: dict[str, float] = {}
    networks: dict[str, float] = {}
    calls: dict[str, int] = {}
    roles = running.roles()
    at_s, machine = time.monotonic(), machine_cpu_s()[0]
    for role, pids in roles.items():
        by_role[role] = sum(cpu_s(pid) for pid in pids)
        model = role.removeprefix("server ")
        if model.endswith("_inferer"):
            found: list[Count] = [read_count(counts, pid) for pid in pids]
            networks[model] = sum(one.seconds for one in found)
            calls[model] = sum(one.calls for one in found)
    return Look(at_s, in_flight, delivered(running), by_role, networks, calls, machine)


def write_repository(folder: Path, bundles: Sequence[Path]) -> list[str]:
    """An ensemble of each bundle, with counted networks; gives their names."""
    names = []
    for bundle in bundles:
        found = read_bundle(bundle, Options(random_weights=_SEED))
        list(write(plan_models(found), folder))
        names.append(found.name)
    count_networks(folder)
    return names


def busy(plan: Plan, bundles: Sequence[Path] = (), say: Say = lambda _what: None) -> Found:
    """Runs all of it, on a tritonserver and a gateway of its own.

    Args:
        plan: How much.
        bundles: Of the pipelines beside lung_ct; generated where there are fewer than two.
        say: Hears how far it is.

    Raises:
        RoadFailed: the gateway did not start, a study was not taken, or there never were as
            many in flight as wanted.
        BuilderError: there is no tritonserver, or it does not start.
    """
    same_threads()
    with tempfile.TemporaryDirectory(prefix="tritome-busy-") as place:
        folder = Path(place)
        generated = [
            write_usual_bundle(folder / name, network)
            for name, network in _GENERATED[len(bundles) :]
        ]
        bundles = [_PIPELINES / "lung_ct", *bundles, *generated]
        names = write_repository(folder / "repository", bundles)
        say("painting a chest")
        k, j, i = (mm / n for mm, n in zip(COVERED_MM, plan.shape_kji, strict=True))
        write_phantom_study(
            folder / "study", seed=_SEED, shape_kji=plan.shape_kji, spacing_mm=(k, j, i)
        )
        counts = folder / "counts"
        counts.mkdir()
        titles = {f"BUSY_{n}": name for n, name in enumerate(names)}
        say(f"starting Triton with {', '.join(names)}")
        with (
            _counts_in(counts),
            site(folder / "site", folder / "repository", titles, workers=plan.workers) as running,
        ):
            alone = _alone(running, folder / "study", titles, counts, say)
            say(f"{plan.in_flight} studies in flight for {plan.seconds:.0f} s")
            found = _together(running, folder / "study", titles, counts, plan, say=say)
    return _as_found(found, alone, plan)


def _alone(
    running: Site, study: Path, titles: Mapping[str, str], counts: Path, say: Say
) -> dict[str, float]:
    """Processor seconds for each call of a network that has the machine to itself, by model."""
    found = {}
    for title, name in titles.items():
        for _ in range(2):  # the first warms up
            first, before = look(running, counts, 0), running.delivered(title)
            running.send_anew(study, title)
            running.wait_delivered(title, before + 1)
        last = look(running, counts, 0)
        model = f"{name}_inferer"
        calls = last.calls[model] - first.calls[model]
        seconds = last.networks[model] - first.networks[model]
        found[model] = seconds / max(1, calls)
        say(f"{name} alone: {seconds:.1f} s of processor time in {calls} calls of its network")
    return found


def _together(
    running: Site,
    study: Path,
    titles: Mapping[str, str],
    counts: Path,
    plan: Plan,
    *,
    say: Say,
) -> Shares:
    with (
        Senders(running, study, list(titles), plan.in_flight) as senders,
        BusyWatch(running, counts, senders.in_flight) as watch,
    ):
        for left in range(round(plan.seconds), 0, -_SAY_EVERY_S):
            say(
                f"{left} s to go: {senders.arrived} studies have arrived, "
                f"{senders.in_flight()} are in flight"
            )
            time.sleep(min(_SAY_EVERY_S, left))
    window = longest_window(watch.looks, plan.in_flight)
    if window is None:
        most = max((one.in_flight for one in watch.looks), default=0)
        msg = f"there never were {plan.in_flight} studies in flight, at most {most}"
        raise RoadFailed(msg)
    return shares(*window, cores=len(os.sched_getaffinity(0)))


@contextlib.contextmanager
def _counts_in(folder: Path) -> Iterator[None]:
    os.environ[FOLDER] = str(folder)
    try:
        yield
    finally:
        del os.environ[FOLDER]


def _as_found(found: Shares, alone: Mapping[str, float], plan: Plan) -> Found:
    name = f"{len(found.networks)} pipelines, {plan.in_flight} studies in flight"
    share = Shown(
        f"{name}: share of the cores' time in networks", found.in_networks, WANTED_SHARE, n=1
    )
    crowd = {
        model: part * found.seconds * len(os.sched_getaffinity(0)) / found.calls[model]
        for model, part in found.networks.items()
        if found.calls.get(model)
    }
    notes = {
        f"{name}, where the time went": "; ".join(
            f"{what} {part:.1%}" for what, part in table(found)
        ),
        f"{name}, window": f"{found.seconds:.0f} s; of the busy time, "
        f"{found.in_networks_of_busy:.1%} in networks",
        f"{name}, what a study takes beside its network": _beside(found),
        f"{name}, a call of a network": "; ".join(
            f"{model} {alone[model]:.2f} s of processor time alone, {seconds:.2f} s in the crowd"
            for model, seconds in crowd.items()
        ),
    }
    return Found([], [share], notes)


def _beside(found: Shares) -> str:
    """Of everybody who isn't a network; with it the share for other networks can be told."""
    whole_s = len(os.sched_getaffinity(0)) * found.seconds / max(1, found.studies)
    sides: dict[str, float] = {}
    for what, part in found.others.items():
        side = what if what in {_NOT_OURS, _IDLE} else what.split()[0]
        sides[side] = sides.get(side, 0.0) + part * whole_s
    sides.pop(_IDLE)
    told = ", ".join(f"{side} {seconds:.1f}" for side, seconds in sides.items())
    return (
        f"{sum(sides.values()):.1f} s of processor time ({told}; {found.studies} studies), its "
        f"network {found.in_networks * whole_s:.1f} s"
    )


def table(found: Shares) -> list[tuple[str, float]]:
    """Everything that the cores' time went to, the largest first."""
    rows = {f"{model}, network": part for model, part in found.networks.items()}
    rows |= found.others
    return sorted(rows.items(), key=lambda row: -row[1])


@interrupted_once()  # so that no server or gateway stays behind
def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints, writes; 1 where the claim doesn't hold."""
    parser = argparse.ArgumentParser(prog="python -m perf.busy", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="a smoke test")
    parser.add_argument("--slices", type=int, help="of each study (120)")
    parser.add_argument("--in-flight", type=int, help="studies (8)")
    parser.add_argument("--seconds", type=float, help="how long to send (150)")
    parser.add_argument("--workers", type=int, help="of the gateway (8)")
    parser.add_argument("--bundle", type=Path, action="append", default=[], help="another pipeline")
    parser.add_argument("--out", type=Path, help="folder for bench.md and bench.json")
    chosen = parser.parse_args(arguments)
    plan = QUICK if chosen.quick else Plan()
    given = {
        name: value
        for name in ("in_flight", "seconds", "workers")
        if (value := getattr(chosen, name)) is not None
    }
    if chosen.slices is not None:
        given["shape_kji"] = (chosen.slices, *plan.shape_kji[1:])
    setting = describe_machine()

    def say(what: str) -> None:
        print(what, flush=True)

    found = busy(replace(plan, **given), chosen.bundle, say)
    report = Report(setting | found.devices, found.measurements, found.shown)
    print(report.markdown())
    if chosen.out is not None:
        report.write(chosen.out)
    return 0 if all(one.holds for one in found.shown) else 1


if __name__ == "__main__":
    sys.exit(main())
