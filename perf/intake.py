"""Intake beside dcmtk's storescp and Orthanc: the same series, by the same sender, in turn.

`python -m perf.intake` writes a table of rates. The sender is dcmtk's storescu; everybody has
TCP_NODELAY=1 (without it dcmtk and Orthanc wait 45 ms per instance). Ours and Orthanc sync what
they write; storescp syncs nothing. All of it runs in a network namespace of its own, because
Orthanc listens on every address whatever its settings say.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import yaml
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from perf.measure import Measurement, describe_machine
from perf.road import free_port

_NODELAY = {**os.environ, "TCP_NODELAY": "1"}
_START_TIMEOUT_S = 60.0
_INSIDE = "TRITOME_PERF_NAMESPACE"
_AE_TITLE = "INTAKE"


@dataclass(frozen=True, slots=True)
class Peer:
    """One receiver: where it listens, and how many instances it has."""

    name: str
    port: int
    count: Callable[[], int]


def write_series(folder: Path, instances: int, seed: int) -> list[Path]:
    """A CT series of 512 x 512 x 16 bits with noise in it, under UIDs of its own."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    pixels = generator.integers(-1024, 2000, (512, 512), dtype=np.int16)
    study, series = generate_uid(prefix=None), generate_uid(prefix=None)
    paths = []
    for number in range(instances):
        ds = Dataset()
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, generate_uid(prefix=None)
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
        ds.PatientID, ds.PatientName, ds.Modality = "PERF", "Perf^Intake", "CT"
        ds.InstanceNumber, ds.ImagePositionPatient = number + 1, [0, 0, float(number)]
        ds.ImageOrientationPatient, ds.PixelSpacing = [1, 0, 0, 0, 1, 0], [0.7, 0.7]
        ds.Rows, ds.Columns, ds.SamplesPerPixel = 512, 512, 1
        ds.PhotometricInterpretation, ds.PixelRepresentation = "MONOCHROME2", 1
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
        ds.PixelData = np.roll(pixels, number, axis=0).tobytes()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{number:05d}.dcm"
        ds.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def send(port: int, paths: Sequence[Path], associations: int) -> float:
    """Sends by that many associations at once; gives the seconds until all have ended.

    Raises:
        RuntimeError: one of them was not taken.
    """
    storescu = program("storescu", "dcmtk")
    started = time.perf_counter()
    running = [
        subprocess.Popen(
            [storescu, "-aec", _AE_TITLE, "127.0.0.1", str(port), *map(str, part)],
            env=_NODELAY,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for n in range(associations)
        if (part := paths[n::associations])
    ]
    for one in running:
        said = one.communicate()[1]
        if one.returncode:
            msg = f"storescu: {said.decode(errors='replace')[-500:]}"
            raise RuntimeError(msg)
    return time.perf_counter() - started


@contextmanager
def started(
    command: Sequence[str], port: int, folder: Path, timeout_s: float = _START_TIMEOUT_S
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a receiver in `folder` while the block lasts, from when it listens.

    Raises:
        RuntimeError: it doesn't; the message holds its last words.
    """
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(list(command), stdout=log, stderr=log, env=_NODELAY, cwd=folder)
    try:
        deadline_s = time.monotonic() + timeout_s
        # Asked of the kernel, not by a connection: that would be a first association.
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline_s:
                msg = f"{command[0]} does not listen: {(folder / 'log').read_text()[-800:]}"
                raise RuntimeError(msg)
            time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listens(port: int) -> bool:
    wanted = f":{port:04X}"
    rows = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    rows += [line.split() for line in Path("/proc/self/net/tcp6").read_text().splitlines()[1:]]
    return any(row[1].endswith(wanted) and row[3] == "0A" for row in rows)


@contextmanager
def tritome(folder: Path, processes: int, database_url: str | None = None) -> Iterator[Peer]:
    """Our gateway with its defaults, but that nothing is done with what comes."""
    folder.mkdir()
    port = free_port()
    settings = {
        "dicom": {
            "scp": {
                "host": "127.0.0.1",
                "port": port,
                "reject-unknown-sources": False,
                "processes": processes,
                "ae-titles": [{"ae-title": _AE_TITLE, "pipelines": ["nothing"]}],
            }
        },
        # Nobody decodes or processes: the others don't either.
        "jobs": {"ahead-bytes": 0},
        "triton": {"arena-bytes": 1 << 20},
        "store": {"folder": "store"} | ({"database-url": database_url} if database_url else {}),
    }
    (folder / "gateway.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    command = [sys.executable, "-m", "dicom_gateway", "--config", "gateway.yaml"]
    with started(command, port, folder):
        name = "tritome" if processes == 1 else f"tritome, {processes} processes"
        yield Peer(name, port, lambda: len(list((folder / "store").rglob("*.dcm"))))


@contextmanager
def storescp(folder: Path) -> Iterator[Peer]:
    """dcmtk's, a process for each association; it syncs nothing."""
    (folder / "kept").mkdir(parents=True)
    port = free_port()
    command = [program("storescp", "dcmtk"), "--fork", "-aet", _AE_TITLE]
    command += ["-od", str(folder / "kept"), "+xa", str(port)]
    with started(command, port, folder):
        yield Peer("dcmtk storescp (no sync)", port, lambda: len(list((folder / "kept").iterdir())))


@contextmanager
def orthanc(folder: Path) -> Iterator[Peer]:
    """Orthanc, which syncs each file, and its index as it does by default."""
    folder.mkdir()
    port = free_port()
    settings = {
        "Name": "PERF",
        "DicomAet": _AE_TITLE,
        "DicomPort": port,
        "HttpServerEnabled": False,
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "SyncStorageArea": True,
        "DicomAlwaysAllowStore": True,
        "OverwriteInstances": True,
    }
    (folder / "orthanc.json").write_text(json.dumps(settings), encoding="utf-8")
    command = [program("Orthanc", "orthanc"), "orthanc.json"]
    with started(command, port, folder):

        def count() -> int:
            found = (folder / "storage").rglob("*")
            whole = (path for path in found if path.is_file() and path.suffix == "")
            return sum(1 for path in whole if path.stat().st_size > 500_000)

        yield Peer("Orthanc", port, count)


def program(name: str, package: str) -> str:
    """Where a peer is, as Debian installs it.

    Raises:
        RuntimeError: it is missing.
    """
    # pynetdicom puts programs of the same names into the venv's bin.
    places = [
        place
        for place in os.environ["PATH"].split(os.pathsep)
        if not Path(place).parent.joinpath("pyvenv.cfg").is_file()
    ]
    found = shutil.which(name, path=os.pathsep.join([*places, "/usr/sbin", "/usr/bin"]))
    if found is None:
        msg = f"{name} is missing; install Debian's package {package} ('make peers')"
        raise RuntimeError(msg)
    return found


def measure(instances: int, rounds: int, processes: int) -> list[dict[str, object]]:
    """Sends a series to each in turn, `rounds` times, by one and by four associations."""
    found: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="tritome-intake-") as scratch, ExitStack() as open_:
        folder = Path(scratch)
        peers = [
            open_.enter_context(tritome(folder / "one", 1)),
            open_.enter_context(orthanc(folder / "orthanc")),
            open_.enter_context(storescp(folder / "storescp")),
        ]
        if processes > 1:
            peers.append(open_.enter_context(tritome(folder / "several", processes)))
        sent = dict.fromkeys((peer.name for peer in peers), 0)
        for number in range(rounds + 1):
            for associations in (1, 4):
                series = folder / f"series-{number}-{associations}"
                paths = write_series(series, instances, number)
                # Each round begins with another: what the disk still has to do hits all alike.
                turn = number % len(peers)
                for peer in [*peers[turn:], *peers[:turn]]:
                    took_s = send(peer.port, paths, associations)
                    sent[peer.name] += instances
                    os.sync()
                    if number:  # the first warms up
                        found.setdefault((peer.name, associations), []).append(took_s)
                shutil.rmtree(series)
                print(f"round {number} of {rounds}, {associations} association(s)", flush=True)
        for peer in peers:
            if peer.count() != sent[peer.name]:
                msg = f"{peer.name} has {peer.count()} of {sent[peer.name]} instances"
                raise RuntimeError(msg)
    rows: list[dict[str, object]] = []
    for (name, associations), durations_s in found.items():
        measured = Measurement.of(name, durations_s)
        rows.append(
            {
                **asdict(measured),
                "associations": associations,
                "instances_per_s": instances / measured.median_s,
            }
        )
    return rows


def as_markdown(rows: Sequence[dict[str, object]], instances: int) -> str:
    """The table, with each rate as a multiple of Orthanc's."""
    base = {
        row["associations"]: float(str(row["instances_per_s"]))
        for row in rows
        if row["name"] == "Orthanc"
    }
    lines = [
        f"Intake of {instances} instances of 512 x 512 x 16 bits, median of "
        f"{rows[0]['repetitions']} rounds",
        "",
        "| receiver | associations | instances/s | of Orthanc's | seconds (25 .. 90 %) |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for row in sorted(rows, key=lambda one: (str(one["associations"]), str(one["name"]))):
        rate = float(str(row["instances_per_s"]))
        ratio = rate / base[row["associations"]]
        lines.append(
            f"| {row['name']} | {row['associations']} | {rate:.0f} | {ratio:.2f} | "
            f"{row['p25_s']:.2f} .. {row['p90_s']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Runs it in a network namespace; prints the table, and writes it where told."""
    parser = argparse.ArgumentParser(prog="python -m perf.intake", description=main.__doc__)
    parser.add_argument("--instances", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2, help="of our second gateway")
    parser.add_argument("--output", type=Path, help="folder for intake.md and intake.json")
    chosen = parser.parse_args()
    if _INSIDE not in os.environ:
        unshare = ["unshare", "--net"]
        if os.geteuid() != 0:
            unshare += ["--map-root-user"]
        script = 'ip link set lo up && exec "$@"'
        command = [*unshare, "sh", "-c", script, "sh", sys.executable, "-m", "perf.intake"]
        return subprocess.run(
            [*command, *sys.argv[1:]], env={**os.environ, _INSIDE: "1"}, check=False
        ).returncode
    machine = describe_machine()
    rows = measure(chosen.instances, chosen.rounds, chosen.processes)
    table = as_markdown(rows, chosen.instances)
    print(table)
    if chosen.output is not None:
        chosen.output.mkdir(parents=True, exist_ok=True)
        words = "\n".join(f"- {key}: {value}" for key, value in machine.items())
        (chosen.output / "intake.md").write_text(f"{table}\n{words}\n", encoding="utf-8")
        (chosen.output / "intake.json").write_text(
            json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n", encoding="utf-8"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
