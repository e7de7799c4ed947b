"""What a worker does with a job: series -> volumes -> masks -> results.

In: a claimed job. Out: its results, durable, for the queue to finish the job with. Nothing is
kept here: after a crash the job is claimed again and makes objects with the same UIDs.

Part of `app.py`, in a file of its own: it asks store, assemble, infer and encode in turn, and
none of them knows the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dicom_gateway.assemble.ahead import Ahead
from dicom_gateway.assemble.arena import Arena
from dicom_gateway.assemble.decoders import DecoderPool
from dicom_gateway.assemble.headers import Header
from dicom_gateway.assemble.plan import VolumePlan, plan_images, plan_volumes
from dicom_gateway.assemble.policy import allowance
from dicom_gateway.assemble.resample import land
from dicom_gateway.assemble.volume import assemble
from dicom_gateway.config import AssemblySettings
from dicom_gateway.encode.segmentation import encode_segmentation
from dicom_gateway.errors import ContractMismatch
from dicom_gateway.infer import TritonClient, check_room
from dicom_gateway.jobs import JobRun
from dicom_gateway.records import Contract, Inference, Job, Result, Series, Volume
from dicom_gateway.store import SeriesIndex


@dataclass(frozen=True)
class Processing:
    """Makes the results of jobs; safe to use from several worker threads.

    Attributes:
        results: Folder that the results are kept in.
        read_header: Cached: the judge has asked for the same headers.
        ahead: Has decoded what came early.
    """

    index: SeriesIndex
    triton: TritonClient
    arena: Arena
    decoders: DecoderPool
    settings: AssemblySettings
    results: Path
    read_header: Callable[[Path], Header]
    ahead: Ahead | None = None

    def __call__(self, run: JobRun) -> list[Result]:
        """One job: a result of each output for each volume that its series holds."""
        job = run.job
        # Before the expensive part: where Triton is away, nothing is decoded in vain.
        contract = self.triton.contract(job.pipeline)
        _check_roles(job)
        self.triton.check_ready(job.pipeline)
        series = self.index.instances_of_job(job.job_id)
        if contract.input_kind == "image":
            plans = plan_images(series, self.read_header)
        else:
            allowed = allowance(contract, self.settings)
            plans = plan_volumes(series, allowed, self.read_header)
        made: list[Result] = []
        for number, plan in enumerate(plans):
            volume = self._assembled(run, contract, series, plan)
            inference = self._inferred(run, contract, volume)
            made += self._encoded(run, contract, volume, inference, number)
        return made

    def _assembled(
        self, run: JobRun, contract: Contract, series: Series, plan: VolumePlan
    ) -> Volume:
        volume: Volume | None = None
        try:
            with run.stage("assembled") as stage:
                room = partial(check_room, contract, self.arena)
                volume = assemble(plan, series, self.arena, self.decoders, room, ahead=self.ahead)
                what = f"{len(series.instances)} instances"
                if volume.name:
                    what = f"{volume.name} ({len(volume.slices)} of the images in {what})"
                stage.note = "; ".join([what, *volume.notes])
        except BaseException:
            if volume is not None:  # made, but its line in the story wasn't written
                self.arena.free(volume.image)
            raise
        return volume

    def _inferred(self, run: JobRun, contract: Contract, volume: Volume) -> Inference:
        with run.stage("inferred") as stage:
            inference = self.triton.infer(volume, contract, self.arena, run.job.job_id, run.stop)
            out_bytes = sum(labels.nbytes for labels in inference.labelmaps.values())
            stage.note = (
                f"{'x'.join(str(n) for n in volume.shape_kji)}: {volume.image.size_bytes} "
                f"bytes in, {out_bytes} bytes out"
            )
        return inference

    def _encoded(
        self, run: JobRun, contract: Contract, volume: Volume, inference: Inference, number: int
    ) -> list[Result]:
        made = []
        replaced = run.replaced_results()
        with run.stage("encoded"):
            for output in contract.outputs:
                if output.name in inference.labelmaps:
                    # Masks of a resampled volume go back to its source frames.
                    labels, sources = land(inference.labelmaps[output.name], volume)
                    made.append(
                        encode_segmentation(
                            labels,
                            sources,
                            contract,
                            output,
                            run.job,
                            self.results,
                            number,
                            replaced=replaced,
                        )
                    )
        return made


def _check_roles(job: Job) -> None:
    if len(job.roles) > 1:
        msg = (
            f"rule {job.rule} gives {job.pipeline} {len(job.roles)} inputs "
            f"({', '.join(sorted(job.roles))}) and this version serves pipelines of one; "
            "write a rule without roles for it"
        )
        raise ContractMismatch(msg)
