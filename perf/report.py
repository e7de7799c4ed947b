"""One report out of everything that was measured, for people and for programs.

Comes in: measurements, and what they should show. Goes out: `bench.md` (tables), one SVG for
each group of measurements and for what else was drawn, and `bench.json` in a folder.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from perf.against import Change
from perf.chart import bars
from perf.measure import Measurement


@dataclass(frozen=True, slots=True)
class Shown:
    """One thing that a run should show, and what it showed.

    Attributes:
        what: In words, with its unit.
        found: The figure.
        wanted: What it should be; at least this, or at most with `at_most`.
        n: From how many repetitions of each side.
    """

    what: str
    found: float
    wanted: float
    at_most: bool = False
    n: int | None = None

    @property
    def holds(self) -> bool:
        """Whether the figure is what it should be."""
        return self.found <= self.wanted if self.at_most else self.found >= self.wanted


@dataclass(frozen=True)
class Report:
    """What a run of the bench found.

    Attributes:
        setting: Words on what was measured, on what, and when.
        measurements: Those whose names begin alike, up to a colon, stand in one picture.
        shown: What the run should show.
        changes: Against an earlier report.
        failed: Parts that gave nothing, and why.
        drawn: Further pictures, SVG by name.
    """

    setting: Mapping[str, str]
    measurements: Sequence[Measurement]
    shown: Sequence[Shown] = ()
    changes: Sequence[Change] = ()
    failed: Sequence[str] = ()
    drawn: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def markdown(self) -> str:
        """The tables, with the setting below them."""
        lines = [
            "| what | n | median ms | p25 ms | p90 ms | moved MB |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        lines += [_row(measurement) for measurement in self.measurements]
        if self.shown:
            lines += ["", "| it shows | n | found | wanted | |", "|---|---:|---:|---:|---|"]
            lines += [
                f"| {one.what} | {one.n or ''} | {one.found:.2f} | {'<=' if one.at_most else '>='} "
                f"{one.wanted:g} | {'yes' if one.holds else 'no'} |"
                for one in self.shown
            ]
        if self.changes:
            lines += ["", "| against the earlier report | ratio | |", "|---|---:|---|"]
            lines += [f"| {one.name} | {one.ratio:.2f} | {one.verdict} |" for one in self.changes]
        if self.failed:
            lines += ["", *(f"- **failed**: {one}" for one in self.failed)]
        pictures = [f"![{name}]({file})" for name, file, _ in self._pictures()]
        pictures += [f"![{name}]({_file_name(name)}.svg)" for name in self.drawn]
        if pictures:
            lines += ["", *pictures]
        lines.append("")
        lines += [f"- {name}: {words}" for name, words in self.setting.items()]
        return "\n".join(lines) + "\n"

    def json(self) -> str:
        """The same for programs, in seconds."""
        document = {
            "setting": dict(self.setting),
            "measurements": [dataclasses.asdict(one) for one in self.measurements],
            "shown": [dataclasses.asdict(one) | {"holds": one.holds} for one in self.shown],
            "changes": [dataclasses.asdict(one) for one in self.changes],
            "failed": list(self.failed),
        }
        return json.dumps(document, indent=2) + "\n"

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Writes `bench.md`, the pictures and `bench.json`; returns the first and the last."""
        folder.mkdir(parents=True, exist_ok=True)
        table, document = folder / "bench.md", folder / "bench.json"
        table.write_text(self.markdown(), encoding="utf-8")
        document.write_text(self.json(), encoding="utf-8")
        for title, file, group in self._pictures():
            (folder / file).write_text(bars(title, group), encoding="utf-8")
        for name, picture in self.drawn.items():
            (folder / f"{_file_name(name)}.svg").write_text(picture, encoding="utf-8")
        return table, document

    def _pictures(self) -> list[tuple[str, str, list[Measurement]]]:
        """Title, file name and measurements of each group of two or more."""
        groups: dict[str, list[Measurement]] = {}
        for one in self.measurements:
            title, colon, _ = one.name.partition(": ")
            if colon:
                groups.setdefault(title, []).append(one)
        return [
            (title, f"{_file_name(title)}.svg", group)
            for title, group in groups.items()
            if len(group) > 1
        ]


def _file_name(title: str) -> str:
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in title.lower()).split()
    return "-".join(words)


def _row(one: Measurement) -> str:
    moved = "" if one.moved_bytes is None else f"{one.moved_bytes / 1e6:.1f}"
    cells = (
        one.name,
        str(one.repetitions),
        _milliseconds(one.median_s),
        _milliseconds(one.p25_s),
        _milliseconds(one.p90_s),
        moved,
    )
    return f"| {' | '.join(cells)} |"


def _milliseconds(duration_s: float) -> str:
    digits = 0 if duration_s >= 0.01 else 2
    return f"{duration_s * 1000:,.{digits}f}"
