"""Right objects made wrong, as a mistake of ours, of a library or of a contract would.

One module for each kind of object. In: a dataset that is right. Out: the same with one mistake,
which the geometry gate (`dicom_gateway.encode.gate`) must hold.
"""
