"""Finds out what a bundle takes and gives, by running its own transforms on small inputs.

A config doesn't say whether its one image is a volume, four co-registered ones, a photograph
or a radiograph; metadata is often missing or wrong. So each layout is tried, likely ones
first, until the preprocessing gives what the network takes. The network itself runs on
torch's meta device, where only shapes are computed.
"""

from ensemble_builder.probe.findings import Findings, probe
from ensemble_builder.probe.words import missing_package

__all__ = ["Findings", "missing_package", "probe"]
