"""One volume straight to Triton through shared memory, without the gateway.

In: a folder of DICOM files or a NIfTI image. Out: the label maps on its grid, and, for DICOM,
the SEGs that the gateway would make. A pipeline that scores gives scores, and the report. Uses
the gateway's own rooms, so that what is tried here is what a hospital gets. Nothing is kept but
the output files.
"""

from __future__ import annotations

import re
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.errors import ClientError
from clients.send import Found, find_instances
from dicom_gateway.records import (
    Contract,
    Inference,
    Instance,
    Job,
    JobState,
    ObjectKind,
    Output,
    Priority,
    Series,
    Volume,
)

_NAMESPACE = uuid.UUID("3e0c1c52-0a41-4d18-9a55-64f2b1a8d9f3")
_NOTHING = ""


Mask = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True)
class Prediction:
    """What Triton answered where there is a label map.

    Attributes:
        volume: What was sent. Its span in the arena is gone.
    """

    contract: Contract
    inference: Inference
    volume: Volume

    @property
    def masks(self) -> list[tuple[Output, Mask]]:
        """Each label map [K, J, I] and its row in the contract, in the contract's order."""
        found = self.inference.labelmaps
        return [(one, found[one.name]) for one in self.contract.labelmaps if one.name in found]

    @property
    def scores(self) -> list[tuple[str, float]]:
        """Name and score of each class, where there are scores beside the label maps."""
        return _named_scores(self.contract, self.inference)

    @property
    def left_out(self) -> list[str]:
        """Outputs of the pipeline that are neither label maps nor scores: nothing keeps them."""
        kept = {*self.inference.labelmaps, *self.inference.scores}
        return [
            one.name
            for one in self.contract.outputs
            if not kept & {one.name, *(part.name for part in one.labelmaps)}
        ]

    @property
    def volumes_ml(self) -> list[tuple[str, float]]:
        """Name and millilitres of each segment of each label map."""
        voxel_ml = float(abs(np.linalg.det(self.volume.affine_lps[:3, :3]))) / 1000.0
        rows = []
        for output, mask in self.masks:
            counts = np.bincount(mask.ravel(), minlength=65536)
            rows += [(s.name, float(counts[s.label]) * voxel_ml) for s in output.segments]
        return rows


@dataclass(frozen=True)
class Scored:
    """What Triton answered where the pipeline gives scores and no label map.

    Attributes:
        volume: What was sent. Its span in the arena is gone.
    """

    contract: Contract
    inference: Inference
    volume: Volume

    @property
    def scores(self) -> list[tuple[str, float]]:
        """Name and score of each class."""
        return _named_scores(self.contract, self.inference)


def _named_scores(contract: Contract, inference: Inference) -> list[tuple[str, float]]:
    return [
        (output.classes[n].name if output.classes else f"{output.name} {n + 1}", float(score))
        for output in contract.outputs
        for n, score in enumerate(inference.scores.get(output.name, ()))
    ]


def series_in(paths: Sequence[Path], series_instance_uid: str | None = None) -> Series:
    """The one series under `paths`, or the named one.

    Raises:
        ClientError: there is none, or there are several and none is named.
    """
    from pydicom import dcmread  # noqa: PLC0415 - --help stays quick

    tags = ["SeriesInstanceUID", "StudyInstanceUID", "Modality"]
    grouped: dict[str, list[tuple[Found, Any]]] = defaultdict(list)
    for found in find_instances(paths).instances:
        ds = dcmread(found.path, stop_before_pixels=True, specific_tags=tags)
        grouped[str(ds.get("SeriesInstanceUID", ""))].append((found, ds))
    if not grouped:
        msg = f"no DICOM files under {', '.join(map(str, paths))}"
        raise ClientError(msg)
    if series_instance_uid is None and len(grouped) == 1:
        series_instance_uid = next(iter(grouped))
    if series_instance_uid not in grouped:
        listed = "\n".join(
            f"  {uid}  {members[0][1].get('Modality', '?')}, {len(members)} instances"
            for uid, members in sorted(grouped.items(), key=lambda item: -len(item[1]))
        )
        msg = f"name one of these series with --series:\n{listed}"
        raise ClientError(msg)
    members = grouped[series_instance_uid]
    first = members[0][1]
    return Series(
        series_instance_uid=series_instance_uid,
        study_instance_uid=str(first.get("StudyInstanceUID", "")),
        modality=str(first.get("Modality", "")),
        called_ae_title=_NOTHING,
        calling_ae_title=_NOTHING,
        instances=tuple(_instance(found, ds) for found, ds in members),
    )


def predict_dicom(series: Series, pipeline: str, triton_url: str) -> Prediction | Scored:
    """Assembles a series as the gateway does and sends it through the pipeline.

    Raises:
        ClientError: several images, where the pipeline takes one.
        GatewayError: as the rooms assemble and infer raise it.
    """
    from dicom_gateway.assemble.arena import Arena  # noqa: PLC0415
    from dicom_gateway.assemble.decoders import DecoderPool  # noqa: PLC0415
    from dicom_gateway.assemble.headers import read_header  # noqa: PLC0415
    from dicom_gateway.assemble.plan import plan_images  # noqa: PLC0415
    from dicom_gateway.assemble.volume import assemble, assemble_volume  # noqa: PLC0415

    headers = {instance.path: read_header(instance.path) for instance in series.instances}
    voxels = sum((h.rows or 0) * (h.columns or 0) for h in headers.values())

    def fill(arena: Arena, contract: Contract) -> Volume:
        with DecoderPool() as decoders:
            if contract.input_kind != "image":
                return assemble_volume(series, arena, decoders, headers.__getitem__)
            plans = plan_images(series, headers.__getitem__)
            if len(plans) > 1:
                msg = f"the series has {len(plans)} images; name one file of it"
                raise ClientError(msg)
            return assemble(plans[0], series, arena, decoders)

    return _predict(fill, voxels, pipeline, triton_url)


def stored_volume(
    source: Path,
) -> tuple[NDArray[np.int16], NDArray[np.float64], NDArray[np.float64]]:
    """One volume from a DICOM folder or a NIfTI file, as the contract wants it.

    Returns:
        IMAGE int16 [K, J, I], RESCALE float64 [K, 2], AFFINE float64 [4, 4] in LPS millimetres.

    Raises:
        ClientError: it isn't one volume, or can't be read.
        GatewayError: as the room assemble raises it.
    """
    from clients.nifti import is_nifti, read_nifti  # noqa: PLC0415
    from dicom_gateway.assemble.arena import Arena  # noqa: PLC0415
    from dicom_gateway.assemble.decoders import DecoderPool  # noqa: PLC0415
    from dicom_gateway.assemble.headers import read_header  # noqa: PLC0415
    from dicom_gateway.assemble.volume import assemble_volume  # noqa: PLC0415

    if not source.exists():
        msg = f"{source} doesn't exist"
        raise ClientError(msg)
    if is_nifti(source):
        nifti = read_nifti(source)
        return nifti.image, nifti.rescale, nifti.affine_lps
    series = series_in([source])
    headers = {instance.path: read_header(instance.path) for instance in series.instances}
    voxels = sum((h.rows or 0) * (h.columns or 0) for h in headers.values())
    with Arena(max(2 * voxels, 1) + 4096) as arena, DecoderPool() as decoders:
        volume = assemble_volume(series, arena, decoders, headers.__getitem__)
        image = np.array(arena.view(volume.image, np.int16, volume.shape_kji))
    return image, volume.rescale, volume.affine_lps


def predict_array(
    image: NDArray[np.int16],
    rescale: NDArray[np.float64],
    affine_lps: NDArray[np.float64],
    pipeline: str,
    triton_url: str,
) -> Prediction:
    """Sends a volume that is no DICOM series.

    Args:
        image: int16 [K, J, I].
        rescale: float64 [K, 2], slope and intercept per slice.
        affine_lps: float64 [4, 4], (i, j, k, 1) -> LPS millimetres.
        pipeline: Name of the ensemble.
        triton_url: gRPC host:port of a Triton on this machine.

    Raises:
        GatewayError: as the room infer raises it.
    """
    from dicom_gateway.assemble.arena import Arena  # noqa: PLC0415

    k, j, i = image.shape

    def fill(arena: Arena, _contract: Contract) -> Volume:
        span = arena.allocate(image.nbytes)
        arena.view(span, np.int16, image.shape)[:] = image
        nobody = Series(_NOTHING, _NOTHING, _NOTHING, _NOTHING, _NOTHING, ())
        return Volume(span, "INT16", (k, j, i), rescale, affine_lps, (), (), nobody)

    found = _predict(fill, image.size, pipeline, triton_url)
    if isinstance(found, Scored):
        msg = f"'{pipeline}' gives scores of a DICOM image and no mask; give it the DICOM files"
        raise ClientError(msg)
    return found


def beside(path: Path, name: str) -> Path:
    """A further file of a result: seg.dcm becomes seg-NAME.dcm, mask.nii.gz mask-NAME.nii.gz."""
    ending = next((e for e in (".nii.gz", ".nii") if path.name.lower().endswith(e)), path.suffix)
    stem = path.name[: len(path.name) - len(ending)]
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    return path.with_name(f"{stem}-{plain}{path.name[len(stem) :]}")


def write_report(scored: Scored, path: Path) -> list[Path]:
    """Writes the structured report that the gateway would deliver.

    Returns:
        What was written: `path`, or one file for each output, beside it, where several score.

    Raises:
        EncodingFailed: the scores can't be made into a report.
        ClientError: a file can't be written.
    """
    return _write_objects(
        scored.inference, scored.volume, scored.contract, path, (ObjectKind.STRUCTURED_REPORT,)
    )


def write_segmentations(prediction: Prediction, path: Path) -> list[Path]:
    """Writes the SEGs that the gateway would deliver, and the report of scores beside them.

    The same series through the same pipeline gives the same SOP Instance UIDs.

    Returns:
        What was written: `path`, where there is one object; otherwise one file for each output.

    Raises:
        EncodingFailed: a mask can't be made into a SEG, or the scores into a report.
        ClientError: a file can't be written.
    """
    found, volume, contract = prediction.inference, prediction.volume, prediction.contract
    masks = replace(found, scores={})
    seg, report = (ObjectKind.SEGMENTATION,), (ObjectKind.STRUCTURED_REPORT,)
    alone = len(found.labelmaps) == 1
    written = _write_objects(masks, volume, contract, path, seg, alone=alone)
    if found.scores:
        scores = replace(found, labelmaps={})
        written += _write_objects(scores, volume, contract, path, report, alone=False)
    return written


def _write_objects(
    inference: Inference,
    volume: Volume,
    contract: Contract,
    path: Path,
    kinds: tuple[ObjectKind, ...],
    *,
    alone: bool | None = None,
) -> list[Path]:
    import tempfile  # noqa: PLC0415

    from dicom_gateway.encode import encode_results  # noqa: PLC0415

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tritome-", dir=path.parent) as folder:
            job = _job(contract, volume)
            made = encode_results(inference, volume, contract, job, Path(folder), kinds)
            if alone is None:
                alone = len(made) == 1
            named = [(one, path if alone else beside(path, one.output)) for one in made]
            for one, place in named:
                one.path.replace(place)
    except OSError as error:
        msg = f"{path} can't be written ({error.strerror})"
        raise ClientError(msg) from error
    return [place for _, place in named]


def _predict(
    fill: Callable[[Any, Contract], Volume], voxels: int, pipeline: str, triton_url: str
) -> Prediction | Scored:
    from dicom_gateway.assemble.arena import ALIGNMENT_BYTES, Arena  # noqa: PLC0415

    with _client(triton_url) as client:
        contract = client.contract(pipeline)
        client.check_ready(pipeline)
        # At most four bytes a voxel come, and four are sent; each label map takes at most two.
        outputs = len(contract.labelmaps)
        size_bytes = (8 + 2 * outputs) * voxels + (2 + outputs) * ALIGNMENT_BYTES
        with Arena(max(size_bytes, ALIGNMENT_BYTES)) as arena:
            client.use_arena(arena)
            volume = fill(arena, contract)
            inference = client.infer(volume, contract, arena, job_id=uuid.uuid4().hex)
            # Triton must let go of the arena before it is unlinked.
            client.close()
        if not inference.labelmaps:
            return Scored(contract, inference, volume)
        return Prediction(contract, inference, volume)


@contextmanager
def _client(triton_url: str) -> Iterator[Any]:
    import tempfile  # noqa: PLC0415

    from pydantic import ValidationError  # noqa: PLC0415

    from dicom_gateway.config import TritonSettings  # noqa: PLC0415
    from dicom_gateway.infer.client import TritonClient  # noqa: PLC0415

    try:
        settings = TritonSettings(url=triton_url)
    except ValidationError as error:
        msg = f"--triton {triton_url}: write host and port of its gRPC, such as 127.0.0.1:8001"
        raise ClientError(msg) from error
    with tempfile.TemporaryDirectory(prefix="tritome-infer-") as seen:
        client = TritonClient(settings, Path(seen))
        try:
            yield client
        finally:
            client.close()


def _instance(found: Found, ds: Any) -> Instance:
    return Instance(
        sop_instance_uid=found.sop_instance_uid,
        sop_class_uid=found.sop_class_uid,
        transfer_syntax_uid=found.transfer_syntax_uid,
        series_instance_uid=str(ds.get("SeriesInstanceUID", "")),
        study_instance_uid=str(ds.get("StudyInstanceUID", "")),
        modality=str(ds.get("Modality", "")),
        path=found.path.resolve(),
        sha256=_NOTHING,
        size_bytes=found.size_bytes,
    )


def _job(contract: Contract, volume: Volume) -> Job:
    series = volume.series
    parts = [contract.pipeline, contract.version]
    parts += sorted(one.sop_instance_uid for one in volume.slices)
    return Job(
        job_id=uuid.uuid5(_NAMESPACE, "/".join(parts)).hex,
        pipeline=contract.pipeline,
        called_ae_title=_NOTHING,
        calling_ae_title=_NOTHING,
        study_instance_uid=series.study_instance_uid,
        series_instance_uid=series.series_instance_uid,
        priority=Priority.NORMAL,
        state=JobState.RUNNING,
        attempts=1,
        fence=1,
        destinations=(),
        created_at_s=0.0,
        not_before_s=0.0,
    )
