"""The builder's own version, which repositories record and the runtime checks."""

from __future__ import annotations

BUILDER_VERSION = "0.1.0"
"""Kept equal to the distribution's version; a test compares the two. The runtime refuses a
repository whose first number differs (before 1.0: whose first two differ)."""


def compatible(built_with: str, running: str = BUILDER_VERSION) -> bool:
    """True when a repository built by `built_with` can be served by `running`."""

    def era(version: str) -> list[str]:
        numbers = version.split(".")
        return numbers[:2] if numbers[0] == "0" else numbers[:1]

    return era(built_with) == era(running)
