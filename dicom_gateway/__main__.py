"""`python -m dicom_gateway --config gateway.yaml` runs one gateway."""

import sys

from dicom_gateway.program import main

if __name__ == "__main__":
    sys.exit(main())
