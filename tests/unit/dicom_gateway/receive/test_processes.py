"""Several receiving processes on one port, as real ones."""

from __future__ import annotations

from pathlib import Path

from dicom_gateway.config import GatewaySettings
from dicom_gateway.receive import Receiver
from dicom_gateway.receiving import receiving_child
from dicom_gateway.records import Arrival, Instance
from tests.support.peers import echoscu

SOURCES = 1000
ONE_MESSAGE_BYTES = 64 * 1024


def _never_here(_arrival: Arrival) -> Instance:
    raise AssertionError("the children keep")


def test_a_receiving_process_is_told_all_of_a_long_gateway_yaml(tmp_path: Path) -> None:
    """A site with many sources or rules is served as one with few."""
    settings = GatewaySettings.model_validate(
        {
            "store": {"folder": str(tmp_path)},
            "dicom": {
                "scp": {
                    "host": "127.0.0.1",
                    "port": 0,
                    "processes": 2,
                    "ae-titles": [{"ae-title": "LUNG", "pipelines": ["lung_ct"]}],
                    "sources": [
                        {"ae-title": f"CT{number}", "host-ip": "127.0.0.1"}
                        for number in range(SOURCES)
                    ],
                }
            },
        }
    )
    child = receiving_child(settings)
    assert len(child.greeting) > ONE_MESSAGE_BYTES
    receiver = Receiver(settings.dicom.scp, _never_here, lambda *_how: None, child=child)
    receiver.start()
    try:
        answer = echoscu("127.0.0.1", receiver.port, f"CT{SOURCES - 1}", "LUNG")
        assert answer.exit_code == 0, answer.output
    finally:
        receiver.stop()
