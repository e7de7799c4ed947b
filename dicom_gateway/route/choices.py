"""The largest, the thinnest, one series for each role: choices within a complete study.

In: the routings of all series of one study for one called AE title. Out: a `Choice` for each
rule and pipeline that chooses: the series that it takes, or what is missing. Pure; the order
of the series makes no difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dicom_gateway.config_routing import Choice
from dicom_gateway.route.facts import SeriesFacts
from dicom_gateway.route.rules import Report, Route, Routing


@dataclass(frozen=True, slots=True)
class Candidate:
    """One series of the study and what the rules say of it alone."""

    facts: SeriesFacts
    routing: Routing


@dataclass(frozen=True, slots=True)
class Chosen:
    """What one rule takes from a study for one pipeline.

    Attributes:
        series: The one series, or the first role's.
        roles: Role -> series; empty for a rule without roles.
        missing_roles: Roles without a series; then no job can run.
        route_roles: All roles of the rule.
        why: In words.
        passed_over: Series Instance UID -> why another one was taken.
    """

    rule: str
    route: Route
    series: SeriesFacts
    why: str
    roles: Mapping[str, SeriesFacts] = field(default_factory=dict)
    missing_roles: tuple[str, ...] = ()
    passed_over: Mapping[str, str] = field(default_factory=dict)
    route_roles: tuple[str, ...] = ()


def choose(candidates: Sequence[Candidate]) -> list[Chosen]:
    """What the rules take that choose among the series of a study.

    Args:
        candidates: All series of one study that were sent to one called AE title; each by
            itself complete, all contracts known.
    """
    ordered = sorted(candidates, key=lambda one: one.facts.series_instance_uid)
    wanted: dict[tuple[str, str], list[tuple[SeriesFacts, Report, Route]]] = {}
    for one in ordered:
        for report in one.routing.for_the_study:
            for route in report.routes:
                key = (report.name, route.pipeline)
                wanted.setdefault(key, []).append((one.facts, report, route))
    return [_of_rule(takers) for takers in wanted.values()]


def _of_rule(takers: list[tuple[SeriesFacts, Report, Route]]) -> Chosen:
    rule = takers[0][1].rule
    if rule.roles:
        return _of_roles(takers)
    best, why, passed_over = _best([facts for facts, _, _ in takers], rule.choose)
    route = next(route for facts, _, route in takers if facts is best)
    return Chosen(route.rule, route, best, f"rule {route.rule}: {why}", passed_over=passed_over)


def _of_roles(takers: list[tuple[SeriesFacts, Report, Route]]) -> Chosen:
    rule = takers[0][1].rule
    ranked = {
        role: sorted(
            (facts for facts, report, _ in takers if role in report.roles_taken),
            key=_RANKS[wants.choose],
        )
        for role, wants in rule.roles.items()
    }
    filled = _fill(ranked)
    passed_over: dict[str, str] = {}
    for role, best in filled.items():
        rank = _RANKS[rule.roles[role].choose]
        # One that would be better still fills another role.
        rest = [facts for facts in ranked[role] if rank(facts) >= rank(best)]
        _, _, others = _best(rest, rule.roles[role].choose)
        passed_over |= {uid: f"for role {role}, {why}" for uid, why in others.items()}
    missing = tuple(role for role in rule.roles if role not in filled)
    first = next(iter(filled.values()))
    route = next(route for facts, _, route in takers if facts is first)
    taken = {facts.series_instance_uid for facts in filled.values()}
    roles = ", ".join(f"{role} is {facts.series_instance_uid}" for role, facts in filled.items())
    return Chosen(
        rule=route.rule,
        route=route,
        series=first,
        why=f"rule {route.rule}: {roles}",
        roles=filled,
        missing_roles=missing,
        route_roles=tuple(rule.roles),
        passed_over={uid: why for uid, why in passed_over.items() if uid not in taken},
    )


def _fill(ranked: Mapping[str, Sequence[SeriesFacts]]) -> dict[str, SeriesFacts]:
    """A series for as many roles as can be; among such, the best for each role in turn.

    Args:
        ranked: Role -> the series that it may take, the best first.
    """
    wanted = {role: [one.series_instance_uid for one in takes] for role, takes in ranked.items()}
    left = _most(wanted)
    filled: dict[str, SeriesFacts] = {}
    for role, takes in ranked.items():
        del wanted[role]
        for facts in takes:
            uid = facts.series_instance_uid
            without = {other: [one for one in uids if one != uid] for other, uids in wanted.items()}
            if _most(without) == left - 1:  # it doesn't take another role's only one
                filled[role], wanted, left = facts, without, left - 1
                break
    return filled


def _most(wanted: Mapping[str, Sequence[str]]) -> int:
    """How many roles can be filled at once: bipartite matching by augmenting paths."""
    held: dict[str, str] = {}

    def finds_one(role: str, tried: set[str]) -> bool:
        for uid in wanted[role]:
            if uid not in tried:
                tried.add(uid)
                if uid not in held or finds_one(held[uid], tried):
                    held[uid] = role
                    return True
        return False

    return sum(finds_one(role, set()) for role in wanted)


def _best(series: Sequence[SeriesFacts], choice: Choice) -> tuple[SeriesFacts, str, dict[str, str]]:
    """The one to take, why, and why not the others."""
    rank, superlative, comparative = _RANKS[choice], "the largest", "larger"
    if choice is Choice.THINNEST:
        superlative, comparative = "the thinnest", "thinner"
    best, *others = sorted(series, key=rank)
    why = f"{superlative} of {len(series)} series ({_size(best)})"
    if not others:
        why = f"the only series of the study that it takes ({_size(best)})"
    passed_over = {
        one.series_instance_uid: (
            f"series {best.series_instance_uid} is {comparative} "
            f"({_size(best)}, this one {_size(one)})"
            if rank(best)[:2] != rank(one)[:2]
            else f"series {best.series_instance_uid} is as good ({_size(best)}) and comes first"
        )
        for one in others
    }
    return best, why, passed_over


def _large_first(facts: SeriesFacts) -> tuple[float, float, str]:
    return (-facts.slices, _thickness(facts), facts.series_instance_uid)


def _thin_first(facts: SeriesFacts) -> tuple[float, float, str]:
    return (_thickness(facts), -facts.slices, facts.series_instance_uid)


def _thickness(facts: SeriesFacts) -> float:
    return math.inf if facts.slice_thickness_mm is None else facts.slice_thickness_mm


def _size(facts: SeriesFacts) -> str:
    thickness = facts.slice_thickness_mm
    thick = "thickness unknown" if thickness is None else f"{thickness:g} mm"
    return f"{facts.slices} slices, {thick}"


_RANKS: Mapping[Choice, Callable[[SeriesFacts], tuple[float, float, str]]] = {
    Choice.LARGEST: _large_first,
    Choice.THINNEST: _thin_first,
}
