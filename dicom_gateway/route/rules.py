"""Room 3, route: which pipelines a series goes through, with what priority, and whereto.

In: a `Series`, the settings of the receiving side, the contracts known by now. Out: a
`Routing`, with a reason in words where a pipeline doesn't take it. Nothing is kept: the
same question gives the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydicom import uid

from dicom_gateway.config import AcceptedTitle, ScpSettings
from dicom_gateway.records import Contract, Priority, Series

_CROSS_SECTIONS = frozenset(
    (
        uid.CTImageStorage,
        uid.EnhancedCTImageStorage,
        uid.LegacyConvertedEnhancedCTImageStorage,
        uid.MRImageStorage,
        uid.EnhancedMRImageStorage,
        uid.LegacyConvertedEnhancedMRImageStorage,
        uid.PositronEmissionTomographyImageStorage,
        uid.EnhancedPETImageStorage,
        uid.LegacyConvertedEnhancedPETImageStorage,
        uid.NuclearMedicineImageStorage,
        uid.XRay3DAngiographicImageStorage,
        uid.XRay3DCraniofacialImageStorage,
        uid.BreastTomosynthesisImageStorage,
    )
)
"""Objects whose frames are cross-sections of one body (PS3.3 A): what a volume is made of."""

_PROJECTIONS = frozenset(
    (
        uid.ComputedRadiographyImageStorage,
        uid.DigitalXRayImageStorageForPresentation,
        uid.DigitalMammographyXRayImageStorageForPresentation,
    )
)
"""Objects that are one picture: for pipelines of the kind `image`."""

_KINDS = {"volume": _CROSS_SECTIONS, "image": _PROJECTIONS}


@dataclass(frozen=True, slots=True)
class Route:
    """One pipeline that takes the series."""

    pipeline: str
    pipeline_version: str
    priority: Priority
    destinations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Routing:
    """Where a series goes.

    Attributes:
        routes: A job for each of these.
        unknown_pipelines: Pipelines whose contract has never been seen, Triton being away.
            While there are any, keep the series open and ask again; enqueuing `routes`
            twice does no harm.
        reason: Why the pipelines that don't take it don't; "" where all do.
    """

    routes: tuple[Route, ...]
    unknown_pipelines: tuple[str, ...]
    reason: str

    @property
    def is_final(self) -> bool:
        """False while a pipeline must still be asked what it wants."""
        return not self.unknown_pipelines


def route(
    series: Series,
    settings: ScpSettings,
    contracts: Mapping[str, Contract],
    is_localizer: Callable[[Path], bool],
) -> Routing:
    """Finds the pipelines of the called AE title that want this series.

    Args:
        series: What was received, complete or not.
        settings: `dicom.scp` of gateway.yaml.
        contracts: By pipeline; also those of earlier, when Triton is away just now.
        is_localizer: Whether the instance at a path is a scout; False where its header
            can't be read, so that assembling says what is wrong with it.
    """
    title = _title_of(series.called_ae_title, settings)
    if title is None:
        return _ignored(f"AE title {series.called_ae_title} is no longer in dicom.scp.ae-titles")
    if not series.instances:
        return _ignored(
            "every instance of it came under the SOP Instance UID of another object; "
            "ask the sender which of them is right"
        )
    unwanted = _never_wanted(series, is_localizer)
    if unwanted:
        return _ignored(f"no pipeline of AE title {title.ae_title} wants {unwanted}")

    routes, unknown, refusals = [], [], []
    for name in title.pipelines:
        contract = contracts.get(name)
        if contract is None:
            unknown.append(name)
        elif refusal := _refusal(series, contract):
            refusals.append(refusal)
        else:
            routes.append(Route(name, contract.version, title.priority, title.destinations))
    reasons = ["; ".join(refusals)] if refusals else []
    if refusals and not routes:
        what = f"modality {series.modality}" if series.modality else "a series without a modality"
        reasons.insert(0, f"no pipeline of AE title {title.ae_title} wants {what}")
    if unknown:
        reasons.append(f"Triton has not yet said what {', '.join(unknown)} wants")
    return Routing(tuple(routes), tuple(unknown), "; ".join(reasons))


def _title_of(called_ae_title: str, settings: ScpSettings) -> AcceptedTitle | None:
    return next((t for t in settings.ae_titles if t.ae_title == called_ae_title), None)


def _ignored(reason: str) -> Routing:
    return Routing(routes=(), unknown_pipelines=(), reason=reason)


def _never_wanted(series: Series, is_localizer: Callable[[Path], bool]) -> str:
    """Why no pipeline at all can take the series; "" where one might."""
    classes = {instance.sop_class_uid for instance in series.instances}
    if classes.isdisjoint(_CROSS_SECTIONS | _PROJECTIONS):
        names = ", ".join(sorted(uid.UID(one).name for one in classes))
        return f"objects without cross-sections ({names}, modality {series.modality or 'unknown'})"
    if all(is_localizer(instance.path) for instance in series.instances):
        return "a series of localizers only (Image Type (0008,0008))"
    return ""


def _refusal(series: Series, contract: Contract) -> str:
    """What this pipeline wants instead; "" where it takes the series."""
    if series.modality != contract.modality:
        return f"{contract.pipeline} wants {contract.modality}"
    classes = {uid.UID(instance.sop_class_uid) for instance in series.instances}
    if classes.isdisjoint(_KINDS[contract.input_kind]):
        names = ", ".join(sorted(one.name for one in classes))
        return f"{contract.pipeline} wants an input of the kind {contract.input_kind}, not {names}"
    return ""
