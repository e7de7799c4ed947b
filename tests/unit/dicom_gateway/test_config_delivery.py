"""The parts of gateway.yaml about what leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dicom_gateway.config import GatewaySettings, load_settings
from dicom_gateway.config_delivery import Addressee, Destination
from dicom_gateway.errors import ConfigurationError
from dicom_gateway.records import ObjectKind

PACS = {"name": "pacs", "host-ip": "10.0.0.5", "port": 104, "ae-title": "PACS"}
WEB = {"name": "cloud", "dicomweb": {"url": "https://pacs.example/dicom-web"}}


def loaded(folder: Path, *destinations: dict[str, Any], **more: Any) -> GatewaySettings:
    """The settings of a file with these destinations."""
    settings = {
        "dicom": {
            "scp": {
                "ae-titles": [{"ae-title": "LUNG", "pipelines": ["lung_ct"]}],
                "reject-unknown-sources": False,
            },
            "scu": {"destinations": list(destinations)},
        },
        **more,
    }
    path = folder / "gateway.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return load_settings(path)


def test_files_are_looked_for_beside_gateway_yaml(tmp_path: Path):
    """Certificates and secrets of destinations, and those of the collector of audit messages."""
    settings = loaded(
        tmp_path,
        {**PACS, "tls": {"ca-file": "ca.pem", "certificates": ["pacs"]}},
        {**WEB, "dicomweb": {**WEB["dicomweb"], "token-file": "token"}},  # type: ignore[dict-item]
        audit={"syslog": {"host": "audit.example", "ca-file": "audit.pem"}},
    )
    dimse, web = settings.dicom.scu.destinations

    assert dimse.tls is not None
    assert dimse.tls.ca_file == tmp_path / "ca.pem"
    assert web.dicomweb is not None
    assert web.dicomweb.token_file == tmp_path / "token"
    assert settings.audit.syslog is not None
    assert settings.audit.syslog.ca_file == tmp_path / "audit.pem"


@pytest.mark.parametrize(
    ("destination", "said"),
    [
        ({"name": "pacs", "host-ip": "10.0.0.5"}, "give host-ip, port and ae-title"),
        ({**PACS, **WEB}, "not both"),
        ({**WEB, "confirm": "storage-commitment"}, "'confirm: query'"),
        ({**PACS, "objects": ["segmentaton"]}, "did you mean 'segmentation'?"),
        ({"name": "cloud", "dicomweb": {"url": "http://pacs.example"}}, "use https"),
        (
            {
                "name": "cloud",
                "dicomweb": {
                    "url": "https://pacs.example",
                    "token-file": "a",
                    "password-file": "b",
                },
            },
            "give one of",
        ),
        ({**PACS, "confirms": "query"}, "did you mean 'confirm"),
    ],
)
def test_a_destination_that_cannot_work_is_refused_with_what_to_write(
    tmp_path: Path, destination: dict[str, Any], said: str
):
    """Before anything is sent."""
    with pytest.raises(ConfigurationError) as error:
        loaded(tmp_path, destination)

    assert said in str(error.value)


@pytest.mark.parametrize(
    ("destinations", "said"),
    [
        ({"segmentation": ["pac"]}, "did you mean 'pacs'?"),
        ({"structured-report": ["pacs"]}, "'pacs' doesn't take this kind"),
        ({"structured-raport": ["pacs"]}, "did you mean 'structured-report'?"),
    ],
)
def test_results_are_not_sent_to_whom_nobody_knows(
    tmp_path: Path, destinations: dict[str, list[str]], said: str
):
    """Names are checked, and that the destination takes the kind."""
    with pytest.raises(ConfigurationError) as error:
        loaded(
            tmp_path,
            {**PACS, "objects": ["segmentation"]},
            results={"lung_ct": {"destinations": destinations}},
        )

    assert said in str(error.value)


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ({"lung-ct": {}}, "pipeline 'lung-ct'; did you mean 'lung_ct'?"),
        (
            {"lung_ct": {"destinations": {"secondary-capture": ["pacs"]}}},
            "add it to results.lung_ct.objects",
        ),
    ],
)
def test_results_of_what_is_never_made_are_refused(
    tmp_path: Path, results: dict[str, Any], said: str
):
    """A pipeline that nothing leads to, and a kind of object that isn't made of it."""
    with pytest.raises(ConfigurationError) as error:
        loaded(tmp_path, PACS, results=results)

    assert said in str(error.value)


def test_results_of_a_pipeline_that_only_a_rule_names_are_taken(tmp_path: Path):
    """The short form is not the only way to one."""
    settings = loaded(
        tmp_path,
        PACS,
        results={"heart_mr": {"objects": ["segmentation"]}},
        routing={"rules": [{"name": "hearts", "called": ["LUNG"], "pipelines": ["heart_mr"]}]},
    )

    assert settings.results["heart_mr"].objects == (ObjectKind.SEGMENTATION,)


def test_each_kind_goes_where_it_is_taken(tmp_path: Path):
    """A pipeline's word on a kind stands above the rule; what a destination takes, above both."""
    settings = loaded(
        tmp_path,
        {**PACS, "objects": ["segmentation", "secondary-capture"]},
        {**PACS, "name": "ris", "objects": ["structured-report"]},
        WEB,
        results={
            "lung_ct": {
                "objects": ["segmentation", "structured-report", "secondary-capture"],
                "destinations": {"secondary-capture": ["pacs"]},
            }
        },
    )
    addressee = Addressee(settings.results, settings.dicom.scu.destinations)
    asked = ("pacs", "ris", "cloud")

    assert addressee("lung_ct", ObjectKind.SEGMENTATION, asked) == ("pacs", "cloud")
    assert addressee("lung_ct", ObjectKind.STRUCTURED_REPORT, asked) == ("ris", "cloud")
    assert addressee("lung_ct", ObjectKind.SECONDARY_CAPTURE, asked) == ("pacs",)
    assert addressee("other", ObjectKind.SECONDARY_CAPTURE, asked) == ("pacs", "cloud")
    assert addressee("lung_ct", None, asked) == ("cloud",)
    assert addressee("lung_ct", ObjectKind.SEGMENTATION, ("renamed",)) == ("renamed",)


def test_a_destination_says_nothing_secret_of_itself():
    """Its name and address stand in sentences that people see."""
    one = Destination.model_validate(
        {**WEB, "dicomweb": {"url": "https://pacs.example", "password-file": "secret"}}
    )

    assert str(one) == "destination 'cloud' (https://pacs.example)"
