"""Routing: by AE title, conditions and contract, with a reason in words for every no."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import MRImageStorage, SecondaryCaptureImageStorage, generate_uid

from dicom_gateway.assemble.headers import read_header
from dicom_gateway.assessor import glance_at
from dicom_gateway.config import GatewaySettings
from dicom_gateway.records import Contract, Priority, Series
from dicom_gateway.route import Route, Router, Routing, gather_facts
from tests.support.dicom import a_ct_series, an_arrival, an_object_without_pixels
from tests.support.gateway import a_store

TITLES = [
    {
        "ae-title": "LUNG",
        "pipelines": ["lung_ct"],
        "destinations": ["pacs"],
        "priority": "high",
    },
    {"ae-title": "ALL", "pipelines": ["lung_ct", "brain_mr"]},
]
PACS = {"name": "pacs", "host-ip": "127.0.0.1", "port": 4242, "ae-title": "PACS"}
ARCHIVE = PACS | {"name": "archive"}


def settings(*rules: dict[str, Any], **routing: Any) -> GatewaySettings:
    """A gateway.yaml with these rules; AE title AI has nothing but them."""
    titles = [*TITLES, {"ae-title": "AI", "destinations": ["pacs"]}] if rules else TITLES
    return GatewaySettings.model_validate(
        {
            "dicom": {
                "scp": {"ae-titles": titles, "reject-unknown-sources": False},
                "scu": {"destinations": [PACS, ARCHIVE]},
            },
            "routing": {"rules": rules, **routing},
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
    gateway: GatewaySettings | None = None,
) -> Routing:
    """Where these go, once they are kept."""
    facts = gather_facts(kept(tmp_path, datasets, called), lambda p: glance_at(read_header, p))
    return Router(gateway or settings()).route(facts, contracts)


def kept(tmp_path: Path, datasets: list[Dataset], called: str = "LUNG") -> Series:
    """The series as the store knows it."""
    with a_store(tmp_path) as keeping:
        for ds in datasets:
            keeping.store.keep(an_arrival(ds, called_ae_title=called))
        return keeping.index.load_series(datasets[0].SeriesInstanceUID, called)


def test_a_ct_series_goes_through_the_pipeline_of_its_ae_title(tmp_path: Path) -> None:
    """With the title's priority and destinations, and the contract's version."""
    routing = routed(tmp_path, a_ct_series(2))

    expected = Route("lung_ct", "1.2.0", Priority.HIGH, ("pacs",), "ae-titles LUNG")
    assert (routing.routes, routing.reason) == ((expected,), "")
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
    """Assembling sorts it out, and another instance speaks for the series."""
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


THIN = {
    "name": "thin",
    "called": "AI",
    "where": [{"slice-thickness-mm": {"at-most": 3}}],
    "pipelines": ["lung_ct"],
    "destinations": ["archive"],
    "priority": "low",
}


def test_a_rule_takes_what_fulfils_its_conditions(tmp_path: Path) -> None:
    """With its own destinations and priority in place of the AE title's."""
    routing = routed(tmp_path, a_ct_series(2), "AI", gateway=settings(THIN))

    assert routing.routes == (Route("lung_ct", "1.2.0", Priority.LOW, ("archive",), "thin"),)


def test_what_no_rule_takes_is_told_the_condition(tmp_path: Path) -> None:
    """What matters first, then which condition does not hold."""
    thick = a_ct_series(2, spacing_mm=5.0)

    routing = routed(tmp_path, thick, "AI", gateway=settings(THIN))

    assert routing.routes == ()
    assert routing.reason == (
        "no pipeline of AE title AI wants this series; "
        "rule thin asks that slice thickness is at most 3 mm"
    )


def test_of_two_rules_for_one_pipeline_the_first_counts(tmp_path: Path) -> None:
    """The report of the second says who took it; one job is made."""
    second = THIN | {"name": "later", "priority": "high"}

    routing = routed(tmp_path, a_ct_series(2), "AI", gateway=settings(THIN, second))

    assert [(one.rule, one.priority) for one in routing.routes] == [("thin", Priority.LOW)]
    assert routing.reports[1].taken_by == {"lung_ct": "thin"}


def test_rules_and_the_short_form_add_up(tmp_path: Path) -> None:
    """Several pipelines for one series, the short form last."""
    rule = {"name": "mr", "called": "LUNG", "pipelines": ["brain_mr"]}
    contracts = CONTRACTS | {"brain_mr": a_contract("brain_mr", "CT")}
    gateway = settings(rule, THIN)

    routing = routed(tmp_path, a_ct_series(2), "LUNG", contracts, gateway)

    assert [(one.pipeline, one.rule) for one in routing.routes] == [
        ("brain_mr", "mr"),
        ("lung_ct", "ae-titles LUNG"),
    ]


@pytest.mark.parametrize(
    ("urgent", "priority"),
    [
        ({"calling": "SEND*"}, Priority.IMMEDIATE),
        ({"calling": "ER_CT"}, Priority.LOW),
        (
            {
                "where": [
                    {
                        "tag": "RequestAttributesSequence.RequestedProcedurePriority",
                        "equals": "stat",
                    }
                ]
            },
            Priority.IMMEDIATE,
        ),
        ({"where": [{"tag": "RequestedProcedurePriority", "equals": "STAT"}]}, Priority.LOW),
    ],
    ids=["the sender", "another sender", "a tag in a sequence", "the tag elsewhere"],
)
def test_urgent_is_what_a_tag_or_the_sender_says(
    tmp_path: Path, urgent: dict[str, Any], priority: Priority
) -> None:
    """Before what the rule and the AE title say."""
    frames = a_ct_series(2)
    for ds in frames:
        item = Dataset()
        item.RequestedProcedurePriority = "STAT"
        ds.RequestAttributesSequence = [item]
    gateway = settings(THIN, priorities=[urgent | {"priority": "immediate"}])

    (route,) = routed(tmp_path, frames, "AI", gateway=gateway).routes

    assert route.priority is priority


def test_a_rule_that_chooses_waits_for_the_study(tmp_path: Path) -> None:
    """The series alone makes no job by it."""
    routing = routed(
        tmp_path, a_ct_series(2), "AI", gateway=settings(THIN | {"choose": "thinnest"})
    )

    assert routing.routes == ()
    assert [one.name for one in routing.for_the_study] == ["thin"]


def test_an_unreadable_contract_takes_every_series(tmp_path: Path) -> None:
    """Its job then fails with the reason, in front of a person."""
    facts = gather_facts(kept(tmp_path, a_ct_series(1)), lambda p: glance_at(read_header, p))

    routing = Router(settings()).route(facts, {}, {"lung_ct"})

    assert [one.pipeline_version for one in routing.routes] == ["unreadable"]
    assert routing.is_final
