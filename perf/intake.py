"""Intake beside dcmtk's storescp and Orthanc: the same series, by the same sender, in turn.

Comes in: how much is sent. Goes out: seconds of each, and whether our rate is what it should be.
The sender is dcmtk's storescu; everybody has TCP_NODELAY=1 (without it dcmtk and Orthanc wait
45 ms per instance). Ours and Orthanc sync what they write; storescp syncs nothing. All of it runs
in a network namespace of its own, because Orthanc listens on every address whatever its settings
say. Nothing survives.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from perf.measure import Measurement, ratio
from perf.report import Shown
from perf.road import free_port
from perf.sections import Found
from perf.stage import Say

SEVERAL = 4
"""Associations at once, where it isn't one."""
ORTHANC = "Orthanc"
STORESCP = "dcmtk storescp (no sync)"

Durations = dict[str, dict[int, list[float]]]
"""Receiver -> associations at once -> seconds of each round."""

_NODELAY = {**os.environ, "TCP_NODELAY": "1"}
_START_TIMEOUT_S = 60.0
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


def ours(processes: int) -> str:
    """The name of one of our gateways."""
    return "tritome" if processes == 1 else f"tritome, {processes} processes"


@contextmanager
def tritome(folder: Path, processes: int) -> Iterator[Peer]:
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
        "store": {"folder": "store"},
    }
    (folder / "gateway.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    command = [sys.executable, "-m", "dicom_gateway", "--config", "gateway.yaml"]
    with started(command, port, folder):
        yield Peer(ours(processes), port, lambda: len(list((folder / "store").rglob("*.dcm"))))


@contextmanager
def storescp(folder: Path) -> Iterator[Peer]:
    """dcmtk's, a process for each association; it syncs nothing."""
    (folder / "kept").mkdir(parents=True)
    port = free_port()
    command = [program("storescp", "dcmtk"), "--fork", "-aet", _AE_TITLE]
    command += ["-od", str(folder / "kept"), "+xa", str(port)]
    with started(command, port, folder):
        yield Peer(STORESCP, port, lambda: len(list((folder / "kept").iterdir())))


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

        yield Peer(ORTHANC, port, count)


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


def take_turns(instances: int, rounds: int, processes: int) -> Durations:
    """Sends a series to each in turn, `rounds` times, by one and by four associations.

    Raises:
        RuntimeError: a peer is missing, doesn't start, or lost something.
    """
    with tempfile.TemporaryDirectory(prefix="tritome-intake-") as scratch, ExitStack() as open_:
        folder = Path(scratch)
        peers = [
            open_.enter_context(tritome(folder / "one", 1)),
            open_.enter_context(tritome(folder / "several", processes)),
            open_.enter_context(orthanc(folder / "orthanc")),
            open_.enter_context(storescp(folder / "storescp")),
        ]
        sent = dict.fromkeys((peer.name for peer in peers), 0)
        found: Durations = {peer.name: {1: [], SEVERAL: []} for peer in peers}
        for number in range(rounds + 1):
            for associations in (1, SEVERAL):
                series = folder / f"series-{number}-{associations}"
                paths = write_series(series, instances, number)
                # Each round begins with another: what the disk still has to do hits all alike.
                turn = number % len(peers)
                for peer in [*peers[turn:], *peers[:turn]]:
                    took_s = send(peer.port, paths, associations)
                    sent[peer.name] += instances
                    os.sync()
                    if number:  # the first warms up
                        found[peer.name][associations].append(took_s)
                # Not removed before the end: ext4 looks for inodes past those just freed, which
                # would cost whoever writes next.
                print(f"intake: round {number} of {rounds}, {associations} association(s)")
        for peer in peers:
            if peer.count() != sent[peer.name]:
                msg = f"{peer.name} has {peer.count()} of {sent[peer.name]} instances"
                raise RuntimeError(msg)
    return found


def as_found(durations_s: Durations, instances: int, processes: int) -> Found:
    """What the durations show.

    Args:
        durations_s: Receiver -> associations at once -> seconds of each round.
        instances: How many each series has.
        processes: Of our second gateway.
    """
    measurements = [
        Measurement.of(
            f"intake, {instances} instances of 512 x 512, {associations} association"
            f"{'s' if associations > 1 else ''}: {name}",
            seconds[associations],
        )
        for associations in (1, SEVERAL)
        for name, seconds in durations_s.items()
    ]
    alone, several = durations_s[ours(1)], durations_s[ours(processes)]
    n = len(alone[1])

    def rate(name: str, associations: int) -> str:
        return f"{instances / statistics.median(durations_s[name][associations]):.0f}"

    return Found(
        measurements,
        [
            Shown(
                f"intake, one association: rate of {ours(1)} over {name}'s "
                f"({rate(ours(1), 1)} against {rate(name, 1)} instances/s)",
                ratio(durations_s[name][1], alone[1]),
                wanted,
                n=n,
            )
            for name, wanted in ((ORTHANC, 1.0), (STORESCP, 0.25))
        ]
        + [
            Shown(
                f"intake, {SEVERAL} associations: rate of {ours(processes)} over that of one "
                f"association ({rate(ours(processes), SEVERAL)} against "
                f"{rate(ours(processes), 1)} instances/s)",
                ratio(several[1], several[SEVERAL]),
                least_gain(processes),
                n=n,
            )
        ],
    )


def least_gain(processes: int) -> float:
    """How many times the rate of one association four should have.

    The sender lives on the same machine and needs its share of the cores: half of them are ours.
    """
    return max(1.0, min(processes, SEVERAL) / 2)


def measure(folder: Path, instances: int, rounds: int, say: Say) -> Found:
    """The part of a bench; runs itself in a network namespace.

    Args:
        folder: For the durations that come out of the namespace.
        instances: Of the series.
        rounds: That count; one more before them warms up.
        say: Hears how far it is.

    Raises:
        RuntimeError: there is no namespace to be had, or a peer is missing or fails.
    """
    folder.mkdir()
    durations = folder / "durations.json"
    processes = max(2, min(SEVERAL, os.cpu_count() or 1))
    unshare = shutil.which("unshare")
    if unshare is None:
        msg = "unshare is missing (Debian's util-linux): Orthanc would listen to the network"
        raise RuntimeError(msg)
    mine = [] if os.geteuid() == 0 else ["--map-root-user"]
    script = 'ip link set lo up && exec "$@"'
    sizes = map(str, (instances, rounds, processes))
    with subprocess.Popen(
        [
            *(unshare, "--net", *mine, "sh", "-c", script, "sh"),
            *(sys.executable, "-u", "-m", "perf.intake", *sizes, str(durations)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as inside:
        assert inside.stdout is not None
        words = ""
        for line in inside.stdout:
            words = line.strip() or words
            if words.startswith("intake: "):
                say(words)
    if inside.returncode:
        raise RuntimeError(words or "a network namespace could not be made (unshare --net)")
    kept: dict[str, dict[str, list[float]]] = json.loads(durations.read_text(encoding="utf-8"))
    numbered = {name: {int(n): s for n, s in by.items()} for name, by in kept.items()}
    return as_found(numbered, instances, processes)


def main() -> int:
    """Inside the namespace: measures, and leaves the durations as JSON."""
    instances, rounds, processes = map(int, sys.argv[1:4])
    found = take_turns(instances, rounds, processes)
    Path(sys.argv[4]).write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
