"""`python -m perf.peers BUNDLE VOLUME.npz`: seconds of everyone, ratios, and equal labels."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

from perf.peers.case import Volume
from perf.peers.compare import BINARY, COLD, JSON, OURS, OURS_TORCH, compare
from perf.workers import same_threads


def main() -> int:
    """Prints a line for each; 1 where labels of the torch runtime differ."""
    parser = argparse.ArgumentParser(prog="python -m perf.peers", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("volume", type=Path, help="an .npz with IMAGE, RESCALE, AFFINE")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--without", action="append", default=[], choices=[COLD, BINARY, JSON])
    parser.add_argument("--json", type=Path, help="also writes everything there")
    chosen = parser.parse_args()
    same_threads()
    volume = Volume.read(chosen.volume)
    found = compare(
        chosen.bundle,
        volume,
        turns=chosen.turns,
        without=tuple(chosen.without),
        say=lambda words: print(words, file=sys.stderr),
    )
    for who, seconds in found.seconds.items():
        print(
            f"{found.name(who):24} {statistics.median(seconds):7.2f} s  "
            f"{found.ratio(who):5.2f} x {found.name(OURS)}, {found.ratio(who, OURS_TORCH):5.2f} x "
            f"{OURS_TORCH}; {found.different[who]} voxels differ from MONAI's; "
            f"{found.devices[who]}"
        )
    print("load average before each turn:", ", ".join(f"{one:.1f}" for one in found.load))
    if chosen.json:
        chosen.json.write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
    return 1 if found.different[OURS_TORCH] else 0


if __name__ == "__main__":
    sys.exit(main())
