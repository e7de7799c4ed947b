"""Jobs wait for memory instead of killing each other; what never fits is refused."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from dicom_gateway.errors import TritonUnavailable, VolumeTooLarge
from dicom_gateway.jobs.admission import Admission, admission, machine_bytes
from tests.support.patience import until

GIB = 2**30


class Entrant(threading.Thread):
    """A job that asks for memory and holds it until told to leave."""

    def __init__(
        self, admission: Admission, wanted: int, *, first: bool = False, inside: list[int]
    ) -> None:
        super().__init__()
        self.admission, self.wanted, self.urgent, self.inside = admission, wanted, first, inside
        self.leave, self.reasons = threading.Event(), list[str]()

    def run(self) -> None:
        """In, and out when told."""
        with self.admission.enter(self.wanted, first=self.urgent, waits=self.reasons.append):
            self.inside.append(self.wanted)
            self.leave.wait(60)


def test_a_large_study_waits_for_its_neighbours_and_is_not_overtaken() -> None:
    """Small ones that would fit wait behind it; an immediate one goes before both."""
    gate, inside = Admission(10 * GIB, 20 * GIB), list[int]()
    running = Entrant(gate, 6 * GIB, inside=inside)
    large, small = Entrant(gate, 9 * GIB, inside=inside), Entrant(gate, 2 * GIB, inside=inside)
    urgent = Entrant(gate, 3 * GIB, first=True, inside=inside)
    try:
        running.start()
        until(lambda: inside == [6 * GIB])
        large.start()
        until(lambda: large.reasons)
        small.start()
        until(lambda: small.reasons)
        assert (gate.limit_bytes, gate.inside_bytes, gate.waiting) == (10 * GIB, 6 * GIB, 2)
        urgent.start()
        until(lambda: inside == [6 * GIB, 3 * GIB])
        running.leave.set()
        urgent.leave.set()
        until(lambda: inside == [6 * GIB, 3 * GIB, 9 * GIB])
        assert "9.0 GiB" in large.reasons[0]
        assert "1 other job(s) use 6.0 GiB of the 10.0 GiB" in large.reasons[0]
    finally:
        for one in (running, large, small, urgent):
            one.leave.set()
            one.join()
    assert inside[-1] == 2 * GIB
    assert (gate.inside_bytes, gate.waiting) == (0, 0)


def test_room_is_left_for_a_study_that_can_t_wait() -> None:
    """Others enter beside each other only where one more of the larger kind would fit."""
    gate, inside = Admission(10 * GIB, 20 * GIB), list[int]()
    jobs = [Entrant(gate, n * GIB, inside=inside) for n in (4, 3)]
    urgent = Entrant(gate, 4 * GIB, first=True, inside=inside)
    try:
        jobs[0].start()
        until(lambda: inside == [4 * GIB])
        jobs[1].start()
        until(lambda: jobs[1].reasons)
        urgent.start()
        until(lambda: inside == [4 * GIB, 4 * GIB])
        jobs[0].leave.set()
        urgent.leave.set()
        until(lambda: inside == [4 * GIB, 4 * GIB, 3 * GIB])
        assert "stays free for a study that can't wait" in jobs[1].reasons[0]
        assert urgent.reasons == []
    finally:
        for one in (*jobs, urgent):
            one.leave.set()
            one.join()


def test_studies_that_can_t_wait_go_in_the_order_in_which_they_came() -> None:
    """Also where the first of them needs much, and small ones come all the time."""
    gate, inside = Admission(10 * GIB, 20 * GIB), list[int]()
    running = Entrant(gate, 5 * GIB, inside=inside)
    urgent = [Entrant(gate, n * GIB, first=True, inside=inside) for n in (8, 6, 7)]
    try:
        running.start()
        until(lambda: inside == [5 * GIB])
        for one in urgent:
            one.start()
            until(lambda one=one: one.reasons)
        for one in (running, *urgent):
            one.leave.set()
        until(lambda: len(inside) == 4)
    finally:
        for one in (running, *urgent):
            one.leave.set()
            one.join()
    assert inside == [5 * GIB, 8 * GIB, 6 * GIB, 7 * GIB]


def test_what_is_too_large_for_all_runs_alone() -> None:
    """The prediction is cautious; a job alone may need more than the share for all."""
    gate, inside = Admission(4 * GIB, 16 * GIB), list[int]()
    gate.check(9 * GIB, "this volume")
    alone = Entrant(gate, 9 * GIB, inside=inside)
    alone.start()
    until(lambda: inside == [9 * GIB])
    alone.leave.set()
    alone.join()


def test_what_the_machine_can_never_hold_is_refused_with_the_figures() -> None:
    """Needed, there, and what to do."""
    with pytest.raises(VolumeTooLarge, match=r"about 31\.0 GiB .* has 16\.0 GiB; send it"):
        Admission(4 * GIB, 16 * GIB).check(31 * GIB, "this volume of 5 voxels")


def test_a_stopped_job_doesn_t_wait_on() -> None:
    """And leaves the line."""
    gate, stop = Admission(GIB, GIB), threading.Event()
    stop.set()
    with gate.enter(GIB), pytest.raises(TritonUnavailable), gate.enter(GIB, stop=stop):
        pass
    with gate.enter(GIB):
        pass


def test_a_container_s_limit_counts_where_it_is_less(tmp_path: Path) -> None:
    """Cgroup version 2 says `max` where there is none."""
    meminfo, cgroup = tmp_path / "meminfo", tmp_path / "cgroup"
    meminfo.write_text("MemTotal:       16777216 kB\nMemFree: 1 kB\n", encoding="ascii")
    cgroup.mkdir()
    assert machine_bytes(meminfo, cgroup) == 16 * GIB
    (cgroup / "memory.max").write_text("max\n", encoding="ascii")
    assert machine_bytes(meminfo, cgroup) == 16 * GIB
    (cgroup / "memory.max").write_text(f"{3 * GIB}\n", encoding="ascii")
    assert machine_bytes(meminfo, cgroup) == 3 * GIB


def test_the_settings_win(tmp_path: Path) -> None:
    """What the site says is there is what may be used."""
    with pytest.raises(VolumeTooLarge):
        admission(GIB, 0).check(GIB + 1, "it")
    admission(1000 * GIB, 0).check(999 * GIB, "it")
