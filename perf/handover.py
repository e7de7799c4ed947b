"""From the last instance's arrival to the request at Triton, beside the decoding of the series.

`python -m perf.handover` sends a series by one association, uncompressed and compressed, to a
gateway in front of a real Triton, and reads the times from the gateway's own index. Decoding is
measured in the same run, with the same decoders and nothing else to do. `after-release-s` is 0:
how long to wait for more after an association has ended in order is the site's choice, not work.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import sqlalchemy as sa
import yaml
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from clients.demo.phantom_study import write_phantom_study
from dicom_gateway.assemble.arena import Arena
from dicom_gateway.assemble.decoders import DecoderPool
from dicom_gateway.assemble.headers import read_header
from dicom_gateway.assemble.pixels import plan_pixels
from dicom_gateway.database import job_events, jobs, open_database, reading, series
from ensemble_builder.server import TritonServer
from perf.intake import program, started
from perf.measure import describe_machine
from perf.road import free_port
from perf.studies import StudyTemplate

SYNTAXES = (ExplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless)
_TIMEOUT_S = 900.0
_AE_TITLE = "HANDOVER"


def write_compressed(source: Path, folder: Path, syntax: UID) -> list[Path]:
    """The same series in another transfer syntax, under new UIDs."""
    folder.mkdir()
    template = StudyTemplate(source)
    template.renew()
    paths = []
    for number, ds in enumerate(template):
        if syntax != ExplicitVRLittleEndian:
            ds.compress(syntax, generate_instance_uid=False)
        path = folder / f"{number:05d}.dcm"
        ds.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def decoding_s(paths: Sequence[Path], decoders: DecoderPool) -> float:
    """All frames into shared memory, as a job does it that finds nothing decoded."""
    tasks = [plan_pixels(read_header(path)) for path in paths]
    with Arena(sum(task.size_bytes for task in tasks)) as arena:
        offsets = np.cumsum([0, *(task.size_bytes for task in tasks[:-1])])
        began = time.perf_counter()
        decoders.decode(
            arena.path, [(int(at), task) for at, task in zip(offsets, tasks, strict=True)]
        )
        return time.perf_counter() - began


def handover_s(engine: sa.Engine, series_instance_uid: str) -> tuple[float, float]:
    """Waits for the job of a series.

    Returns:
        Seconds from the last arrival, and from the association's end, until the volume was
        complete in shared memory, which is when the request goes out.
    """
    deadline_s = time.monotonic() + _TIMEOUT_S
    query = (
        sa.select(
            job_events.c.at_s - series.c.last_arrival_at_s,
            job_events.c.at_s - series.c.released_at_s,
        )
        .join(jobs, jobs.c.job_id == job_events.c.job_id)
        .join(series, series.c.series_instance_uid == jobs.c.series_instance_uid)
        .where(
            jobs.c.series_instance_uid == series_instance_uid,
            job_events.c.stage == "assembled",
            jobs.c.state == "delivered",
        )
    )
    while time.monotonic() < deadline_s:
        with reading(engine) as connection:
            row = connection.execute(query).first()
        if row is not None:
            return float(row[0]), float(row[1])
        time.sleep(0.5)
    msg = "the job did not end; see the gateway's log"
    raise RuntimeError(msg)


def measure(
    study: Path | None, repository: Path, rounds: int, slices: int
) -> list[dict[str, object]]:
    """One row for each transfer syntax."""
    found: dict[UID, list[tuple[float, float, float]]] = {syntax: [] for syntax in SYNTAXES}
    with tempfile.TemporaryDirectory(prefix="tritome-handover-") as scratch:
        folder = Path(scratch)
        if study is None:
            write_phantom_study(
                folder / "phantom",
                seed=5,
                shape_kji=(slices, 512, 512),
                spacing_mm=(300.0 / slices, 0.7, 0.7),
            )
            study = folder / "phantom"
        port = free_port()
        with (
            TritonServer(repository, log=folder / "triton.log") as server,
            DecoderPool() as decoders,
        ):
            settings = {
                "dicom": {
                    "scp": {
                        "host": "127.0.0.1",
                        "port": port,
                        "reject-unknown-sources": False,
                        "ae-titles": [{"ae-title": _AE_TITLE, "pipelines": ["lung_ct"]}],
                    }
                },
                "completeness": {"after-release-s": 0.0},
                "triton": {"url": server.grpc_url, "arena-bytes": 1 << 30},
                "store": {"folder": "store"},
            }
            home = folder / "gateway"
            home.mkdir()
            (home / "gateway.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
            command = [sys.executable, "-m", "dicom_gateway", "--config", "gateway.yaml"]
            with started(command, port, home):
                engine = open_database(f"sqlite:///{home}/store/index.sqlite")
                for number in range(rounds + 1):
                    for syntax in SYNTAXES:
                        files = folder / "files"
                        paths = write_compressed(study, files, syntax)
                        alone_s = decoding_s(paths, decoders)
                        _send(port, files, syntax)
                        uid = str(pydicom.dcmread(paths[0]).SeriesInstanceUID)
                        handed = handover_s(engine, uid)
                        if number:  # the first warms up
                            found[syntax].append((alone_s, *handed))
                        shutil.rmtree(files)
                        print(f"round {number} of {rounds}: {syntax.name}", flush=True)
                engine.dispose()
    rows: list[dict[str, object]] = []
    for syntax, durations in found.items():
        decoding, arrival, release = (
            statistics.median(column) for column in zip(*durations, strict=True)
        )
        rows.append(
            {
                "syntax": syntax.name,
                "rounds": rounds,
                "decoding_s": decoding,
                "last_arrival_to_request_s": arrival,
                "release_to_request_s": release,
                "share": arrival / decoding,
            }
        )
    return rows


def _send(port: int, folder: Path, syntax: UID) -> None:
    proposed = {JPEGLSLossless: "-xt", JPEG2000Lossless: "-xv", RLELossless: "-xr"}.get(syntax)
    command = [program("storescu", "dcmtk"), "-aec", _AE_TITLE, "+sd"]
    command += [proposed] if proposed else []
    subprocess.run(
        [*command, "127.0.0.1", str(port), str(folder)],
        env={**os.environ, "TCP_NODELAY": "1"},
        check=True,
        stdout=subprocess.DEVNULL,
    )


def as_markdown(rows: Sequence[dict[str, object]]) -> str:
    """The table."""
    lines = [
        f"From the last instance's arrival to the request at Triton, median of "
        f"{rows[0]['rounds']} rounds",
        "",
        "| transfer syntax | decoding the series, ms | last arrival to request, ms | of it after "
        "the association's end, ms | share of decoding |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        decoding, arrival, release, share = (
            float(str(row[name]))
            for name in (
                "decoding_s",
                "last_arrival_to_request_s",
                "release_to_request_s",
                "share",
            )
        )
        lines.append(
            f"| {row['syntax']} | {decoding * 1e3:.0f} | {arrival * 1e3:.0f} | "
            f"{release * 1e3:.0f} | {share:.0%} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Prints the table, and writes it where told."""
    parser = argparse.ArgumentParser(prog="python -m perf.handover", description=main.__doc__)
    parser.add_argument("--study", type=Path, help="a folder with one chest CT series")
    parser.add_argument("--slices", type=int, default=100, help="of the generated one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model-repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--output", type=Path, help="folder for handover.md and handover.json")
    chosen = parser.parse_args()
    machine = describe_machine()
    rows = measure(chosen.study, chosen.model_repository, chosen.rounds, chosen.slices)
    table = as_markdown(rows)
    print(table)
    if chosen.output is not None:
        chosen.output.mkdir(parents=True, exist_ok=True)
        words = "\n".join(f"- {key}: {value}" for key, value in machine.items())
        (chosen.output / "handover.md").write_text(f"{table}\n{words}\n", encoding="utf-8")
        (chosen.output / "handover.json").write_text(
            json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n", encoding="utf-8"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
