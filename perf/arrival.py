"""From the last C-STORE response to the SEG's arrival, beside the network alone.

In: a bundle and a study. Out: seconds of the whole road after the study is in, of MONAI's
sliding window with the same runtime measured alone, and of MONAI warm in one process, all three
in turns; and where the road's time went, from the job's own story and Triton's statistics. One
site of its own (`perf.site`) with the gateway's defaults, but that it doesn't wait for more after
an association has ended in order. Nothing survives.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from tritonclient.grpc import InferenceServerClient

from clients.infer import stored_volume
from dicom_gateway.database import job_events, jobs, reading
from ensemble_builder.plan import plan
from ensemble_builder.repository import write
from perf.measure import Measurement
from perf.peers.bundle_run import serve_warm
from perf.peers.case import Case, Volume
from perf.report import Shown
from perf.sections import Found
from perf.site import site
from perf.workers import told, worker

WIDEST = 1.15
"""How many times the network's own time a whole study may take, where the network is large."""

SMALL_NETWORK = {"lung_ct": 0.25}
"""Where the network is the smallest part: at most this share of MONAI's warm process."""

_TITLE = "ARRIVAL"
_STAGES = ("assembled", "inferred", "encoded")


def serve_network(pipe: Connection, case: Case, runtime: str) -> None:
    """The network under MONAI's own inferer, on one volume after the other.

    For each `Volume` it answers how many seconds the inferer took, and how many of them the
    network.
    """
    import torch  # noqa: PLC0415 - in the child

    from ensemble_builder.runtime.networks import load_network  # noqa: PLC0415
    from ensemble_builder.verify.monai import stored_as_read  # noqa: PLC0415
    from perf.outside import Clocked  # noqa: PLC0415

    found = case.read(runtime)
    recipe, device = found.recipe, torch.device("cpu")
    config = recipe.open(found.folder, device)
    inferer, before = config.inferer(), config.preprocessing()
    network = Clocked(load_network(config, recipe, found.folder, device))
    inputs: dict[str, Any] = {}
    pipe.send("ready")
    with torch.no_grad():
        while isinstance(volume := pipe.recv(), Volume):
            if volume.name not in inputs:
                request = volume.request()
                images = {one.key: stored_as_read(one, request) for one in recipe.inputs}
                inputs[volume.name] = before(images)[recipe.network_key][None].float()
            network.forget()
            began_s = time.perf_counter()
            inferer(inputs[volume.name], network)
            pipe.send((time.perf_counter() - began_s, network.seconds))


@dataclass
class Arrivals:
    """What was found for one bundle and one study.

    Attributes:
        road_s: From the last response to the SEG.
        window_s: MONAI's sliding window alone.
        network_s: Of these, the network itself.
        warm_s: MONAI in one warm process, the whole study without files.
        stages_s: A stage of the job, or a step in Triton -> its seconds in each round.
    """

    bundle: str
    study: str
    road_s: list[float] = field(default_factory=list)
    window_s: list[float] = field(default_factory=list)
    network_s: list[float] = field(default_factory=list)
    warm_s: list[float] = field(default_factory=list)
    stages_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def found(self) -> Found:
        """For the report."""
        name = f"{self.bundle}, {self.study}, arrival"
        rows = [
            ("tritome, last response to SEG", self.road_s),
            ("MONAI's sliding window alone, same runtime", self.window_s),
            ("of these the network", self.network_s),
            *((f"tritome, {stage}", seconds) for stage, seconds in self.stages_s.items()),
            ("bundle_run warm", self.warm_s),
        ]
        measured = [Measurement.of(f"{name}: {what}", s) for what, s in rows if s]
        n = len(self.road_s)
        shown = []
        share = SMALL_NETWORK.get(self.bundle)
        if share is None:
            what = f"{name}: share of the network's sliding window alone"
            shown.append(Shown(what, _ratio(self.road_s, self.window_s), WIDEST, at_most=True, n=n))
        if self.warm_s:
            what = f"{name}: share of bundle_run warm"
            wanted = 1.0 if share is None else share
            shown.append(Shown(what, _ratio(self.road_s, self.warm_s), wanted, at_most=True, n=n))
        return Found(measured, shown)


def _ratio(mine: Sequence[float], theirs: Sequence[float]) -> float:
    """Median over the rounds, so that load counts for both."""
    return statistics.median(a / b for a, b in zip(mine, theirs, strict=True))


def measure(
    bundle: Path,
    study: Path,
    name: str,
    rounds: int,
    say: Callable[[str], None] = lambda _: None,
) -> Arrivals:
    """Lets road, network and (where the network is small) MONAI take turns.

    Args:
        bundle: A MONAI bundle; random weights of seed 0 where it has none.
        study: A folder with one CT series.
        name: Of the study, for the report.
        rounds: That count; one more before them warms up.
        say: Hears how far it is.

    Raises:
        RoadFailed: a study got lost.
        PeerFailed: a process ended.
        BuilderError: the bundle can't be built or served.
    """
    image, rescale, affine = stored_volume(study)
    volume = Volume(name, image, rescale, affine.astype(np.float32).astype(np.float64))
    with tempfile.TemporaryDirectory(prefix="tritome-arrival-") as place, ExitStack() as stack:
        scratch = Path(place)
        case = Case.prepare(bundle, scratch / "bundle")
        list(write(plan(case.read("auto", case.name)), scratch / "repository"))
        running = stack.enter_context(
            site(scratch / "site", scratch / "repository", {_TITLE: case.name})
        )
        triton = stack.enter_context(InferenceServerClient(running.server.grpc_url))
        peers = [stack.enter_context(worker(serve_network, case, "auto"))]
        if case.name in SMALL_NETWORK:
            peers.append(stack.enter_context(worker(serve_warm, case, "cpu")))
        for peer in peers:
            told(peer)
        found = Arrivals(case.name, name)
        for number in range(rounds + 1):
            before_s = _steps(triton)
            uid, road_s = running.there_and_back(study, _TITLE, scratch)
            running.wait_delivered(_TITLE, number + 1)  # the report follows the segmentation
            steps_s = {step: s - before_s[step] for step, s in _steps(triton).items()}
            answers = []
            for peer in peers:
                peer.send(volume)
                answers.append(told(peer))
            say(
                f"{case.name}, {name}, round {number} of {rounds}: {road_s:.2f} s, beside it "
                + " and ".join(f"{answer[0]:.2f} s" for answer in answers)
            )
            if number == 0:  # it warms up
                continue
            found.road_s.append(road_s)
            found.window_s.append(answers[0][0])
            found.network_s.append(answers[0][1])
            found.warm_s += [answer[0] for answer in answers[1:]]
            for stage, seconds in _stages(running.engine, uid):
                found.stages_s[f"stage {stage}"].append(seconds)
            for step, seconds in steps_s.items():
                if step != case.name:
                    found.stages_s[f"of inferred, {step}"].append(seconds)
    return found


def _stages(engine: sa.Engine, study_instance_uid: str) -> Iterator[tuple[str, float]]:
    """The job's stages and their seconds, from its own story."""
    query = (
        sa.select(job_events.c.stage, job_events.c.duration_s)
        .join(jobs, jobs.c.job_id == job_events.c.job_id)
        .where(
            jobs.c.study_instance_uid == study_instance_uid,
            job_events.c.stage.in_(_STAGES),
        )
    )
    with reading(engine) as connection:
        for stage, duration_s in connection.execute(query):
            yield str(stage), float(duration_s)


def _steps(triton: InferenceServerClient) -> dict[str, float]:
    """Seconds that each model has computed so far, by Triton's own statistics."""
    found = triton.get_inference_statistics()
    return {one.name: one.inference_stats.compute_infer.ns / 1e9 for one in found.model_stats}
