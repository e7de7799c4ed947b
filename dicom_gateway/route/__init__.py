"""Room 3: which pipelines a series goes through, or why through none."""

from dicom_gateway.route.rules import Route, Routing, route

__all__ = ["Route", "Routing", "route"]
