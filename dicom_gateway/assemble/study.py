"""Is a study complete? Asked only where a rule chooses among its series.

In: which of its series are complete, what was stated about the study, how its associations
ended, and how long it has been quiet. Out: a `Verdict`, as for a series. Pure.

The clock counts more here than for a series: many scanners send each series by an association
of its own, and nothing but the next one says that there was another.
"""

from __future__ import annotations

from dataclasses import dataclass

from dicom_gateway.assemble.completeness import Verdict
from dicom_gateway.assemble.counts import Expected
from dicom_gateway.config import CompletenessSettings


@dataclass(frozen=True, slots=True)
class StudyEvidence:
    """All that `judge_study` goes by.

    Attributes:
        series: How many series have come.
        incomplete: How many of them are not complete yet.
        instances: Of all its series.
        since_last_arrival_s: Since the last instance of any of them.
        association_open: True while any association that brought one of them is open.
        since_association_ended_s: Since the last of those ended; None when that isn't known.
        broken_off: One of them was aborted or lost.
        together: One association has brought all its series, and there are several: this
            sender sends whole studies.
        stated_series: How many series there are where it comes from: (count, source).
        stated_instances: How many instances, so.
        by_hand: A person has declared it complete.
    """

    series: int
    incomplete: int
    instances: int
    since_last_arrival_s: float
    association_open: bool
    since_association_ended_s: float | None = None
    broken_off: bool = False
    together: bool = False
    stated_series: tuple[tuple[int, str], ...] = ()
    stated_instances: tuple[tuple[int, str], ...] = ()
    by_hand: bool = False


def judge_study(evidence: StudyEvidence, settings: CompletenessSettings) -> Verdict:
    """Complete, or when to ask again."""
    quiet_s = evidence.since_last_arrival_s
    came = f"the study has {evidence.series} series, the last instance came {quiet_s:.1f} s ago"
    if evidence.incomplete:
        reason = f"{evidence.incomplete} series of the study not complete yet"
        return Verdict(False, (reason,), None, came)
    if evidence.by_hand:
        return Verdict(True, ("a person has declared the study complete",), None, came)
    stated = [
        Expected(count, have, f"{source} (of {what} in the study)", is_firm=True)
        for what, have, several in (
            ("series", evidence.series, evidence.stated_series),
            ("instances", evidence.instances, evidence.stated_instances),
        )
        for count, source in several
        if count >= have  # else it was counted before the last of them came
    ]
    if stated and all(one.is_met for one in stated):
        return Verdict(True, tuple(map(str, stated)), None, came)
    missing = tuple(str(one) for one in stated if not one.is_met)
    patience_s = max(settings.study_quiet_s, settings.give_up_s) if missing else 0.0
    if missing and quiet_s >= patience_s:
        return Verdict(True, (f"gave up waiting: {'; '.join(missing)}",), None, came)
    if missing:
        return Verdict(False, missing, patience_s - quiet_s, came)
    needed_s, why = settings.study_quiet_s, "nothing says how many series the study has"
    ended = not evidence.association_open and not evidence.broken_off
    if evidence.together and ended:
        needed_s, why = settings.after_release_s, "one association brought the whole study"
        if evidence.since_association_ended_s is not None:
            quiet_s = min(quiet_s, evidence.since_association_ended_s)
    if quiet_s >= needed_s:
        return Verdict(True, (f"the study is quiet; {why}",), None, came)
    return Verdict(False, (f"the study may grow: {why}",), needed_s - quiet_s, came)
