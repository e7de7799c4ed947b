"""The parts of a bench, by the name that `--only` knows: `PARTS`, in the order they are run in.

A part takes the `Stage` and gives one or more pieces, each with its words and a function that
gives `Found`. Pieces fail alone. A further part is one more line of `PARTS`:

    "name": once("what it is", lambda stage: module.measure(...)),

`once` is for what takes a stage, `for_each` for what takes a stage, a bundle and a volume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from perf import arrival, busy, ensemble, growth, handover, intake, queue, road, seg
from perf.peers.case import Volume
from perf.sections import Found, outside_the_network, the_peers, the_road
from perf.stage import MODEL, Stage

Piece = tuple[str, Callable[[], Found]]
Part = Callable[[Stage], Iterator[Piece]]


def once(words: str, run: Callable[[Stage], Found]) -> Part:
    """A part of one piece."""

    def pieces(stage: Stage) -> Iterator[Piece]:
        yield words, partial(run, stage)

    return pieces


def for_each(words: str, run: Callable[[Stage, Path, Volume], Found]) -> Part:
    """A part with a piece for each bundle on each volume."""

    def pieces(stage: Stage) -> Iterator[Piece]:
        for volume in stage.volumes():
            for bundle in stage.bundles:
                yield (
                    f"{bundle.name} on {volume.name}: {words}",
                    partial(run, stage, bundle, volume),
                )

    return pieces


def _arrivals(stage: Stage) -> Iterator[Piece]:
    words = "from the last response to the SEG"
    for name, study in stage.studies():
        for bundle in stage.bundles:

            def run(bundle: Path = bundle, study: Path = study, name: str = name) -> Found:
                return arrival.measure(bundle, study, name, stage.plan.rounds, stage.say).found()

            yield f"{bundle.name} on {name}: {words}", run


def _growth(stage: Stage) -> Found:
    return growth.growth_of_studies(growth.Plan(), stage.model_repository, stage.say)


def _busy(stage: Stage) -> Found:
    others = [one for one in stage.bundles if one.name != MODEL]
    return busy.busy(busy.Plan(), others, stage.say)


def _outside(stage: Stage, bundle: Path, volume: Volume) -> Found:
    return outside_the_network(bundle, stage.saved(volume), stage.plan.rounds)


def _peers(stage: Stage, bundle: Path, volume: Volume) -> Found:
    return the_peers(bundle, volume, stage.plan.rounds, stage.plan.without, stage.say)


def _intake(stage: Stage) -> Found:
    plan = stage.plan
    return intake.measure(stage.folder / "intake", plan.instances, plan.rounds, stage.say)


def _queue(stage: Stage) -> Found:
    plan = stage.plan
    return queue.measure(
        stage.folder / "queue", stage.database_urls, plan.rows, plan.rounds, stage.say
    )


PARTS: dict[str, Part] = {
    "models": once("lung_ct over each road, and each of its models", ensemble.measure),
    "studies": once("whole studies and the API, by locust", road.measure),
    "transport": once(
        "the road alone, shared memory beside gRPC and HTTP",
        lambda stage: the_road(stage.plan.shape_kji, 2 * stage.plan.rounds),
    ),
    "intake": once("intake beside Orthanc and dcmtk's storescp", _intake),
    "handover": once("from the last arrival to the request", handover.measure),
    "arrival": _arrivals,
    "seg": once(
        "a SEG beside plain highdicom",
        lambda stage: seg.measure(stage.folder / "seg", stage.plan.shape_kji, stage.plan.rounds),
    ),
    "queue": once("the queue with full tables", _queue),
    "outside": for_each("all but the network", _outside),
    "peers": for_each("the peers", _peers),
    "busy": once("what the networks get of busy cores", _busy),
    "growth": once("from 50 to 600 slices, and 200 studies in a row", _growth),
}
