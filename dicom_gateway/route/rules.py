"""Room 3, route: which pipelines a series goes through, with what priority, and whereto.

In: the facts of a series, the rules of gateway.yaml, the contracts known by now. Out: a
`Routing`, with a reason in words where a pipeline doesn't take it, and each rule's own
`Report`. Nothing is kept: the same question gives the same answer, and what `tritome route
explain` prints is what the gateway goes by.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from dicom_gateway.config import AcceptedTitle, GatewaySettings
from dicom_gateway.config_routing import Choice, PriorityRule, Rule, names_title
from dicom_gateway.records import Contract, Priority, Series
from dicom_gateway.route.conditions import Finding, examine, examine_all
from dicom_gateway.route.facts import ALIKE, KINDS, SeriesFacts

UNREADABLE = "unreadable"
"""Stands for the version of a pipeline whose contract can't be read."""


@dataclass(frozen=True, slots=True)
class Route:
    """One pipeline that takes the series, and the rule that says so."""

    pipeline: str
    pipeline_version: str
    priority: Priority
    destinations: tuple[str, ...]
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What became of one rule for one series.

    Attributes:
        name: The rule's, or "ae-titles LUNG" for the short form.
        findings: Its conditions.
        roles: For each role of a pipeline with several inputs, its conditions.
        routes: Pipelines that take the series by this rule.
        refusals: Why a pipeline that the rule names doesn't.
        unknown_pipelines: Pipelines whose contract has never been seen.
        taken_by: Pipelines that an earlier rule takes it to already, and that rule.
    """

    rule: Rule
    name: str
    findings: tuple[Finding, ...]
    roles: Mapping[str, tuple[Finding, ...]] = field(default_factory=dict)
    routes: tuple[Route, ...] = ()
    refusals: tuple[str, ...] = ()
    unknown_pipelines: tuple[str, ...] = ()
    taken_by: Mapping[str, str] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """All its conditions hold; with roles, also those of at least one role."""
        return all(one.holds for one in self.findings) and (
            not self.roles or bool(self.roles_taken)
        )

    @property
    def roles_taken(self) -> tuple[str, ...]:
        """The roles whose conditions hold."""
        return tuple(role for role, asked in self.roles.items() if all(one.holds for one in asked))

    @property
    def is_for_the_study(self) -> bool:
        """It chooses among the series of a study, so it needs the whole study."""
        return bool(self.rule.roles) or self.rule.choose is not Choice.EVERY

    @property
    def why_not(self) -> str:
        """The first condition that does not hold; "" where all do."""
        failed = next((one for one in self.findings if not one.holds), None)
        if failed is not None:
            return f"rule {self.name} asks that {failed.condition}"
        if not self.holds:
            return f"rule {self.name} has no role for it"
        return ""


@dataclass(frozen=True, slots=True)
class Routing:
    """Where a series goes.

    Attributes:
        routes: A job for each of these.
        unknown_pipelines: Pipelines whose contract has never been seen, Triton being away.
            While there are any, keep the series open and ask again; enqueuing `routes`
            twice does no harm.
        reason: Why the pipelines that don't take it don't; "" where all do.
        for_the_study: Rules that choose among the series of its study, and may choose it.
        reports: What became of each rule.
    """

    routes: tuple[Route, ...]
    unknown_pipelines: tuple[str, ...]
    reason: str
    for_the_study: tuple[Report, ...] = ()
    reports: tuple[Report, ...] = ()

    @property
    def is_final(self) -> bool:
        """False while a pipeline must still be asked what it wants."""
        return not self.unknown_pipelines


class Router:
    """The rules of one gateway.yaml.

    Args:
        settings: Its `dicom.scp.ae-titles` and `routing`.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self._titles = {title.ae_title: title for title in settings.dicom.scp.ae_titles}
        self._rules = settings.routing.rules
        self._priorities = settings.routing.priorities

    def pipelines_of(self, called_ae_title: str) -> tuple[str, ...]:
        """All pipelines that a series for this AE title may go through, in order, once each."""
        names = [name for rule, _ in self._rules_of(called_ae_title) for name in rule.pipelines]
        return tuple(dict.fromkeys(names))

    def roles_of(self, rule_name: str) -> tuple[str, ...]:
        """The roles of a rule; none where it has none, or isn't there any more."""
        return tuple(next((r.roles for r in self._rules if r.name == rule_name), {}))

    def choosing_rules(self, called_ae_title: str) -> tuple[str, ...]:
        """The rules for this AE title that choose among the series of a study."""
        return tuple(
            name
            for rule, name in self._rules_of(called_ae_title)
            if rule.roles or rule.choose is not Choice.EVERY
        )

    def fallback(self, called_ae_title: str, pipeline: str) -> Route:
        """Priority and destinations of a pipeline for a series that couldn't be looked at."""
        for rule, name in self._rules_of(called_ae_title):
            if pipeline in rule.pipelines:
                return self._route(rule, name, pipeline, UNREADABLE, called_ae_title)
        return Route(pipeline, UNREADABLE, Priority.NORMAL, ())

    def route(
        self,
        facts: SeriesFacts,
        contracts: Mapping[str, Contract],
        unreadable: Collection[str] = (),
    ) -> Routing:
        """Finds the pipelines that want this series, and the rules that may choose it.

        Args:
            facts: Of the series, complete or not.
            contracts: By pipeline; also those of earlier, when Triton is away just now.
            unreadable: Pipelines that are served but whose contract can't be read. They take
                every series: the job then fails with the reason, in front of a person.
        """
        series = facts.series
        title = self._titles.get(series.called_ae_title)
        if title is None:
            return _ignored(
                f"AE title {series.called_ae_title} is no longer in dicom.scp.ae-titles"
            )
        if not series.instances:
            return _ignored(
                "every instance of it came under the SOP Instance UID of another object; "
                "ask the sender which of them is right"
            )
        if unwanted := _never_wanted(facts):
            return _ignored(f"no pipeline of AE title {title.ae_title} wants {unwanted}")
        reports = self._reports(facts, contracts, unreadable)
        direct = [one for one in reports if one.holds and not one.is_for_the_study]
        for_the_study = tuple(
            one
            for one in reports
            if one.holds and one.is_for_the_study and (one.routes or one.unknown_pipelines)
        )
        routes = tuple(route for one in direct for route in one.routes)
        unknown = tuple(dict.fromkeys(name for one in direct for name in one.unknown_pipelines))
        reason = _reason(title, series, reports, has_taker=bool(routes or for_the_study))
        if unknown:
            wait = f"Triton has not yet said what {', '.join(unknown)} wants"
            reason = f"{reason}; {wait}" if reason else wait
        return Routing(routes, unknown, reason, for_the_study, tuple(reports))

    def _reports(
        self,
        facts: SeriesFacts,
        contracts: Mapping[str, Contract],
        unreadable: Collection[str],
    ) -> list[Report]:
        reports: list[Report] = []
        taken: dict[str, str] = {}
        for rule, name in self._rules_of(facts.series.called_ae_title):
            findings = tuple(examine(rule, facts))
            roles = {role: tuple(examine_all(one.where, facts)) for role, one in rule.roles.items()}
            report = Report(rule, name, findings, roles)
            if report.holds:
                report = self._with_pipelines(report, facts, contracts, unreadable, taken)
                if not report.is_for_the_study:
                    taken |= {one.pipeline: name for one in report.routes}
            reports.append(report)
        return reports

    def _with_pipelines(
        self,
        report: Report,
        facts: SeriesFacts,
        contracts: Mapping[str, Contract],
        unreadable: Collection[str],
        taken: Mapping[str, str],
    ) -> Report:
        routes, refusals, unknown = [], [], []
        rule, called = report.rule, facts.series.called_ae_title
        # What a rule chooses within a study is a job of its own, wherever the rule stands.
        twice = {name: taken[name] for name in rule.pipelines if name in taken}
        if report.is_for_the_study:
            twice = {}
        for pipeline in rule.pipelines:
            contract = contracts.get(pipeline)
            if pipeline in twice:
                continue
            if pipeline in unreadable:
                routes.append(
                    self._route(rule, report.name, pipeline, UNREADABLE, called, facts=facts)
                )
            elif contract is None:
                unknown.append(pipeline)
            elif refusal := "" if rule.roles else _refusal(facts, contract):
                refusals.append(refusal)
            else:
                routes.append(
                    self._route(rule, report.name, pipeline, contract.version, called, facts=facts)
                )
        return Report(
            rule=rule,
            name=report.name,
            findings=report.findings,
            roles=report.roles,
            routes=tuple(routes),
            refusals=tuple(refusals),
            unknown_pipelines=tuple(unknown),
            taken_by=twice,
        )

    def _route(
        self,
        rule: Rule,
        name: str,
        pipeline: str,
        version: str,
        called_ae_title: str,
        *,
        facts: SeriesFacts | None = None,
    ) -> Route:
        title = self._titles.get(called_ae_title)
        priority = rule.priority or (title.priority if title else Priority.NORMAL)
        destinations = rule.destinations
        if destinations is None:
            destinations = title.destinations if title else ()
        urgent = self.priority_rule(facts) if facts is not None else None
        if urgent is not None:
            priority = urgent.priority
        return Route(pipeline, version, priority, destinations, name)

    def priority_rule(self, facts: SeriesFacts) -> PriorityRule | None:
        """The first of routing.priorities that matches."""
        for rule in self._priorities:
            if all(one.holds for one in examine(rule, facts)):
                return rule
        return None

    def _rules_of(self, called_ae_title: str) -> list[tuple[Rule, str]]:
        """The rules that are for this AE title, the short form last, with their names."""
        rules = [
            (rule, rule.name) for rule in self._rules if names_title(rule.called, called_ae_title)
        ]
        title = self._titles.get(called_ae_title)
        if title is not None and title.pipelines:
            short = Rule(name="ae-titles", pipelines=title.pipelines)
            rules.append((short, f"ae-titles {called_ae_title}"))
        return rules


def _reason(
    title: AcceptedTitle, series: Series, reports: Sequence[Report], *, has_taker: bool
) -> str:
    refusals = [refusal for one in reports for refusal in one.refusals]
    undecided = any(one.unknown_pipelines for one in reports)
    reasons = list(dict.fromkeys(refusals))
    if not has_taker and not undecided:
        reasons += [one.why_not for one in reports if one.why_not]
        what = f"modality {series.modality}" if series.modality else "a series without a modality"
        if not refusals:
            what = "this series"
        reasons.insert(0, f"no pipeline of AE title {title.ae_title} wants {what}")
    return "; ".join(reasons)


def _ignored(reason: str) -> Routing:
    return Routing(routes=(), unknown_pipelines=(), reason=reason)


def _never_wanted(facts: SeriesFacts) -> str:
    """Why no pipeline at all can take the series; "" where one might."""
    if facts.classes.isdisjoint(KINDS["volume"] | KINDS["image"]):
        names = ", ".join(sorted(one.name for one in facts.classes))
        modality = facts.series.modality or "unknown"
        return f"objects without cross-sections ({names}, modality {modality})"
    if facts.localizers_only:
        return "a series of localizers only (Image Type (0008,0008))"
    return ""


def _refusal(facts: SeriesFacts, contract: Contract) -> str:
    """What this pipeline wants instead; "" where it takes the series."""
    modality = facts.series.modality
    if contract.modality and modality not in ALIKE.get(contract.modality, (contract.modality,)):
        return f"{contract.pipeline} wants {contract.modality}"
    kinds = KINDS.get(contract.input_kind)
    if kinds is None:
        images = [name for one in contract.inputs for name in (one.channels or (one.name,))]
        return (
            f"{contract.pipeline} takes several images of a study ({', '.join(images)}); write a "
            "rule with a role for each of them"
        )
    if facts.classes.isdisjoint(kinds):
        names = ", ".join(sorted(one.name for one in facts.classes))
        return f"{contract.pipeline} wants an input of the kind {contract.input_kind}, not {names}"
    return ""
