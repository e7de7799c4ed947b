"""The parts of gateway.yaml about HTTP and fetching: what fits, and what is said where not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dicom_gateway.config import GatewaySettings, load_settings
from dicom_gateway.errors import ConfigurationError

DIMSE = {"host-ip": "192.0.2.1", "port": 104, "ae-title": "ARCHIVE"}


def read(folder: Path, **sections: Any) -> GatewaySettings:
    """The settings of a file with these sections."""
    scp = {
        "ae-titles": [{"ae-title": "LUNG", "pipelines": ["lung_ct"]}],
        "sources": [{"ae-title": "SCANNER"}],
    }
    path = folder / "gateway.yaml"
    path.write_text(yaml.safe_dump({"dicom": {"scp": scp}, **sections}), encoding="utf-8")
    return load_settings(path)


def test_http_is_off_and_on_loopback_unless_a_person_says_otherwise(tmp_path: Path) -> None:
    """Nothing new is open after an update."""
    settings = read(tmp_path)
    assert not settings.web.enabled
    assert settings.web.host == "127.0.0.1"
    assert settings.pacs == ()


def test_files_are_relative_to_the_settings(tmp_path: Path) -> None:
    """Also those deep inside."""
    caller = {"calling-ae-title": "VIEWER", "token-file": "viewer.token"}
    tls = {"certificate-file": "one.pem", "key-file": str(tmp_path / "one.key")}
    peer = {
        "name": "cloud",
        "called-ae-title": "LUNG",
        "dicomweb": {"url": "https://pacs.example/dicom-web", "ca-file": "ca.pem"},
    }
    settings = read(tmp_path, web={"callers": [caller], "tls": tls}, pacs=[peer])
    assert settings.web.callers[0].token_file == tmp_path.resolve() / "viewer.token"
    assert settings.web.tls is not None
    assert settings.web.tls.certificate_file == tmp_path.resolve() / "one.pem"
    assert settings.pacs[0].dicomweb is not None
    assert settings.pacs[0].dicomweb.ca_file == tmp_path.resolve() / "ca.pem"


@pytest.mark.parametrize(
    ("peers", "words"),
    [
        ([{"name": "a", "called-ae-title": "LUNG", "dimse": DIMSE}], "list 'ARCHIVE' under"),
        ([{"name": "a", "called-ae-title": "HEAD", "dimse": DIMSE}], "'HEAD' is not among"),
        ([{"name": "a", "called-ae-title": "LUNG"}], "give either dimse"),
        ([{"name": "a", "called-ae-title": "LUNG", "dicomweb": {"url": "ftp://x"}}], "url"),
        ([{"name": "a", "called-ae-title": "LUNG", "dicomweb": {"url": "http://x"}}] * 2, "same"),
    ],
)
def test_a_pacs_that_cannot_work_is_refused_at_once(
    tmp_path: Path, peers: list[dict[str, object]], words: str
) -> None:
    """Not at the first fetch."""
    with pytest.raises(ConfigurationError, match=words):
        read(tmp_path, pacs=peers)


def test_the_default_title_of_the_web_must_be_one_of_ours(tmp_path: Path) -> None:
    """Else nothing could be stored there."""
    with pytest.raises(ConfigurationError, match="web: called-ae-title 'HEAD'"):
        read(tmp_path, web={"called-ae-title": "HEAD"})
