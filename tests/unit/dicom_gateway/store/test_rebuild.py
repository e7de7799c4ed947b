"""The index made again from the files, and the audit that says whether the two agree."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
import sqlalchemy as sa
from pydicom import Dataset
from pydicom.uid import generate_uid

from dicom_gateway.database import arrivals, instances, series, transaction
from dicom_gateway.errors import ConfigurationError
from dicom_gateway.records import SeriesState
from dicom_gateway.store import InstanceStore, SeriesIndex
from dicom_gateway.store.check import JUST_NOW_S, Checked, check
from dicom_gateway.store.computed import CLOCKS_S
from dicom_gateway.store.docket import Docket
from dicom_gateway.store.rebuild import Rebuilt, rebuild
from tests.support.databases import an_empty_index
from tests.support.dicom import a_ct_series, an_arrival, write_series
from tests.support.gateway import Keeping, a_store


@pytest.fixture(params=["sqlite", "postgresql"])
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    """An index that knows nothing, once of each kind."""
    url = f"sqlite:///{tmp_path}/fresh.sqlite"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql_url")
    with an_empty_index(url) as engine:
        yield engine


def keep(
    keeping: Keeping, datasets: list[Dataset], *, called: str = "LUNG", calling: str = "SENDER"
) -> None:
    """Keeps them one after the other."""
    for ds in datasets:
        keeping.store.keep(an_arrival(ds, called_ae_title=called, calling_ae_title=calling))


def what_it_knows(engine: sa.Engine) -> list[tuple[Any, ...]]:
    """Everything about arrivals, in their order, but times and row numbers."""
    with transaction(engine) as connection:
        rows = connection.execute(
            sa.select(
                instances.c.sop_instance_uid,
                instances.c.sha256,
                instances.c.sop_class_uid,
                instances.c.transfer_syntax_uid,
                instances.c.series_instance_uid,
                instances.c.study_instance_uid,
                instances.c.modality,
                instances.c.path,
                instances.c.size_bytes,
                arrivals.c.called_ae_title,
                arrivals.c.calling_ae_title,
                arrivals.c.conflicts,
            )
            .join(arrivals, arrivals.c.instance_id == instances.c.id)
            .order_by(instances.c.id, arrivals.c.received_at_s)
        )
        return [tuple(row) for row in rows]


def senders(engine: sa.Engine) -> dict[tuple[str, str], str]:
    """Whose each series is."""
    with transaction(engine) as connection:
        return {
            (row.series_instance_uid, row.called_ae_title): row.calling_ae_title
            for row in connection.execute(sa.select(series))
        }


def make_old(folder: Path) -> None:
    """As if nothing had come just now."""
    long_ago_s = time.time() - 10 * JUST_NOW_S
    for path in folder.rglob("*"):
        os.utime(path, (long_ago_s, long_ago_s))


def test_a_lost_index_is_made_again_as_it_was(tmp_path: Path, fresh: sa.Engine) -> None:
    """Instances, AE titles, conflicts and order of arrival; `check` then has nothing to say."""
    frames = a_ct_series(6, shuffled=True)
    other = a_ct_series(2, modality="MR")
    with a_store(tmp_path / "store") as keeping:
        keep(keeping, frames[:4])
        keep(keeping, other, called="BRAIN", calling="MR1")
        keep(keeping, frames[2:], called="LIVER", calling="CT2")
        frames[0].PatientID = "another"
        keep(keeping, frames[:1])
        keep(keeping, frames[4:])
        had, had_senders = what_it_knows(keeping.engine), senders(keeping.engine)
        assert [row[-1] for row in had].count(True) == 1

        done = rebuild(fresh, keeping.folder)
        make_old(keeping.folder)
        checked = check(fresh, keeping.folder)

    assert what_it_knows(fresh) == had
    assert senders(fresh) == had_senders
    assert done == Rebuilt(files=9, added=len(had), receiving=3)
    assert (checked.agrees, checked.files, checked.rows) == (True, 9, 9)


def test_who_took_anothers_place_still_has_it(tmp_path: Path, fresh: sa.Engine) -> None:
    """A correction that came after an ignored series is the one in use, in the new index too."""
    (ds,) = a_ct_series(1)
    with a_store(tmp_path / "store") as keeping:
        keep(keeping, [ds])
        judged = keeping.index.load_series(ds.SeriesInstanceUID, "LUNG")
        with transaction(keeping.engine) as connection:
            keeping.index.mark_series(connection, judged, SeriesState.IGNORED)
        ds.PatientID = "corrected"
        keep(keeping, [ds])
        had = what_it_knows(keeping.engine)
        assert [row[-1] for row in had] == [True, False]

        rebuild(fresh, keeping.folder)

    assert what_it_knows(fresh) == had


def test_a_series_belongs_to_who_sent_it_last(tmp_path: Path, fresh: sa.Engine) -> None:
    """Also where that one only repeated what had come from another."""
    frames = a_ct_series(2)
    with a_store(tmp_path / "store") as keeping:
        keep(keeping, frames, calling="CT1")
        keep(keeping, frames, calling="CT2")
        had = senders(keeping.engine)
        assert set(had.values()) == {"CT2"}

        rebuild(fresh, keeping.folder)

    assert senders(fresh) == had


def test_what_the_index_knows_already_stays(tmp_path: Path) -> None:
    """Only what is missing is added; a decided series without news stays decided."""
    decided, lost = a_ct_series(3), a_ct_series(2)
    with a_store(tmp_path / "store") as keeping:
        keep(keeping, decided)
        judged = keeping.index.load_series(decided[0].SeriesInstanceUID, "LUNG")
        with transaction(keeping.engine) as connection:
            keeping.index.mark_series(connection, judged, SeriesState.DECIDED, "because")
        keep(keeping, lost)
        with transaction(keeping.engine) as connection:
            ids = sa.select(instances.c.id).where(
                instances.c.series_instance_uid == lost[0].SeriesInstanceUID
            )
            connection.execute(arrivals.delete().where(arrivals.c.instance_id.in_(ids)))
            connection.execute(instances.delete().where(instances.c.id.in_(ids)))
        make_old(keeping.folder)
        assert len(check(keeping.engine, keeping.folder).without_row) == 2

        done = rebuild(keeping.engine, keeping.folder)

        assert (done.added, done.forgotten) == (2, 0)
        assert len(keeping.index.load_series(lost[0].SeriesInstanceUID, "LUNG").instances) == 2
        (waiting,) = keeping.index.open_series()
        assert waiting.series_instance_uid == lost[0].SeriesInstanceUID
        assert rebuild(keeping.engine, keeping.folder).added == 0


def make_result(folder: Path, sources: list[Dataset], *, age_s: float = 0.0) -> None:
    """A result that was made from them, so many seconds ago."""
    result = a_ct_series(1)[0]
    reference = Dataset()
    reference.SeriesInstanceUID = sources[0].SeriesInstanceUID
    reference.ReferencedInstanceSequence = []
    for ds in sources:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = (
            ds.SOPClassUID,
            ds.SOPInstanceUID,
        )
        reference.ReferencedInstanceSequence.append(item)
    result.ReferencedSeriesSequence = [reference]
    (path,) = write_series(folder / "results", [result])
    path = path.rename(path.with_name(f"{result.SOPInstanceUID}.dcm"))
    os.utime(path, (time.time() - age_s, time.time() - age_s))


def story(engine: sa.Engine, uid: str) -> str:
    """What is said of a series, in its rows and its story."""
    with transaction(engine) as connection:
        said = connection.execute(
            sa.select(series.c.reasons).where(series.c.series_instance_uid == uid)
        ).scalars()
        return "; ".join([*said, *(one.reasons for one in Docket(engine).decisions(uid))])


def open_titles(engine: sa.Engine, folder: Path, uid: str) -> list[str]:
    """The AE titles for which a series will be judged."""
    return sorted(
        one.called_ae_title
        for one in SeriesIndex(engine, folder).open_series()
        if one.series_instance_uid == uid
    )


def test_a_series_that_has_results_is_not_computed_again(tmp_path: Path, fresh: sa.Engine) -> None:
    """All of it is in results that lie in the store: it counts as decided, and says why."""
    done_before, new = a_ct_series(4), a_ct_series(2)
    with a_store(tmp_path / "store") as keeping:
        keep(keeping, [*done_before, *new])
        make_result(keeping.folder, done_before[:2])  # one for each of its volumes
        make_result(keeping.folder, done_before[2:])

        done = rebuild(fresh, keeping.folder)

    assert (done.decided, done.receiving) == (1, 1)
    assert open_titles(fresh, tmp_path, new[0].SeriesInstanceUID) == ["LUNG"]
    assert "made again from the files" in story(fresh, done_before[0].SeriesInstanceUID)


def test_a_series_of_which_something_is_in_no_result_is_judged_again(
    tmp_path: Path, fresh: sa.Engine
) -> None:
    """An instance came late, and nobody had computed it yet; its story says so."""
    frames = a_ct_series(4)
    uid = str(frames[0].SeriesInstanceUID)
    with a_store(tmp_path / "store") as keeping:
        keep(keeping, frames[:3])
        make_result(keeping.folder, frames[:3])
        keep(keeping, frames[3:])

        done = rebuild(fresh, keeping.folder)

    assert (done.decided, done.receiving) == (0, 1)
    assert "1 of its instances are in none" in story(fresh, uid)


def test_what_was_corrected_after_its_result_is_judged_again(
    tmp_path: Path, fresh: sa.Engine
) -> None:
    """The result names the same SOP Instance UIDs, and was made from other bytes."""
    frames = a_ct_series(2)
    with a_store(tmp_path / "store") as keeping:
        keep(keeping, frames)
        make_result(keeping.folder, frames, age_s=60)
        judged = keeping.index.load_series(frames[0].SeriesInstanceUID, "LUNG")
        with transaction(keeping.engine) as connection:
            keeping.index.mark_series(connection, judged, SeriesState.IGNORED)
        for ds in frames:
            ds.PatientID = "corrected"
        keep(keeping, frames)

        assert rebuild(fresh, keeping.folder).decided == 0


def test_a_result_counts_for_the_ae_title_that_it_must_be_of(
    tmp_path: Path, fresh: sa.Engine
) -> None:
    """One had less of the series, the other nothing yet when it was made: they are judged."""
    frames = a_ct_series(3)
    uid = str(frames[0].SeriesInstanceUID)
    with a_store(tmp_path / "store") as keeping:
        keep(keeping, frames)
        keep(keeping, frames[:2], called="LIVER")
        make_result(keeping.folder, frames)
        time.sleep(CLOCKS_S)
        keep(keeping, frames, called="HEART")

        done = rebuild(fresh, keeping.folder)

    assert (done.decided, open_titles(fresh, tmp_path, uid)) == (1, ["HEART", "LIVER"])


def test_where_nobody_knows_for_which_ae_title_all_of_them_are_judged_again(
    tmp_path: Path, fresh: sa.Engine
) -> None:
    """Rather computed twice than never; the story says why."""
    frames = a_ct_series(2)
    uid = str(frames[0].SeriesInstanceUID)
    with a_store(tmp_path / "store") as keeping:
        keep(keeping, frames)
        keep(keeping, frames, called="LIVER")
        make_result(keeping.folder, frames)

        rebuild(fresh, keeping.folder)

    assert open_titles(fresh, tmp_path, uid) == ["LIVER", "LUNG"]
    assert "which one they were made for isn't known" in story(fresh, uid)


def test_a_stranger_whose_object_is_set_apart_does_not_get_the_series(
    tmp_path: Path, fresh: sa.Engine
) -> None:
    """Where it was decided already; one that was still coming is its last sender's."""
    decided, coming = a_ct_series(2), a_ct_series(2)
    with a_store(tmp_path / "store") as keeping:
        keep(keeping, decided, calling="CT1")
        judged = keeping.index.load_series(decided[0].SeriesInstanceUID, "LUNG")
        with transaction(keeping.engine) as connection:
            keeping.index.mark_series(connection, judged, SeriesState.DECIDED)
        keep(keeping, coming, calling="CT1")
        for ds in (decided[0], coming[0]):
            ds.PatientID = "another"
        keep(keeping, [decided[0], coming[0]], calling="CT2")
        had = senders(keeping.engine)
        assert sorted(had.values()) == ["CT1", "CT2"]

        rebuild(fresh, keeping.folder)

    assert senders(fresh) == had


def test_who_sends_the_same_again_after_another_gets_the_series_back(
    tmp_path: Path, fresh: sa.Engine
) -> None:
    """Although the file says already that the object is that one's."""
    frames = a_ct_series(2)
    with a_store(tmp_path / "store") as keeping:
        keep(keeping, frames[:1], calling="CT1")
        keep(keeping, frames[1:], calling="CT2")
        keep(keeping, frames[:1], calling="CT1")
        had = senders(keeping.engine)
        assert set(had.values()) == {"CT1"}

        rebuild(fresh, keeping.folder)

    assert senders(fresh) == had


def test_a_changed_file_is_found_set_apart_and_mended_by_sending_again(tmp_path: Path) -> None:
    """One flipped bit: check names it, rebuild moves it, the next transmission brings it back."""
    frames = a_ct_series(3)
    with a_store(tmp_path / "store") as keeping:
        keep(keeping, frames)
        victim = keeping.index.load_series(frames[0].SeriesInstanceUID, "LUNG").instances[1]
        content = bytearray(victim.path.read_bytes())
        content[-7] ^= 1
        victim.path.write_bytes(content)
        found = check(keeping.engine, keeping.folder)
        assert found.damaged == [
            (victim.path.relative_to(keeping.folder), "its bytes have changed")
        ]
        assert not found.agrees

        done = rebuild(keeping.engine, keeping.folder)
        assert (len(done.damaged), done.forgotten) == (1, 1)
        assert (keeping.folder / "damaged" / victim.path.name).exists()
        assert not victim.path.exists()

        keep(keeping, frames[1:2])
        assert victim.path.exists()
        make_old(keeping.folder)
        assert check(keeping.engine, keeping.folder).agrees


def test_sending_a_damaged_object_again_mends_it_at_once(tmp_path: Path) -> None:
    """Without any rebuild: the file is written anew, and the index keeps its order."""
    frames = a_ct_series(3)
    with a_store(tmp_path / "store") as keeping:
        keep(keeping, frames)
        had = what_it_knows(keeping.engine)
        victim = keeping.index.load_series(frames[0].SeriesInstanceUID, "LUNG").instances[0]
        victim.path.write_bytes(victim.path.read_bytes()[:-100])

        keep(keeping, frames[:1], calling="SOMEBODY_ELSE")

        assert check(keeping.engine, keeping.folder).damaged == []
        assert [row[:8] + row[9:] for row in what_it_knows(keeping.engine)] == [
            row[:8] + row[9:] for row in had
        ]
        read = pydicom.dcmread(victim.path)
        assert read.PixelData == frames[0].PixelData
        with an_empty_index(f"sqlite:///{tmp_path}/again.sqlite") as again:
            rebuild(again, keeping.folder)
            assert what_it_knows(again) == what_it_knows(keeping.engine)


def test_two_ae_titles_at_the_same_moment_are_both_told_by_the_files(tmp_path: Path) -> None:
    """One object, sent to both at once, however the two come across each other."""
    with a_store(tmp_path / "store") as keeping:
        for ds in a_ct_series(12):
            both = [an_arrival(ds, called_ae_title=title) for title in ("LUNG", "LIVER")]
            threads = [threading.Thread(target=keeping.store.keep, args=(one,)) for one in both]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        had = sorted(what_it_knows(keeping.engine))
        assert len(had) == 24

        with an_empty_index(f"sqlite:///{tmp_path}/again.sqlite") as again:
            rebuild(again, keeping.folder)
            assert sorted(what_it_knows(again)) == had


def test_rows_without_files_are_named_and_forgotten(tmp_path: Path) -> None:
    """Somebody removed a file: check says which series to send again."""
    frames = a_ct_series(2)
    with a_store(tmp_path / "store") as keeping:
        keep(keeping, frames)
        victim = keeping.index.load_series(frames[0].SeriesInstanceUID, "LUNG").instances[0]
        victim.path.unlink()
        (alone,) = a_ct_series(1)
        keeping.store.keep(an_arrival(alone)).path.unlink()
        found = check(keeping.engine, keeping.folder)
        assert [(uid, series_uid) for _, uid, series_uid in found.without_file] == [
            (victim.sop_instance_uid, victim.series_instance_uid),
            (alone.SOPInstanceUID, alone.SeriesInstanceUID),
        ]

        assert rebuild(keeping.engine, keeping.folder).forgotten == 2
        with transaction(keeping.engine) as connection:
            waiting = connection.execute(sa.select(series.c.series_instance_uid)).scalars().all()
        assert waiting == [victim.series_instance_uid], "a series without instances is forgotten"
        make_old(keeping.folder)
        assert check(keeping.engine, keeping.folder).agrees


def test_a_folder_that_is_not_mounted_costs_nothing(tmp_path: Path) -> None:
    """An index with instances and a folder without any: refused, nothing is forgotten."""
    with a_store(tmp_path / "store") as keeping:
        keep(keeping, a_ct_series(1))
        (keeping.folder / "instances").rename(tmp_path / "elsewhere")

        with pytest.raises(ConfigurationError, match="mounted"):
            rebuild(keeping.engine, keeping.folder)

        assert len(keeping.index.open_series()) == 1


def test_strangers_in_the_folder_are_named(tmp_path: Path, fresh: sa.Engine) -> None:
    """A DICOM file that somebody copied in has no head of ours, and is not taken for kept."""
    with a_store(tmp_path / "store") as keeping:
        keep(keeping, a_ct_series(1))
        (stranger,) = write_series(keeping.folder / "instances" / "ab", a_ct_series(1))
        found: Checked = check(keeping.engine, keeping.folder)

        assert [path for path, _ in found.damaged] == [stranger.relative_to(keeping.folder)]
        assert rebuild(fresh, keeping.folder).files == 1


def test_what_is_just_coming_is_no_fault(tmp_path: Path) -> None:
    """A file whose row is not written yet is left out of the audit."""
    with a_store(tmp_path / "store") as keeping, a_store(tmp_path / "other") as other:
        keep(keeping, a_ct_series(1))
        InstanceStore(keeping.folder, other.engine, 0).keep(an_arrival(a_ct_series(1)[0]))
        (keeping.folder / "incoming" / f"{generate_uid()}.part").write_bytes(b"half")

        assert check(keeping.engine, keeping.folder).agrees
        make_old(keeping.folder)
        found = check(keeping.engine, keeping.folder)
        assert (len(found.without_row), len(found.half_written)) == (1, 1)
