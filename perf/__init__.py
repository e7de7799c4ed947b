"""Benchmarks and the peers they compare with."""

import warnings

# Bundles are older than the MONAI that reads them; it says so once for each transform and process.
warnings.filterwarnings("ignore", category=FutureWarning, module="monai")
