"""Where there is no room to decode ahead, the gateway says so and works without."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicom_gateway.app import Gateway
from dicom_gateway.assemble.decoders import DecoderPool
from dicom_gateway.assemble.headers import read_header
from dicom_gateway.config import GatewaySettings


def test_without_room_for_it_nothing_is_decoded_ahead(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log names the setting that asks for the room."""
    title = {"ae-title": "LUNG", "pipelines": ["lung_ct"]}
    settings = GatewaySettings.model_validate(
        {
            "store": {"folder": str(tmp_path)},
            "jobs": {"ahead-bytes": 1 << 60},
            "dicom": {"scp": {"ae-titles": [title], "reject-unknown-sources": False}},
        }
    )
    with DecoderPool(1) as decoders:
        assert Gateway(settings)._ahead(decoders, read_header) is None
    told = "".join(capsys.readouterr())
    assert "lower jobs.ahead-bytes in gateway.yaml" in told
    assert "triton.arena-bytes" not in told
