"""What a series waits for and what was decided, on both databases."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from dicom_gateway.database import transaction
from dicom_gateway.records import Ruling, SeriesState
from dicom_gateway.store import Docket, InstanceStore, SeriesIndex
from dicom_gateway.store.docket import SERIES, StatedCount
from dicom_gateway.store.study_index import StudyIndex
from tests.support.dicom import a_ct_series, an_arrival


@pytest.fixture
def docket(engine: sa.Engine) -> Docket:
    """An empty one."""
    return Docket(engine)


def test_counts_are_kept_before_anything_has_come(docket: Docket) -> None:
    """By source; a newer one of the same source takes its place."""
    docket.expect("1.2", "AI", 40, "C-FIND of pacs")
    docket.expect("1.2", "AI", 41, "C-FIND of pacs")
    docket.expect("1.2", "AI", 38, "C-MOVE of pacs")
    docket.expect("1.2", "OTHER", 7, "C-FIND of pacs")
    docket.expect_series("1.2", "AI", 3, "QIDO-RS")

    # The newest comes first, but SQLite's clock may not tell two of one millisecond apart.
    stated = sorted(docket.expected("1.2", "AI"), key=lambda one: one.source)
    assert stated == [StatedCount(41, "C-FIND of pacs"), StatedCount(38, "C-MOVE of pacs")]
    assert docket.expected("1.2", "AI", SERIES) == [StatedCount(3, "QIDO-RS")]
    assert docket.expected("1.3", "AI") == []


def test_several_may_state_the_same_count_at_once(docket: Docket) -> None:
    """Retrievals run beside each other."""
    troubles: list[BaseException] = []

    def state() -> None:
        try:
            for count in range(10):
                docket.expect("1.2", "AI", count, "C-FIND of pacs")
        except BaseException as error:  # noqa: BLE001 - told below
            troubles.append(error)

    threads = [threading.Thread(target=state) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert troubles == []
    assert len(docket.expected("1.2", "AI")) == 1


def test_a_wait_is_noted_once_until_it_changes(docket: Docket) -> None:
    """Also by another process that doesn't remember the last line."""
    docket.waits("1.2", "AI", "slices missing")
    docket.waits("1.2", "AI", "slices missing")
    Docket(docket._engine).waits("1.2", "AI", "slices missing")
    docket.waits("1.2", "AI", "the association is still open")
    docket.waits("1.2", "AI", "slices missing")

    assert [one.reasons for one in docket.decisions("1.2")] == [
        "slices missing",
        "the association is still open",
        "slices missing",
    ]


def test_a_person_s_word_counts_until_the_series_is_decided(
    docket: Docket, engine: sa.Engine
) -> None:
    """For that AE title alone; the story keeps it."""
    docket.complete_by_hand("1.2", "AI")
    docket.complete_by_hand("1.2", "AI")
    docket.complete_by_hand("1.2", "OTHER")
    with transaction(engine) as connection:
        docket.decided(connection, "1.2", "AI", Ruling.COMPLETE, "as it is")

    assert docket.declared_complete() == {("1.2", "OTHER")}
    assert [one.ruling for one in docket.decisions("1.2") if one.called_ae_title == "AI"] == [
        Ruling.BY_HAND,
        Ruling.BY_HAND,
        Ruling.COMPLETE,
    ]


def test_a_study_is_seen_with_all_its_series(engine: sa.Engine, tmp_path: Path) -> None:
    """Their states, whether one association brought them all, and whether any is open."""
    store = InstanceStore(tmp_path, engine, 0)
    index, studies = SeriesIndex(engine, tmp_path), StudyIndex(engine)
    first = a_ct_series(2, rows=8, columns=8)
    study = str(first[0].StudyInstanceUID)
    second = a_ct_series(2, rows=8, columns=8, study_instance_uid=study)
    for ds in first:
        store.keep(an_arrival(ds, association_id="a1"))
    alone = studies.look(study, "LUNG")
    assert (len(alone.states), alone.instances, alone.together) == (1, 2, False)
    assert alone.association_open

    store.keep(an_arrival(second[0], association_id="a1"))
    index.association_ended("a1", in_order=True)
    both = studies.look(study, "LUNG")
    assert (len(both.open_series), both.together, both.broken_off) == (2, True, False)
    assert not both.association_open

    store.keep(an_arrival(second[1], association_id="a2"))
    index.association_ended("a2", in_order=False)
    judged = index.load_series(str(first[0].SeriesInstanceUID), "LUNG")
    with transaction(engine) as connection:
        index.mark_series(connection, judged, SeriesState.DECIDED)
    after = studies.look(study, "LUNG")
    assert (after.broken_off, after.together) == (True, True)
    assert after.open_series == {str(second[0].SeriesInstanceUID)}
    assert studies.look(study, "OTHER").states == {}
