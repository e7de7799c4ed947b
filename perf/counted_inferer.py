"""An inferer whose network is counted: what the models that `perf/busy.py` serves name."""

from __future__ import annotations

from ensemble_builder.runtime.inferer import Inferer
from perf.counted import Counter


class CountedInferer(Inferer):
    """Triton's python model interface (initialize, execute)."""

    def initialize(self, args: dict[str, str]) -> None:
        """As always; then the network is counted."""
        super().initialize(args)
        counter = Counter.of_this_process()
        self._network = counter.counted(self._network)
        self._windows = counter.counted(self._windows)
