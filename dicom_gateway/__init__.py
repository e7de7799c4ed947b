"""Studies in by DICOM, results out by DICOM; inference on a Triton beside it."""
