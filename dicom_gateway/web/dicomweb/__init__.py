"""DICOMweb: STOW-RS, QIDO-RS and WADO-RS over what the gateway holds (PS3.18)."""

from dicom_gateway.web.dicomweb.routes import routes

__all__ = ["routes"]
