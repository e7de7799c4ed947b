"""`tritome route`: which rule takes a series, which doesn't, and why; without a gateway.

In: gateway.yaml and a folder of DICOM files. Out: a table for each series, by the very code
that the gateway goes by. Nothing is sent and nothing is kept. Values that may say who a
patient is are masked, unless they are asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path

import pydicom
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from clients.console import out, warn
from clients.errors import ClientError
from clients.found import find_instances
from dicom_gateway.assemble.headers import read_header
from dicom_gateway.assessor import glance_at
from dicom_gateway.config import GatewaySettings, load_settings
from dicom_gateway.errors import ContractMismatch
from dicom_gateway.infer.contract import SeenContracts, read_contract
from dicom_gateway.records import Contract, Instance, Series
from dicom_gateway.route import Candidate, Report, Route, Router, choose, gather_facts
from dicom_gateway.route.conditions import Finding

_YES, _NO = Text("yes", "green"), Text("no", "red")


def explain(
    folder: Path,
    config: Path,
    *,
    called: str | None = None,
    calling: str = "TRITOME_SEND",
    show_values: bool = False,
) -> None:
    """Prints what the rules make of each series under `folder`, and of its studies.

    Raises:
        ClientError: there is no folder, no DICOM file in it, or no such AE title.
        ConfigurationError: gateway.yaml is wrong.
    """
    settings = load_settings(config)
    title = _called(settings, called)
    series = _series_under(folder, title, calling)
    router = Router(settings)
    contracts, unreadable = _contracts(settings, router.pipelines_of(title))
    glance = partial(glance_at, lru_cache(maxsize=None)(read_header))
    out.print(f"As if sent by {calling} to {title}:", highlight=False)
    studies: dict[str, list[Candidate]] = {}
    for one in series:
        facts = gather_facts(one, glance)
        candidate = Candidate(facts, router.route(facts, contracts, unreadable))
        studies.setdefault(one.study_instance_uid, []).append(candidate)
        _print_series(candidate, show_values=show_values)
        urgent = router.priority_rule(facts)
        if urgent is not None:
            out.print(f"Its priority is {urgent.priority.value}, by routing.priorities.")
    for study, candidates in studies.items():
        _print_choices(study, candidates)


def print_schema() -> None:
    """Prints the JSON Schema of gateway.yaml, for editors."""
    schema = GatewaySettings.model_json_schema(by_alias=True)
    out.print(json.dumps(schema, indent=2), markup=False, soft_wrap=True)


def _called(settings: GatewaySettings, called: str | None) -> str:
    titles = [title.ae_title for title in settings.dicom.scp.ae_titles]
    if called is None and len(titles) == 1:
        return titles[0]
    if called not in titles:
        said = f"'{called}' is not among" if called else "say with --called which one of"
        msg = f"{said} the AE titles of gateway.yaml: {', '.join(titles)}"
        raise ClientError(msg)
    return called


def _series_under(folder: Path, called: str, calling: str) -> list[Series]:
    if not folder.exists():
        msg = f"{folder} doesn't exist"
        raise ClientError(msg)
    tags = ["SeriesInstanceUID", "StudyInstanceUID", "Modality", "SOPClassUID", "SOPInstanceUID"]
    grouped: dict[str, list[Instance]] = {}
    for found in find_instances([folder]).instances:
        ds = pydicom.dcmread(found.path, stop_before_pixels=True, specific_tags=list(tags))
        instance = Instance(
            sop_instance_uid=str(ds.get("SOPInstanceUID", found.sop_instance_uid)),
            sop_class_uid=str(ds.get("SOPClassUID", found.sop_class_uid)),
            transfer_syntax_uid=found.transfer_syntax_uid,
            series_instance_uid=str(ds.get("SeriesInstanceUID", "")),
            study_instance_uid=str(ds.get("StudyInstanceUID", "")),
            modality=str(ds.get("Modality", "") or ""),
            path=found.path,
            sha256="",
            size_bytes=found.size_bytes,
        )
        grouped.setdefault(instance.series_instance_uid, []).append(instance)
    if not grouped:
        msg = f"no DICOM files under {folder}"
        raise ClientError(msg)
    return [
        Series(uid, ones[0].study_instance_uid, ones[0].modality, called, calling, tuple(ones))
        for uid, ones in sorted(grouped.items())
    ]


def _contracts(
    settings: GatewaySettings, pipelines: tuple[str, ...]
) -> tuple[Mapping[str, Contract], set[str]]:
    """What the gateway has seen of each pipeline; Triton isn't asked."""
    seen = SeenContracts(settings.store.folder / "contracts")
    contracts, unreadable = {}, set()
    for name in pipelines:
        text = seen.text(name)
        if text is None:
            continue
        try:
            contracts[name] = read_contract(text, name)
        except ContractMismatch as error:
            warn(str(error))
            unreadable.add(name)
    return contracts, unreadable


def _print_series(candidate: Candidate, *, show_values: bool) -> None:
    facts, routing = candidate.facts, candidate.routing
    plane = facts.plane.value if facts.plane else "plane unknown"
    thick = facts.slice_thickness_mm
    thickness = "thickness unknown" if thick is None else f"{thick:g} mm"
    out.print()
    out.print(Text(f"Series {facts.series_instance_uid}", "bold"), soft_wrap=True)
    kernel = f", kernel {facts.kernel}" if facts.kernel else ""
    out.print(
        escape(
            f"{facts.series.modality or 'no modality'}, {len(facts.series.instances)} instances, "
            f"{facts.slices} slices, {plane}, {thickness}{kernel}"
        )
    )
    if routing.reports:
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
        for column in ("Rule", "Condition", "Found", "Holds"):
            table.add_column(column, overflow="fold")
        for report in routing.reports:
            _add_rule(table, report, show_values=show_values)
        out.print(table)
    for route in routing.routes:
        out.print(Text(f"-> {_says(route)}", "green"))
    for report in routing.for_the_study:
        out.print(Text(f"-> rule {report.name} may choose it, see the study below", "cyan"))
    if routing.reason:
        style = "" if routing.routes or routing.for_the_study else "yellow"
        out.print(Text(routing.reason, style), soft_wrap=True)


def _add_rule(table: Table, report: Report, *, show_values: bool) -> None:
    name = report.name
    for finding in report.findings:
        _add_finding(table, name, finding, show_values=show_values)
        name = ""
    for role, findings in report.roles.items():
        for finding in findings:
            _add_finding(table, f"{name} role {role}".strip(), finding, show_values=show_values)
            name = ""
    if not report.findings and not report.roles:
        table.add_row(Text(name), "takes every series", "", _YES)
        name = ""
    if not report.holds:
        table.add_row("", Text("does not take it", "bold"), "", _NO)
        return
    for route in report.routes:
        table.add_row(Text(name), Text(f"{route.pipeline} wants it", "bold"), "", _YES)
    for refusal in report.refusals:
        table.add_row(Text(name), Text(refusal, "bold"), "", _NO)
    for pipeline, rule in report.taken_by.items():
        table.add_row("", f"{pipeline} has it by rule {rule} already", "", "")
    for pipeline in report.unknown_pipelines:
        what = f"what {pipeline} wants isn't known here: the gateway hasn't asked Triton yet"
        table.add_row("", what, "", Text("?", "yellow"))


def _add_finding(table: Table, name: str, finding: Finding, *, show_values: bool) -> None:
    condition, found = finding.shown(values=show_values)
    table.add_row(Text(name), Text(condition), Text(found), _YES if finding.holds else _NO)


def _print_choices(study: str, candidates: list[Candidate]) -> None:
    chosen = choose(candidates)
    if not chosen:
        return
    out.print()
    out.print(Text(f"Study {study}, once it is complete", "bold"), soft_wrap=True)
    for one in chosen:
        if one.missing_roles:
            lacks = f"rule {one.rule} lacks a series for {' and '.join(one.missing_roles)}"
            out.print(Text(f"-> {lacks}: its job will fail, before a person", "red"))
            continue
        out.print(Text(f"-> {_says(one.route)}: {one.why}", "green"), soft_wrap=True)
        if not one.roles:
            out.print(Text(f"   it takes series {one.series.series_instance_uid}"), soft_wrap=True)
        for uid, why in one.passed_over.items():
            out.print(Text(f"   not {uid}: {why}"), soft_wrap=True)


def _says(route: Route) -> str:
    to = ", ".join(route.destinations) or "no destination"
    return f"{route.pipeline} (rule {route.rule}), priority {route.priority.value}, to {to}"
