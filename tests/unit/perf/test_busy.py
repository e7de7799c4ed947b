"""Where the cores' time went, from clocks that somebody read."""

from __future__ import annotations

import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from perf.busy import Look, longest_window, shares, table
from perf.counted import Counter, count_networks, read_count


def _look(
    at_s: float,
    in_flight: int = 8,
    *,
    stub: float = 0.0,
    network: float = 0.0,
    gateway: float = 0.0,
    machine: float = 0.0,
    delivered: int = 0,
) -> Look:
    return Look(
        at_s,
        in_flight,
        delivered,
        {"gateway": gateway, "server lungs_inferer": stub},
        {"lungs_inferer": network},
        {"lungs_inferer": int(network)},
        machine,
    )


def test_all_shares_together_are_the_cores() -> None:
    """Network, its stub's rest, gateway, others and idle add up to one."""
    first = _look(100, stub=50, network=40, gateway=7, machine=1000)
    last = _look(110, stub=65, network=54, gateway=8, machine=1017, delivered=3)
    found = shares(first, last, cores=2)
    assert found.in_networks == pytest.approx(14 / 20)
    assert found.others == pytest.approx(
        {
            "gateway": 1 / 20,
            "server lungs_inferer, outside the network": 1 / 20,
            "senders, destination, others on this machine": 1 / 20,
            "idle": 3 / 20,
        }
    )
    assert found.in_networks_of_busy == pytest.approx(14 / 17)
    assert found.calls == {"lungs_inferer": 14}
    assert found.studies == 3
    assert table(found)[0] == ("lungs_inferer, network", pytest.approx(14 / 20))
    assert sum(part for _, part in table(found)) == pytest.approx(1)


def test_the_window_is_the_longest_with_enough_in_flight() -> None:
    """One study fewer in between begins a new one."""
    looks = [_look(t, n) for t, n in enumerate([2, 8, 8, 7, 8, 9, 8, 3])]
    window = longest_window(looks, 8)
    assert window is not None
    assert [one.at_s for one in window] == [4, 6]
    assert longest_window(looks, 10) is None
    assert longest_window(looks[:2], 8) is None  # one look is no time


def _compute(seconds: float) -> str:
    end_s = time.process_time() + seconds
    while time.process_time() < end_s:
        pass
    return "labels"


def _compute_in_this_thread(seconds: float) -> str:
    end_s = time.thread_time() + seconds
    while time.thread_time() < end_s:
        pass
    return "labels"


def test_calls_of_a_network_are_counted(tmp_path: Path) -> None:
    """Their processor time, and not what happens between them."""
    me = os.getpid()
    counter = Counter(tmp_path / str(me))
    network = counter.counted(_compute)
    assert network(0.05) == "labels"
    _compute(0.3)
    assert network(seconds=0.05) == "labels"
    found = read_count(tmp_path, me)
    assert found.calls == 2
    assert 0.1 <= found.seconds < 0.3


def test_a_call_under_way_counts_with_what_it_has_taken(tmp_path: Path) -> None:
    """A window of the measurement ends when it ends, not when a network does."""
    me = os.getpid()
    seen = []

    def network() -> None:
        _compute(0.1)
        seen.append(read_count(tmp_path, me))

    Counter(tmp_path / str(me)).counted(network)()
    assert seen[0].calls == 0
    assert seen[0].seconds >= 0.1


def test_windows_are_counted_without_the_thread_that_stitches(tmp_path: Path) -> None:
    """It works while they are computed."""
    me = os.getpid()

    class Streams:
        in_flight = 3
        one_by_one = True

        def submit(self, seconds: float) -> Future[str]:
            return pool.submit(_compute_in_this_thread, seconds)

    with ThreadPoolExecutor(2) as pool:
        network = Counter(tmp_path / str(me)).counted(Streams())
        assert (network.in_flight, network.one_by_one) == (3, True)
        asked = [network.submit(0.1), network.submit(0.1)]
        _compute_in_this_thread(0.3)
        assert [one.result() for one in asked] == ["labels", "labels"]
    found = read_count(tmp_path, me)
    assert found.calls == 2
    assert 0.15 <= found.seconds < 0.28


def test_a_network_that_fails_has_been_called(tmp_path: Path) -> None:
    """And isn't under way for ever."""
    me = os.getpid()

    def network() -> None:
        raise ValueError

    counted = Counter(tmp_path / str(me)).counted(network)
    with pytest.raises(ValueError):
        counted()
    before = read_count(tmp_path, me)
    _compute(0.05)
    assert read_count(tmp_path, me) == before
    assert before.calls == 1


def test_only_inferers_are_changed(tmp_path: Path) -> None:
    """The other models stay as they were built."""
    for model in ("lungs_inferer", "lungs_preprocess"):
        (tmp_path / model / "1").mkdir(parents=True)
        (tmp_path / model / "1" / "model.py").write_text("as built")
    count_networks(tmp_path)
    assert "CountedInferer" in (tmp_path / "lungs_inferer" / "1" / "model.py").read_text()
    assert (tmp_path / "lungs_preprocess" / "1" / "model.py").read_text() == "as built"
    assert read_count(tmp_path, 1).calls == 0
