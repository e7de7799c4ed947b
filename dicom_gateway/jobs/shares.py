"""Which priority goes next: immediate first, the others 6:3:1 by smooth weighted turns.

In: the priorities that have a job due. Out: the one whose turn it is. The turns live in
memory only: a restart begins them anew, which shifts no share noticeably.
"""

from __future__ import annotations

from collections.abc import Collection

from dicom_gateway.records import Priority

WEIGHTS = {Priority.HIGH: 6, Priority.NORMAL: 3, Priority.LOW: 1}


class Turns:
    """Smooth weighted round robin: H N H H N H L H N H, not six H in a row.

    Source: the scheme of nginx's upstream balancer: each turn every candidate gains its
    weight, the richest goes and pays the sum.
    """

    def __init__(self) -> None:
        self._credit = dict.fromkeys(WEIGHTS, 0)

    def pick(self, due: Collection[Priority]) -> Priority:
        """The priority that goes next among those in `due` (not empty)."""
        if Priority.IMMEDIATE in due:
            return Priority.IMMEDIATE
        candidates = [priority for priority in WEIGHTS if priority in due]
        for priority, weight in WEIGHTS.items():
            # Who had nothing to do saves nothing up: no burst when its jobs come back.
            if priority in candidates:
                self._credit[priority] += weight
            else:
                self._credit[priority] = 0
        chosen = max(candidates, key=lambda priority: self._credit[priority])
        self._credit[chosen] -= sum(WEIGHTS[priority] for priority in candidates)
        return chosen
