"""The audit trail of a gateway, as a collector would read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from dicom_gateway.config import GatewaySettings


def settings_of(folder: Path, **audit: Any) -> GatewaySettings:
    """A gateway that sends to `pacs`."""
    return GatewaySettings.model_validate(
        {
            "dicom": {
                "scp": {
                    "ae-titles": [{"ae-title": "LUNG", "pipelines": ["lung_ct"]}],
                    "reject-unknown-sources": False,
                },
                "scu": {
                    "destinations": [
                        {"name": "pacs", "host-ip": "10.0.0.5", "port": 104, "ae-title": "PACS"}
                    ]
                },
            },
            "store": {"folder": str(folder)},
            "audit": audit,
        }
    )


def messages(folder: Path) -> list[ET.Element]:
    """What the trail holds."""
    lines = b"".join(p.read_bytes() for p in sorted((folder / "audit").glob("*.xmll"))).split(b"\n")
    return [ET.fromstring(line) for line in lines if line]


def what(message: ET.Element) -> tuple[str, str]:
    """Its event, and how it ended."""
    event = message.find("EventIdentification/EventID")
    assert event is not None
    return event.attrib["originalText"], message[0].attrib["EventOutcomeIndicator"]
