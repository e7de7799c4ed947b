"""From the last instance's arrival to the request at Triton, beside the decoding of the series.

Comes in: the chest of a bench. A series of it goes by one association, uncompressed and
compressed, to a gateway in front of a real Triton; the times are read from the gateway's own
index. Decoding is measured in the same run, with the same decoders and nothing else to do.
A series goes as fast as it can be sent, which may be faster than the cores can decode it, and at
a scanner's pace.
`after-release-s` is 0: how long to wait for more after an association has ended in order is the
site's choice, not work. Goes out: both durations and their ratio for each transfer syntax and pace.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import sqlalchemy as sa
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)
from pynetdicom import AE

from dicom_gateway.assemble.arena import Arena
from dicom_gateway.assemble.decoders import DecoderPool
from dicom_gateway.assemble.headers import read_header
from dicom_gateway.assemble.pixels import plan_pixels
from dicom_gateway.database import arrivals, instances, job_events, jobs, reading
from perf.measure import Measurement, ratio
from perf.report import Shown
from perf.sections import Found
from perf.site import site
from perf.stage import MODEL, Stage, only_lung_ct
from perf.studies import StudyTemplate

NAMES = {
    ExplicitVRLittleEndian: "uncompressed",
    RLELossless: "RLE",
    JPEGLSLossless: "JPEG-LS",
    JPEG2000Lossless: "JPEG 2000",
}
"""In every transfer syntax that is decoded by something else; all without loss."""
SHARE = 0.1
"""Of the series' decoding: most of what may be left to do after the last instance."""
PACES: dict[str, float | None] = {"": None, ", 20 a second": 20.0}
"""Instances a second, by how a report says it; None is as fast as it goes. Scanners reconstruct,
and send, some ten to sixty images a second."""
_TIMEOUT_S = 900.0
_AE_TITLE = "HANDOVER"


def write_compressed(source: Path, folder: Path, syntax: UID) -> list[Path]:
    """The same series in another transfer syntax, under new UIDs."""
    folder.mkdir()
    template = StudyTemplate(source)
    template.renew()
    paths = []
    for number, ds in enumerate(template):
        if ds.file_meta.TransferSyntaxUID != syntax:
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


def send_paced(paths: Sequence[Path], port: int, called_ae_title: str, per_second: float) -> None:
    """Sends instances in one association, each at its time.

    Raises:
        RuntimeError: one isn't taken.
    """
    meta = pydicom.dcmread(paths[0], stop_before_pixels=True).file_meta
    ae = AE(ae_title="SCANNER")
    ae.add_requested_context(meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID)
    association = ae.associate("127.0.0.1", port, ae_title=called_ae_title)
    if not association.is_established:
        msg = "the gateway takes no association; see its log"
        raise RuntimeError(msg)
    began_s = time.monotonic()
    for number, path in enumerate(paths):
        time.sleep(max(0.0, began_s + number / per_second - time.monotonic()))
        status = association.send_c_store(path).get("Status")
        if status != 0x0000:
            msg = f"the gateway answered {status} for {path.name}; see its log"
            raise RuntimeError(msg)
    association.release()


def handover_s(engine: sa.Engine, series_instance_uid: str) -> float:
    """Waits for the job of a series.

    Returns:
        Seconds from the last arrival until the volume was complete in shared memory, which is
        when the request goes out.

    Raises:
        RuntimeError: the job doesn't end.
    """
    deadline_s = time.monotonic() + _TIMEOUT_S
    last_arrival = (
        sa.select(sa.func.max(arrivals.c.received_at_s))
        .join(instances, instances.c.id == arrivals.c.instance_id)
        .where(instances.c.series_instance_uid == series_instance_uid)
        .scalar_subquery()
    )
    query = (
        sa.select(job_events.c.at_s - last_arrival)
        .join(jobs, jobs.c.job_id == job_events.c.job_id)
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
            return float(row[0])
        time.sleep(0.5)
    msg = "the job did not end; see the gateway's log"
    raise RuntimeError(msg)


@dataclass(frozen=True, slots=True)
class Handovers:
    """What was found for one study.

    Attributes:
        rounds: Transfer syntax and pace (of `PACES`) -> for each round, seconds of decoding
            alone, and from the last arrival to the request.
    """

    study: str
    rounds: dict[tuple[UID, str], list[tuple[float, float]]]

    def found(self) -> Found:
        """As the report wants it."""
        measurements, shown = [], []
        for (syntax, pace), durations_s in self.rounds.items():
            decoding_s, handover = zip(*durations_s, strict=True)
            name = f"handover, {self.study}: {NAMES[syntax]}{pace}"
            measurements += [
                Measurement.of(f"{name}, decoding alone", decoding_s),
                Measurement.of(f"{name}, tritome's last arrival to request", handover),
            ]
            words = f"{name}, last arrival to request as a share of decoding"
            share = ratio(handover, decoding_s)
            shown.append(Shown(words, share, SHARE, at_most=True, n=len(durations_s)))
        return Found(measurements, shown)


def measure(stage: Stage) -> Found:
    """The part of a bench.

    Raises:
        BuilderError: Triton doesn't start.
        RuntimeError: storescu is missing, the gateway doesn't start, or a job doesn't end.
    """
    folder = stage.folder / "handover"
    repository = only_lung_ct(stage.model_repository, folder / "model_repository")
    ways = list(itertools.product(NAMES, PACES))
    rounds: dict[tuple[UID, str], list[tuple[float, float]]] = {way: [] for way in ways}
    with (
        site(folder / "site", repository, {_AE_TITLE: MODEL}) as running,
        DecoderPool() as decoders,
    ):
        for syntax, name in NAMES.items():
            write_compressed(stage.study, folder / name, syntax)
        for number in range(stage.plan.rounds + 1):
            stage.say(f"handover: round {number} of {stage.plan.rounds}")
            for syntax, pace in ways:
                files = folder / "files"
                paths = write_compressed(folder / NAMES[syntax], files, syntax)
                alone_s = decoding_s(paths, decoders)
                per_second = PACES[pace]
                if per_second is None:
                    running.send(files, _AE_TITLE)
                else:
                    send_paced(paths, running.port, _AE_TITLE, per_second)
                uid = str(pydicom.dcmread(paths[0]).SeriesInstanceUID)
                waited_s = handover_s(running.engine, uid)
                if number:  # the first warms up
                    rounds[syntax, pace].append((alone_s, waited_s))
                shutil.rmtree(files)
    return Handovers(stage.chest.name, rounds).found()
