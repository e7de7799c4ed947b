"""One table out of everything that was measured, for people (Markdown) and programs (JSON).

Comes in: measurements. Goes out: `bench.md` and `bench.json` in a folder.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from perf.measure import Measurement


@dataclass(frozen=True)
class Report:
    """What a run of the bench found.

    Attributes:
        setting: Words on what was measured, on what, and when.
    """

    setting: Mapping[str, str]
    measurements: Sequence[Measurement]

    def markdown(self) -> str:
        """The table, with the setting below it."""
        lines = [
            "| what | n | median ms | p25 ms | p90 ms | moved MB |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        lines += [_row(measurement) for measurement in self.measurements]
        lines.append("")
        lines += [f"- {name}: {words}" for name, words in self.setting.items()]
        return "\n".join(lines) + "\n"

    def json(self) -> str:
        """The same for programs, in seconds."""
        document = {
            "setting": dict(self.setting),
            "measurements": [dataclasses.asdict(one) for one in self.measurements],
        }
        return json.dumps(document, indent=2) + "\n"

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Writes `bench.md` and `bench.json`; returns their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        table, document = folder / "bench.md", folder / "bench.json"
        table.write_text(self.markdown(), encoding="utf-8")
        document.write_text(self.json(), encoding="utf-8")
        return table, document


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
    return f"{duration_s * 1000:,.0f}"
