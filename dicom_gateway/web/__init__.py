"""HTTP: DICOMweb, health and metrics now; the JSON API and the dashboard join here.

A room of its own: what it needs of others it is handed as callables (`ports.py`).
"""

from dicom_gateway.web.application import build_application
from dicom_gateway.web.dicomweb.catalogue import Catalogue
from dicom_gateway.web.server import WebServer

__all__ = ["Catalogue", "WebServer", "build_application"]
