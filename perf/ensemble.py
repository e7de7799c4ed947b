"""An ensemble and each of its models, measured by NVIDIA's perf_analyzer.

Comes in: the chest of a bench. The models are asked in turn once, so that each gets what the one
before it really gives. Goes out: the ensemble over each of Triton's roads, and each model over the
last of them, all in turns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import tritonclient.grpc as triton
from numpy.typing import NDArray

from ensemble_builder.server.heartbeat import LOOPBACK_CHANNEL
from ensemble_builder.verify.triton import ask
from perf.analyzer import ROADS, Analyzer, ModelInput, Road, write_input
from perf.measure import Measurement
from perf.sections import Found
from perf.stage import MODEL, Stage

Tensors = dict[str, NDArray[Any]]


class Step(NamedTuple):
    """One model of an ensemble: its tensors -> the ensemble's."""

    model: str
    inputs: dict[str, str]
    outputs: dict[str, str]


def steps(grpc_url: str, ensemble: str) -> list[Step]:
    """What an ensemble's config says, in order."""
    with triton.InferenceServerClient(grpc_url, channel_args=LOOPBACK_CHANNEL) as client:
        config = client.get_model_config(ensemble).config
    return [
        Step(step.model_name, dict(step.input_map), dict(step.output_map))
        for step in config.ensemble_scheduling.step
    ]


def requests(
    grpc_url: str, ensemble: str, request: Mapping[str, NDArray[Any]]
) -> dict[str, tuple[Tensors, Tensors]]:
    """What an ensemble and each of its models take and give for one request.

    Raises:
        ParityError: Triton refuses one.
    """
    held = dict(request)
    found = {ensemble: (dict(request), ask(grpc_url, ensemble, request))}
    for step in steps(grpc_url, ensemble):
        inputs = {mine: held[its] for mine, its in step.inputs.items()}
        answer = ask(grpc_url, step.model, inputs)
        held |= {its: answer[mine] for mine, its in step.outputs.items()}
        found[step.model] = (inputs, {mine: answer[mine] for mine in step.outputs})
    return found


class _Row(NamedTuple):
    name: str
    road: Road
    model: str
    request: ModelInput


def measure(stage: Stage) -> Found:
    """The part of a bench.

    Raises:
        AnalyzerFailed: perf_analyzer isn't there or gave no figures.
        BuilderError: Triton doesn't start, or refuses a request.
    """
    analyzer = Analyzer.find(stage.perf_analyzer)
    folder = stage.folder / "perf_analyzer"
    with stage.triton() as server:
        written = {
            model: write_input(folder / model, inputs, outputs)
            for model, (inputs, outputs) in requests(
                server.grpc_url, MODEL, stage.chest.request()
            ).items()
        }
        title = f"perf_analyzer, {MODEL}, {stage.chest.name}"
        rows = [
            _Row(f"{title}: the ensemble over {road.name}", road, MODEL, written[MODEL])
            for road in ROADS
        ]
        rows += [
            _Row(f"{title}: {model} over {ROADS[-1].name}", ROADS[-1], model, request)
            for model, request in written.items()
            if model != MODEL
        ]
        seconds: dict[str, list[float]] = {row.name: [] for row in rows}
        for number in range(stage.plan.rounds + 1):
            stage.say(f"perf_analyzer: round {number} of {stage.plan.rounds}")
            for row in rows:
                url = server.http_url if row.road.protocol == "http" else server.grpc_url
                took_s = analyzer.ask_twice(row.road, row.model, url, row.request)
                seconds[row.name] += took_s if number else ()  # the first warms up
    return Found(
        [Measurement.of(row.name, seconds[row.name], row.request.moved_bytes) for row in rows],
        [],
    )
