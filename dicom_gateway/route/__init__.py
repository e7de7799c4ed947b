"""Room 3: which pipelines a series goes through, or why through none."""

from dicom_gateway.route.choices import Candidate, Chosen, choose
from dicom_gateway.route.facts import Glance, SeriesFacts, gather_facts
from dicom_gateway.route.rules import Report, Route, Router, Routing

__all__ = [
    "Candidate",
    "Chosen",
    "Glance",
    "Report",
    "Route",
    "Router",
    "Routing",
    "SeriesFacts",
    "choose",
    "gather_facts",
]
