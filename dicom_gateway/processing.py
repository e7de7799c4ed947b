"""What a worker does with a job: series -> volumes -> masks and scores -> results.

In: a claimed job. Out: its results, durable, for the queue to finish the job with. Nothing is
kept here: after a crash the job is claimed again and makes objects with the same UIDs.

Part of `app.py`, in a file of its own: it asks store, assemble, infer and encode in turn, and
none of them knows the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from dicom_gateway.assemble.ahead import Ahead
from dicom_gateway.assemble.arena import Arena
from dicom_gateway.assemble.decoders import DecoderPool
from dicom_gateway.assemble.grids import check_same_grid
from dicom_gateway.assemble.headers import Header
from dicom_gateway.assemble.plan import VolumePlan, plan_images, plan_volumes
from dicom_gateway.assemble.policy import allowance
from dicom_gateway.assemble.resample import land, landed_volume
from dicom_gateway.assemble.volume import assemble, source_pixels
from dicom_gateway.config import AssemblySettings
from dicom_gateway.config_delivery import ResultSettings
from dicom_gateway.encode import SourceReading, encode_results
from dicom_gateway.encode.keeping import HELD
from dicom_gateway.errors import UnusableSeries
from dicom_gateway.infer import TritonClient, check_room, fill, slots_of
from dicom_gateway.jobs import Admission, JobRun
from dicom_gateway.records import (
    OBJECT_KIND_OF_SOP_CLASS,
    Contract,
    Inference,
    Instance,
    Job,
    Priority,
    Result,
    Series,
    Volume,
)
from dicom_gateway.store import SeriesIndex


@dataclass(frozen=True)
class Processing:
    """Makes the results of jobs; safe to use from several worker threads.

    Attributes:
        results: Folder that the results are kept in.
        read_header: Cached: the judge has asked for the same headers.
        admission: Lets as many jobs compute at the same time as the memory holds.
        arena_admission: And as many have images in the arena as lie in it beside each other.
        ahead: Has decoded what came early.
        objects: By pipeline: which objects are made of its outputs.
    """

    index: SeriesIndex
    triton: TritonClient
    arena: Arena
    decoders: DecoderPool
    settings: AssemblySettings
    results: Path
    read_header: Callable[[Path], Header]
    admission: Admission
    arena_admission: Admission
    ahead: Ahead | None = None
    objects: Mapping[str, ResultSettings] = field(default_factory=dict)

    def __call__(self, run: JobRun) -> list[Result]:
        """One job: a result of each output for each volume that its series holds."""
        job = run.job
        # Before the expensive part: where Triton is away, nothing is decoded in vain.
        contract = self.triton.contract(job.pipeline)
        series = self.index.instances_of_job(job.job_id)
        brought = fill(contract, _by_role(job, series), job.rule)
        self.triton.check_ready(job.pipeline)
        made: list[Result] = []
        for number, plans in enumerate(self._plans(contract, brought, job)):
            with self._admitted(run, contract, plans):
                volumes = self._assembled(run, contract, brought, plans)
                # Triton computes, and this process would only wait.
                reading = SourceReading(landed_volume(volumes[0]))
                inference = self._inferred(run, contract, volumes, number)
            made += self._encoded(run, contract, plans[0], volumes[0], inference, number, reading)
        return made

    def _plans(
        self, contract: Contract, brought: Sequence[Series], job: Job
    ) -> list[tuple[VolumePlan, ...]]:
        """For each request, the plan of each slot: a series of several volumes has several."""
        slots = slots_of(contract)
        allowed = allowance(contract, self.settings)
        found = [
            plan_images(series, self.read_header)
            if slot.is_flat
            else plan_volumes(series, allowed, self.read_header)
            for slot, series in zip(slots, brought, strict=True)
        ]
        if len(slots) == 1:
            return [(plan,) for plan in found[0]]
        for slot, series, plans in zip(slots, brought, found, strict=True):
            if len(plans) > 1:
                msg = (
                    f"the series of '{slot.name}' ({series.series_instance_uid}) holds "
                    f"{len(plans)} images or volumes, and rule {job.rule} needs one for each "
                    "role; let the role's conditions choose another series"
                )
                raise UnusableSeries(msg, code="duplicate_positions")
        together = tuple(plans[0] for plans in found)
        check_same_grid(
            {s.name: plan for s, plan in zip(slots, together, strict=True) if not s.is_flat}
        )
        return [together]

    @contextmanager
    def _admitted(
        self, run: JobRun, contract: Contract, plans: Sequence[VolumePlan]
    ) -> Iterator[None]:
        """Waits until machine and arena have memory for it beside what is running."""
        voxels = max(plan.voxels for plan in plans)
        wanted = math.ceil(contract.peak_bytes_per_voxel * voxels)
        self.admission.check(wanted, f"this volume of {voxels} voxels")
        first = run.job.priority is Priority.IMMEDIATE
        in_arena = self._arena_bytes(contract, plans)

        def waits(why: str) -> None:
            run.tell("waits", why)

        with (
            self.admission.enter(wanted, first=first, stop=run.stop, waits=waits),
            self.arena_admission.enter(in_arena, first=first, stop=run.stop, waits=waits),
        ):
            yield

    def _arena_bytes(self, contract: Contract, plans: Sequence[VolumePlan]) -> int:
        """What the request will take, and for a moment what it is resampled from."""
        wanted = max(self._check_room(contract, plan, plan.voxels) for plan in plans)
        sources = [sum(t.size_bytes for t in plan.tasks) for plan in plans if plan.grid is not None]
        return wanted + max(sources, default=0)

    def _assembled(
        self,
        run: JobRun,
        contract: Contract,
        brought: Sequence[Series],
        plans: Sequence[VolumePlan],
    ) -> tuple[Volume, ...]:
        volumes: list[Volume] = []
        try:
            with run.stage("assembled") as stage:
                told = []
                for plan, series in zip(plans, brought, strict=True):
                    volumes.append(
                        assemble(plan, series, self.arena, self.decoders, ahead=self.ahead)
                    )
                    told.append(_told(volumes[-1], series))
                stage.note = " | ".join(told)
        except BaseException:
            for volume in volumes:  # made, but another one wasn't, or the story's line
                self.arena.free(volume.image)
            raise
        return tuple(volumes)

    def _check_room(self, contract: Contract, plan: VolumePlan, voxels: int) -> int:
        return check_room(contract, self.arena, voxels, "FP32" if plan.is_floating else "INT16")

    def _inferred(
        self, run: JobRun, contract: Contract, volumes: tuple[Volume, ...], number: int
    ) -> Inference:
        job = run.job
        # An earlier attempt may still be under way in Triton, and is another request.
        request_id = f"{job.job_id}.{job.fence}.{number}"
        with run.stage("inferred") as stage:
            in_bytes = sum(volume.image.size_bytes for volume in volumes)
            inference = self.triton.infer(
                volumes, contract, self.arena, request_id, run.stop, priority=job.priority
            )
            out_bytes = sum(
                values.nbytes
                for values in (*inference.labelmaps.values(), *inference.scores.values())
            )
            shape = "x".join(str(n) for n in volumes[0].shape_kji)
            several = f"{len(volumes)} of " if len(volumes) > 1 else ""
            stage.note = f"{several}{shape}: {in_bytes} bytes in, {out_bytes} bytes out"
        return inference

    def _encoded(  # noqa: PLR0917 - what was found, and all that it was found in
        self,
        run: JobRun,
        contract: Contract,
        plan: VolumePlan,
        volume: Volume,
        inference: Inference,
        number: int,
        reading: SourceReading,
    ) -> list[Result]:
        wanted = self.objects.get(contract.pipeline, ResultSettings()).objects
        with run.stage("encoded") as stage:
            # What was found in a resampled volume goes back to its source frames.
            landed = {name: land(mask, volume)[0] for name, mask in inference.labelmaps.items()}
            made = encode_results(
                replace(inference, labelmaps=landed),
                reading.volume,
                contract,
                run.job,
                self.results,
                wanted,
                number,
                replaced=run.replaced_results(),
                is_announced=run.is_announced,
                held=self.results.parent / HELD / run.job.job_id,
                pixels=partial(source_pixels, plan, arena=self.arena, decoders=self.decoders),
                reading=reading,
            )
            kinds = [OBJECT_KIND_OF_SOP_CLASS[one.sop_class_uid].value for one in made]
            stage.note = ", ".join(kinds) or "nothing: the outputs can't give what is wanted"
        return made


def _by_role(job: Job, series: Series) -> dict[str, Series]:
    """The job's series by role; without roles there is one, whatever its input is called."""
    if not job.roles:
        return {"": series}
    return {
        role: replace(
            series,
            series_instance_uid=uid,
            modality=next((one.modality for one in _of(series, uid)), ""),
            instances=_of(series, uid),
        )
        for role, uid in job.roles.items()
    }


def _of(series: Series, series_instance_uid: str) -> tuple[Instance, ...]:
    return tuple(one for one in series.instances if one.series_instance_uid == series_instance_uid)


def _told(volume: Volume, series: Series) -> str:
    what = f"{len(series.instances)} instances"
    if volume.name:
        what = f"{volume.name} ({len(volume.slices)} of the images in {what})"
    return "; ".join([what, *volume.notes])
