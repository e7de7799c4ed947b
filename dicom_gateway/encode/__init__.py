"""Room 7: masks become DICOM objects that reference their sources."""
