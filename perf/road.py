"""The whole road, measured: a gateway of its own, and locust's hospital sending to it.

Comes in: the chest of a bench. Goes out: how long sending takes and how long the result, by
C-STORE and by STOW-RS in turns, and how long the API needs for its answers.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import yaml

from perf.measure import Measurement
from perf.sections import Found
from perf.stage import MODEL, Stage

CALLED_AE_TITLE = "LUNG_CT"
CALLING_AE_TITLE = "LOCUST"
_LOCUSTFILE = Path(__file__).with_name("locustfile.py")
_START_TIMEOUT_S = 60.0
_STUDY_TIMEOUT_S = 600.0


class RoadFailed(Exception):
    """The gateway did not start or a study got lost; the message holds what they said."""


def free_port() -> int:
    """A TCP port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def gateway(
    folder: Path, *, triton_grpc_url: str, receive_port: int, web_port: int, arena_bytes: int
) -> Iterator[int]:
    """Runs a gateway on loopback while the block lasts; gives its DICOM port.

    Args:
        folder: Of its store; made if it isn't there.
        triton_grpc_url: Who computes.
        receive_port: Where results go.
        web_port: Where it answers HTTP.
        arena_bytes: Of its shared memory.

    Raises:
        RoadFailed: it doesn't listen in time, with its last words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    settings = {
        "dicom": {
            "scp": {
                "host": "127.0.0.1",
                "port": port,
                "ae-titles": [
                    {
                        "ae-title": CALLED_AE_TITLE,
                        "pipelines": [MODEL],
                        "destinations": ["locust"],
                    }
                ],
                "sources": [{"ae-title": CALLING_AE_TITLE}],
            },
            "scu": {
                "destinations": [
                    {
                        "name": "locust",
                        "host-ip": "127.0.0.1",
                        "port": receive_port,
                        "ae-title": CALLING_AE_TITLE,
                    }
                ]
            },
        },
        "web": {"enabled": True, "port": web_port, "calling-ae-title": CALLING_AE_TITLE},
        "triton": {"url": triton_grpc_url, "arena-bytes": arena_bytes},
        "store": {"folder": "store"},
    }
    config = folder / "gateway.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    log = folder / "gateway.log"
    command = [sys.executable, "-m", "dicom_gateway", "--config", str(config)]
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
    try:
        _wait_until_it_listens(process, port, log)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline_s:
                msg = f"the gateway did not start:\n{_last_words(log)}"
                raise RoadFailed(msg) from None
            time.sleep(0.1)
        else:
            return


def drive(
    folder: Path,
    study: Path,
    *,
    port: int,
    receive_port: int,
    studies: int,
    web_port: int | None = None,
) -> list[Measurement]:
    """Lets one hospital send `studies` studies by each way, after one to warm up.

    Args:
        folder: For its log and journal.
        study: What it sends.
        port: Where the gateway takes C-STORE.
        receive_port: Where the hospital takes results.
        studies: That count, for each way.
        web_port: Where the gateway answers HTTP: then STOW-RS and the API take part.

    Raises:
        RoadFailed: a study was not taken or its result did not come.
    """
    journal, log = folder / "durations.jsonl", folder / "locust.log"
    journal.unlink(missing_ok=True)
    sent = (studies + 1) * (1 if web_port is None else 2)
    command = [
        *(sys.executable, "-m", "locust", "-f", str(_LOCUSTFILE), "--headless", "--only-summary"),
        *("--users", "1", "--host", f"127.0.0.1:{port}", "--exit-code-on-error", "1"),
        *("--study", str(study), "--studies", str(sent), "--durations", str(journal)),
        *("--called", CALLED_AE_TITLE, "--calling", CALLING_AE_TITLE),
        *("--receive-port", str(receive_port), "--result-timeout", f"{_STUDY_TIMEOUT_S:g}"),
        *(() if web_port is None else ("--web", f"http://127.0.0.1:{web_port}")),
    ]
    with log.open("wb") as sink:
        answer = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=sent * _STUDY_TIMEOUT_S,
        )
    if answer.returncode:
        msg = f"a study got lost on the way:\n{_last_words(log)}"
        raise RoadFailed(msg)
    return read_journal(journal)


def measure(stage: Stage) -> Found:
    """The part of a bench.

    Raises:
        RoadFailed: the gateway did not start, a study got lost, or a question had no answer.
        BuilderError: Triton does not start.
    """
    folder = stage.folder / "road"
    receive_port, web_port = free_port(), free_port()
    with (
        stage.triton() as server,
        gateway(
            folder,
            triton_grpc_url=server.grpc_url,
            receive_port=receive_port,
            web_port=web_port,
            arena_bytes=stage.plan.arena_bytes,
        ) as port,
    ):
        stage.say(f"locust: {stage.plan.rounds} studies by C-STORE and by STOW-RS in turns")
        measured = drive(
            folder,
            stage.study,
            port=port,
            receive_port=receive_port,
            studies=stage.plan.rounds,
            web_port=web_port,
        )
    stage.notes["study to result"] = (
        "holds the gateway's quiet time after the last instance (completeness.after-release-s, 1 s)"
    )
    title = f"locust, {stage.chest.name}"
    return Found([replace(one, name=f"{title}: {one.name}") for one in measured], [])


def read_journal(journal: Path) -> list[Measurement]:
    """One measurement for each name in a journal of the locust file, without its first line.

    What comes first finds cold caches and counts as warming up.
    """
    durations_s: dict[str, list[float]] = defaultdict(list)
    for line in journal.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        durations_s[entry["name"]].append(entry["duration_s"])
    return [Measurement.of(name, found[1:]) for name, found in durations_s.items()]


def _last_words(log: Path, lines: int = 30) -> str:
    text = log.read_text(encoding="utf-8", errors="replace")
    return "\n".join(text.splitlines()[-lines:])
