"""Routing: by called AE title and contract, with a reason in words for every no."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import MRImageStorage, SecondaryCaptureImageStorage, generate_uid

from dicom_gateway.assemble import read_header
from dicom_gateway.config import ScpSettings
from dicom_gateway.records import Contract, Priority, Series
from dicom_gateway.route import Route, Routing, route
from tests.support.dicom import a_ct_series, an_arrival, an_object_without_pixels
from tests.support.gateway import a_store

SETTINGS = ScpSettings.model_validate(
    {
        "ae-titles": [
            {
                "ae-title": "LUNG",
                "pipelines": ["lung_ct"],
                "destinations": ["pacs"],
                "priority": "high",
            },
            {"ae-title": "ALL", "pipelines": ["lung_ct", "brain_mr"]},
        ],
        "reject-unknown-sources": False,
    }
)


def a_contract(pipeline: str, modality: str) -> Contract:
    """What a pipeline for volumes of one modality says of itself."""
    return Contract(
        pipeline=pipeline,
        version="1.2.0",
        input_kind="volume",
        modality=modality,
        outputs=(),
        peak_bytes_per_voxel=1.0,
        builder_version="0.1.0",
    )


CONTRACTS = {"lung_ct": a_contract("lung_ct", "CT"), "brain_mr": a_contract("brain_mr", "MR")}


def routed(
    tmp_path: Path,
    datasets: list[Dataset],
    called: str = "LUNG",
    contracts: dict[str, Contract] = CONTRACTS,
) -> Routing:
    """Where these go, once they are kept."""
    return route(kept(tmp_path, datasets, called), SETTINGS, contracts, is_localizer)


def is_localizer(path: Path) -> bool:
    """By the header, as the judge asks for it."""
    return read_header(path).is_localizer


def kept(tmp_path: Path, datasets: list[Dataset], called: str = "LUNG") -> Series:
    """The series as the store knows it."""
    with a_store(tmp_path) as keeping:
        for ds in datasets:
            keeping.store.keep(an_arrival(ds, called_ae_title=called))
        return keeping.index.load_series(datasets[0].SeriesInstanceUID, called)


def test_a_ct_series_goes_through_the_pipeline_of_its_ae_title(tmp_path: Path) -> None:
    """With the title's priority and destinations, and the contract's version."""
    routing = routed(tmp_path, a_ct_series(2))

    assert routing == Routing((Route("lung_ct", "1.2.0", Priority.HIGH, ("pacs",)),), (), "")
    assert routing.is_final


def test_of_several_pipelines_those_that_want_it_take_it(tmp_path: Path) -> None:
    """The others say what they want."""
    routing = routed(tmp_path, a_ct_series(2), "ALL")

    assert [one.pipeline for one in routing.routes] == ["lung_ct"]
    assert routing.reason == "brain_mr wants MR"


def test_another_modality_is_refused_with_what_is_wanted(tmp_path: Path) -> None:
    """The reason names the AE title, the modality and each pipeline's wish."""
    series = a_ct_series(2, modality="MR", sop_class_uid=MRImageStorage)

    routing = routed(tmp_path, series)

    assert routing.routes == ()
    assert routing.reason == "no pipeline of AE title LUNG wants modality MR; lung_ct wants CT"


@pytest.mark.parametrize(
    ("datasets", "reason"),
    [
        (
            [an_object_without_pixels()],
            "no pipeline of AE title LUNG wants objects without cross-sections "
            "(Basic Text SR Storage, modality SR)",
        ),
        (
            a_ct_series(1, sop_class_uid=SecondaryCaptureImageStorage),
            "no pipeline of AE title LUNG wants objects without cross-sections "
            "(Secondary Capture Image Storage, modality CT)",
        ),
        (
            a_ct_series(2, image_type=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
            "no pipeline of AE title LUNG wants a series of localizers only "
            "(Image Type (0008,0008))",
        ),
    ],
    ids=["report", "secondary capture", "localizer"],
)
def test_objects_that_are_no_volume_are_ignored_also_while_triton_is_away(
    tmp_path: Path, datasets: list[Dataset], reason: str
) -> None:
    """No contract is needed to see that; nobody waits for one."""
    routing = routed(tmp_path, datasets, contracts={})

    assert routing == Routing((), (), reason)
    assert routing.is_final


def test_one_localizer_among_cross_sections_does_not_matter(tmp_path: Path) -> None:
    """Assembling sorts it out."""
    frames = a_ct_series(2)
    frames[0].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    assert routed(tmp_path, frames).routes


def test_a_pipeline_that_triton_has_not_shown_yet_is_waited_for(tmp_path: Path) -> None:
    """What is known already is routed; the series stays open for the rest."""
    routing = routed(tmp_path, a_ct_series(1), "ALL", {"lung_ct": CONTRACTS["lung_ct"]})

    assert [one.pipeline for one in routing.routes] == ["lung_ct"]
    assert routing.unknown_pipelines == ("brain_mr",)
    assert routing.reason == "Triton has not yet said what brain_mr wants"
    assert not routing.is_final


def test_an_ae_title_that_was_removed_is_named(tmp_path: Path) -> None:
    """After a change of gateway.yaml old series are ignored, not stuck."""
    routing = routed(tmp_path, a_ct_series(1), "OLD")

    assert routing.reason == "AE title OLD is no longer in dicom.scp.ae-titles"
    assert routing.is_final


def test_a_series_of_nothing_but_conflicts_says_so(tmp_path: Path) -> None:
    """A person is told whom to ask."""
    (frame,) = a_ct_series(1)
    kept(tmp_path, [frame], "ALL")
    frame.SeriesInstanceUID = generate_uid()

    routing = routed(tmp_path, [frame], "ALL")

    assert routing.routes == ()
    assert "SOP Instance UID of another object" in routing.reason
