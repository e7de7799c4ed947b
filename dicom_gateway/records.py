"""The frozen records that pass from room to room, and the states they go through.

Imports nothing of ours. A record is changed by making a new one
(`dataclasses.replace`); what survives a crash is in the database, these are its words.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Arrival:
    """One composite object as it came through the door, not yet kept.

    Attributes:
        encoded_dataset: The data set as received, undecoded, in `transfer_syntax_uid`
            (PS3.8 P-DATA), without the file meta information. A large one that came over
            HTTP is a file mapped into memory, which is gone when `keep` has returned.
        association_id: Opaque, unique for each association.
        study_instance_uid: Of the study it was announced to belong to, where it was.
    """

    encoded_dataset: bytes | bytearray | mmap.mmap
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae_title: str
    called_ae_title: str
    association_id: str
    study_instance_uid: str | None = None


@dataclass(frozen=True, slots=True)
class Instance:
    """One object that is durably kept: bytes, rename and index row are on the disk.

    Attributes:
        path: Absolute path of the DICOM file (PS3.10) inside the store.
        sha256: Hex digest of the data set as received.
        conflicts: True when other bytes under the same SOP Instance UID are in use for the
            same called AE title; such an instance is set apart and not used for a volume.
    """

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    series_instance_uid: str
    study_instance_uid: str
    modality: str
    path: Path
    sha256: str
    size_bytes: int
    conflicts: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """An object that came over HTTP and was not kept.

    Attributes:
        sop_class_uid: None where it isn't even known what it was; so for the next.
        status: As a C-STORE response has it (PS3.4 B.2.3).
        code: Stable, snake_case, for machines.
        reason: For people.
    """

    sop_class_uid: str | None
    sop_instance_uid: str | None
    status: int
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Reception:
    """What became of the parts of one multipart body."""

    kept: tuple[Instance, ...]
    refused: tuple[Refusal, ...]


class FetchState(StrEnum):
    """What a fetch from a PACS is doing; every one ends in one of the last three."""

    WAITING = "waiting"
    """The gateway hasn't begun with it."""
    RUNNING = "running"
    DONE = "done"
    """Everything that the PACS said it has is kept."""
    FAILED = "failed"
    """Something is missing; the note says what and why."""
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Fetch:
    """A wish to have something from a PACS, and how far it is.

    Attributes:
        peer: Its name in `pacs` of gateway.yaml.
        called_ae_title: Which AE title of ours it goes to.
        keys: What to look for: keyword -> value. Forgotten when it has ended.
        series: Only these Series Instance UIDs; all where there are none.
        expected: Instances, once the PACS has said how many.
        note: In words for a person, without a patient attribute.
    """

    fetch_id: str
    peer: str
    called_ae_title: str
    keys: Mapping[str, str]
    series: tuple[str, ...]
    state: FetchState
    expected: int | None
    kept: int
    failed: int
    note: str


class SeriesState(StrEnum):
    """Where a series is on its way from first instance to job."""

    RECEIVING = "receiving"
    """Instances may still come."""
    DECIDED = "decided"
    """Judged complete (or given up waiting); its jobs exist."""
    IGNORED = "ignored"
    """No pipeline wants it; kept all the same."""


@dataclass(frozen=True, slots=True)
class Series:
    """The instances of one series that were sent to one called AE title."""

    series_instance_uid: str
    study_instance_uid: str
    modality: str
    called_ae_title: str
    calling_ae_title: str
    instances: tuple[Instance, ...]


@dataclass(frozen=True, slots=True)
class Slice:
    """One frame of a volume and the instance it came from."""

    sop_class_uid: str
    sop_instance_uid: str
    frame_number: int
    """1-based (PS3.3 C.7.6.6); 1 for a single-frame instance."""
    position_lps_mm: tuple[float, float, float]
    """Image Position (Patient): the centre of the first voxel."""
    number_of_frames: int = 1
    """Of the instance."""


@dataclass(frozen=True, slots=True)
class ArenaSpan:
    """A piece of the shared-memory arena, handed out by offset."""

    region: str
    """Name under which Triton knows the arena."""
    offset_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Resampling:
    """How a regular volume was made from source frames that are no regular volume.

    Attributes:
        method: In words, with its numbers, for the job's story.
        source_shape_kji: (S, J, I) of the source frames.
        source_affine_lps: float64 [4, 4] of the source frames: columns 0 and 1 and the first
            position are exact, column 2 is only the mean step.
        offsets_kji: float64 [S, 3]: where in the volume's grid, in voxels (k, j, i), the
            first voxel of each source frame lies.
    """

    method: str
    source_shape_kji: tuple[int, int, int]
    source_affine_lps: NDArray[np.float64]
    offsets_kji: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Volume:
    """A regular 3-D volume lying in the arena, ready for Triton.

    Attributes:
        image: Where IMAGE lies: int16 (or float32) [K, J, I], C order; k slice, j row,
            i column, exactly as DICOM orders them.
        dtype: "INT16" or "FP32", Triton's datatype of `image`.
        shape_kji: (K, J, I).
        rescale: float64 [K, 2]: slope and intercept per slice. The shift of unsigned
            16-bit data (-32768) is folded into the intercept.
        affine_lps: float64 [4, 4]: (i, j, k, 1) -> LPS millimetres.
        slices: The source frames, sorted along the normal: K entries in the order of k, or,
            where `resampling` is set, S entries that lie on a grid of their own.
        headers: One file per entry of `slices`, for the attributes of the result.
        name: Which volume of its series it is, in words for a person; "" where that has one.
        resampling: None where the slices are the source frames themselves.
        notes: What was done to it that a person should know.
    """

    image: ArenaSpan
    dtype: Literal["INT16", "FP32"]
    shape_kji: tuple[int, int, int]
    rescale: NDArray[np.float64]
    affine_lps: NDArray[np.float64]
    slices: tuple[Slice, ...]
    headers: tuple[Path, ...]
    series: Series
    name: str = ""
    resampling: Resampling | None = None
    notes: tuple[str, ...] = ()


class Ruling(StrEnum):
    """What was decided about a series, line by line: `tritome series show` prints them."""

    WAITS = "waits"
    """For more of it, for the rest of its study, or for Triton; the reasons say which."""
    COMPLETE = "complete"
    """Decided; its jobs exist."""
    IGNORED = "ignored"
    """Decided; no pipeline wants it."""
    BY_HAND = "by_hand"
    """A person has declared it complete."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One line of a series' story.

    Attributes:
        reasons: In words, what counts most first.
    """

    series_instance_uid: str
    called_ae_title: str
    at_s: float
    ruling: Ruling
    reasons: str


class JobState(StrEnum):
    """What a job is doing; every job ends in one of the last four."""

    WAITING = "waiting"
    """May be claimed once `not_before` has passed."""
    RUNNING = "running"
    """Claimed under a lease by one worker."""
    DELIVERING = "delivering"
    """Its results are made and durable; the outbox sends them."""
    DELIVERED = "delivered"
    """Every destination has accepted every result."""
    FAILED = "failed"
    """In the list that a person sees; `tritome jobs retry` starts it again."""
    CANCELLED = "cancelled"
    """Ended by a person."""
    SUPERSEDED = "superseded"
    """A newer job has taken its place before all of its results were delivered."""


class Priority(StrEnum):
    """`immediate` goes before all; the others share 6:3:1."""

    IMMEDIATE = "immediate"
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


@dataclass(frozen=True, slots=True)
class Job:
    """One series, or one for each of several roles, for one pipeline.

    Attributes:
        job_id: UUID hex. The seed of its results' UIDs.
        series_instance_uid: Where there are roles, that of the first of them.
        fence: Grows with each claim; a write under an older fence is refused.
        destinations: Names from the configuration's `scu.destinations`.
        rule: Of gateway.yaml, which asked for it.
        roles: Role -> Series Instance UID; empty where the pipeline has one input.
        superseded_by: The job that has taken its place; a delivered job stays delivered.
    """

    job_id: str
    pipeline: str
    called_ae_title: str
    calling_ae_title: str
    study_instance_uid: str
    series_instance_uid: str
    priority: Priority
    state: JobState
    attempts: int
    fence: int
    destinations: tuple[str, ...]
    created_at_s: float
    """Seconds since the epoch by the database's clock, as all times here."""
    not_before_s: float
    started_at_s: float | None = None
    finished_at_s: float | None = None
    failure_code: str | None = None
    failure_reason: str | None = None
    rule: str = ""
    roles: Mapping[str, str] = field(default_factory=dict)
    superseded_by: str | None = None


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One line of a job's story: `tritome jobs show` prints them."""

    job_id: str
    at_s: float
    stage: str
    note: str
    duration_s: float | None = None


class ObjectKind(StrEnum):
    """The kinds of DICOM objects that a result can be; gateway.yaml names them like this."""

    SEGMENTATION = "segmentation"
    """SEG, BINARY: what most peers take."""
    LABELMAP_SEGMENTATION = "labelmap-segmentation"
    """SEG, LABELMAP: for peers that accept it."""
    STRUCTURED_REPORT = "structured-report"
    """SR by TID 1500: volumes of segments, scores of a classification."""
    RT_STRUCTURE_SET = "rt-structure-set"
    """RTSTRUCT: closed planar contours."""
    SECONDARY_CAPTURE = "secondary-capture"
    """Key images with the mask drawn on them, so that any viewer shows something."""


OBJECT_KIND_OF_SOP_CLASS: Mapping[str, ObjectKind] = {
    "1.2.840.10008.5.1.4.1.1.66.4": ObjectKind.SEGMENTATION,
    "1.2.840.10008.5.1.4.1.1.66.7": ObjectKind.LABELMAP_SEGMENTATION,
    "1.2.840.10008.5.1.4.1.1.88.33": ObjectKind.STRUCTURED_REPORT,
    "1.2.840.10008.5.1.4.1.1.88.34": ObjectKind.STRUCTURED_REPORT,
    "1.2.840.10008.5.1.4.1.1.481.3": ObjectKind.RT_STRUCTURE_SET,
    "1.2.840.10008.5.1.4.1.1.7": ObjectKind.SECONDARY_CAPTURE,
    "1.2.840.10008.5.1.4.1.1.7.4": ObjectKind.SECONDARY_CAPTURE,
}
"""Which kind an object is, by its SOP class (PS3.4 B.5): all that the index has to keep."""


@dataclass(frozen=True, slots=True)
class Result:
    """One DICOM object made by a job, durable under `path` before it is announced."""

    sop_instance_uid: str
    sop_class_uid: str
    job_id: str
    output: str
    """Name of the ensemble's output it was made from, such as MASK."""
    path: Path
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ReplacedResult:
    """A DICOM object of an earlier job whose place a newer one takes."""

    sop_class_uid: str
    sop_instance_uid: str
    output: str
    job_id: str


class DeliveryState(StrEnum):
    """One result on its way to one destination."""

    WAITING = "waiting"
    SENT = "sent"
    """Accepted by the peer; the proof that it has it is still to come."""
    DELIVERED = "delivered"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One entry of a destination's outbox.

    Attributes:
        refusals: How often the peer didn't understand the object.
        losses: How often it had accepted the object and didn't have it.
        proof_tries: How often it was asked for a proof since it accepted the object.
        sent_age_s: Since it accepted the object; None where it hasn't.
        pipeline: Of the job.
    """

    delivery_id: int
    job_id: str
    result: Result
    destination: str
    state: DeliveryState
    attempts: int
    not_before_s: float
    last_error: str | None = None
    refusals: int = 0
    losses: int = 0
    proof_tries: int = 0
    sent_age_s: float | None = None
    pipeline: str = ""


@dataclass(frozen=True, slots=True)
class CodedConcept:
    """A code triplet (PS3.3 Table 8.8-1)."""

    value: str
    scheme_designator: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Segment:
    """One row of the contract's segment table."""

    label: int
    name: str
    category: CodedConcept
    type: CodedConcept
    type_modifier: CodedConcept | None = None
    anatomic_region: CodedConcept | None = None
    colour_rgb: tuple[int, int, int] | None = None


@dataclass(frozen=True, slots=True)
class ScoredClass:
    """What one number of a classification means.

    Attributes:
        name: In the bundle's own words.
        code: The finding; None where the bundle states no code.
    """

    name: str
    code: CodedConcept | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """One output of a pipeline, as the contract states it.

    Attributes:
        segments: Of a label map by label; of masks by channel, the first is label 1.
        classes: Of scores, in their order; where they are as many as `dims` says, or none.
    """

    name: str
    kind: Literal["labelmap", "masks", "scores", "image", "boxes", "points"]
    datatype: str
    dims: tuple[int, ...]
    segments: tuple[Segment, ...] = ()
    classes: tuple[ScoredClass, ...] = ()
    on_input_grid: bool = True
    """Its voxels are the input's; a result on a grid of its own can't be placed here."""

    @property
    def labelmaps(self) -> tuple[Output, ...]:
        """As label maps: itself, or one of label 1 for each of its masks, which may overlap."""
        if self.kind == "labelmap":
            return (self,)
        if self.kind != "masks":
            return ()
        return tuple(
            replace(
                self,
                name=f"{self.name}_{segment.label}",
                kind="labelmap",
                dims=self.dims[1:],
                segments=(replace(segment, label=1),),
            )
            for segment in self.segments
        )


@dataclass(frozen=True, slots=True)
class Input:
    """One thing that a request brings, as the contract states it.

    Attributes:
        name: The bundle's word for it, which rules with roles use too.
        layout: `volume` [K, J, I]; `channels` [C, K, J, I], co-registered; `gray` [J, I];
            `rgb` [H, W, C]; `points` [N, D]; `value` [1].
        channels: Names of its channels in their order; empty where the bundle doesn't say.
        tensors: Role (`image`, `rescale`, `affine`, `values`) -> Triton tensor.
        datatype: Of its main tensor, Triton's word.
        dims: Of its main tensor, -1 is any.
    """

    name: str
    layout: Literal["volume", "channels", "gray", "rgb", "points", "value"]
    modality: str
    channels: tuple[str, ...]
    tensors: Mapping[str, str]
    datatype: str
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Contract:
    """What the gateway needs to know of a pipeline, read from Triton's model config."""

    pipeline: str
    version: str
    input_kind: Literal["volume", "image", "inputs"]
    """`inputs`: several, or other ones than one volume or image."""
    modality: str
    outputs: tuple[Output, ...]
    peak_bytes_per_voxel: float
    builder_version: str
    description: str = ""
    intended_use: str = ""
    weights: Mapping[str, str] = field(default_factory=dict)
    """Origin of the weights: sha256, licence, source."""
    irregular: tuple[Literal["resample", "split"], ...] | None = None
    """What may be done to a series that is not one regular volume; () refuses it, None says
    nothing, so that the site decides."""
    inputs: tuple[Input, ...] = ()
    """What a request brings; empty in contracts of the first builders, which had one volume."""

    @property
    def labelmaps(self) -> tuple[Output, ...]:
        """What `Inference.labelmaps` has: every label map, and each of the masks as one."""
        return tuple(one for output in self.outputs for one in output.labelmaps)


@dataclass(frozen=True, slots=True)
class Inference:
    """The outputs of one request, copied out of the arena.

    Attributes:
        labelmaps: Name in `Contract.labelmaps` -> uint8 or uint16 [K, J, I] on the input's
            grid; a 2-D image has K = 1.
        duration_s: Wall time from request to response.
        scores: Output name -> float32 [n], one for each of the output's classes.
    """

    labelmaps: Mapping[str, NDArray[np.uint8] | NDArray[np.uint16]]
    duration_s: float
    scores: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
