"""gateway.yaml: what a person writes, and what they are told when it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicom_gateway.config import GatewaySettings, load_settings
from dicom_gateway.errors import ConfigurationError
from dicom_gateway.records import Priority

GOOD = """
dicom:
  scp:
    port: 11112
    ae-titles:
      - ae-title: LUNG
        pipelines: [lung_ct]
        destinations: [pacs]
        priority: high
    reject-unknown-sources: true
    sources:
      - ae-title: MODALITY
        host-ip: 10.0.0.5
  scu:
    ae-title: TRITOME
    destinations:
      - name: pacs
        host-ip: orthanc
        port: 4242
        ae-title: ORTHANC
store:
  folder: data
"""


def read(tmp_path: Path, text: str) -> GatewaySettings:
    """The settings of a gateway.yaml with this text."""
    path = tmp_path / "gateway.yaml"
    path.write_text(text, encoding="utf-8")
    return load_settings(path)


def complaints(tmp_path: Path, text: str) -> list[str]:
    """What a person is told, one line per mistake, without the path in front."""
    with pytest.raises(ConfigurationError) as error:
        read(tmp_path, text)
    path = str(tmp_path / "gateway.yaml")
    lines = str(error.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    return [line.removeprefix(f"{path}: ") for line in lines]


def test_a_site_s_file_is_read(tmp_path: Path) -> None:
    """Kebab-case keys, as in Clara's dicom-server-config.yaml."""
    settings = read(tmp_path, GOOD)

    (title,) = settings.dicom.scp.ae_titles
    assert (title.ae_title, title.pipelines, title.priority) == (
        "LUNG",
        ("lung_ct",),
        Priority.HIGH,
    )
    assert settings.dicom.scp.sources[0].host_ip == "10.0.0.5"
    assert settings.dicom.scu.destinations[0].port == 4242


def test_folders_are_relative_to_the_file(tmp_path: Path) -> None:
    """So that it doesn't matter where the gateway is started from."""
    settings = read(tmp_path, GOOD)

    assert settings.store.folder == tmp_path.resolve() / "data"
    assert settings.database_url == f"sqlite:///{tmp_path.resolve()}/data/index.sqlite"


def test_a_database_url_of_its_own_is_taken(tmp_path: Path) -> None:
    """For PostgreSQL."""
    settings = read(tmp_path, GOOD + "  database-url: postgresql+psycopg://db/tritome\n")

    assert settings.database_url == "postgresql+psycopg://db/tritome"


@pytest.mark.parametrize(
    ("good", "bad", "complaint"),
    [
        ("port: 11112", "prot: 11112", "dicom.scp.prot: unknown key; did you mean 'port'?"),
        (
            "destinations: [pacs]",
            "destinations: [pcas]",
            "'LUNG' sends to 'pcas', which is not among dicom.scu.destinations; did you mean "
            "'pacs'?",
        ),
        ("ae-title: LUNG", "ae-title: A_TITLE_MUCH_TOO_LONG", "1 to 16 printable ASCII"),
        ("ae-title: LUNG", 'ae-title: "LU\\\\NG"', "1 to 16 printable ASCII"),
        ("host-ip: 10.0.0.5", "host-ip: scanner", "write an IP address such as 10.0.0.5"),
        ("port: 11112", "port: 70000", "dicom.scp.port: "),
        (
            "pipelines: [lung_ct]",
            "pipelines: []",
            "dicom.scp.ae-titles.0.pipelines: list at least one",
        ),
        ("priority: high", "priority: urgent", "dicom.scp.ae-titles.0.priority: "),
        (
            "    sources:\n      - ae-title: MODALITY\n        host-ip: 10.0.0.5\n",
            "",
            "reject-unknown-sources is true but no source is listed",
        ),
    ],
)
def test_a_mistake_is_named_with_its_place(
    tmp_path: Path, good: str, bad: str, complaint: str
) -> None:
    """File, place, and what to write instead."""
    assert good in GOOD

    (line,) = complaints(tmp_path, GOOD.replace(good, bad, 1))

    assert complaint in line


@pytest.mark.parametrize(
    ("good", "bad", "complaint"),
    [
        ("        host-ip: 10.0.0.5", "        host-ip:", "dicom.scp.sources.0.host-ip"),
        ("  folder: data", "  retention:", "store.retention"),
        ("      - ae-title: MODALITY\n        host-ip: 10.0.0.5\n", "", "dicom.scp.sources"),
        ("port: 11112", "port: null", "dicom.scp.port"),
    ],
)
def test_a_key_without_a_value_is_refused(
    tmp_path: Path, good: str, bad: str, complaint: str
) -> None:
    """It doesn't count as not written: whoever wrote `host-ip` meant to bind a sender to one."""
    assert good in GOOD

    (line,) = complaints(tmp_path, GOOD.replace(good, bad, 1))

    assert line.endswith(
        f": {complaint}: there is no value; write one, or take the key out as well"
    )


@pytest.mark.parametrize(
    ("good", "bad", "what_to_write"),
    [
        ("ae-title: MODALITY", "ae-title: 1234", "a text; in quotes where it looks like a number"),
        ("ae-title: MODALITY", "ae-title: ON", "a text; in quotes where it looks like a number"),
        ("pipelines: [lung_ct]", "pipelines: lung_ct", "a list: [one, another]"),
        ("port: 11112", "port: open", "a whole number"),
        ("port: 11112", "port: 11112.5", "a whole number"),
        ("  folder: data", "  retention: {ignored-after-days: 90 days}", "a number"),
        ("  folder: data", "  retention: {ignored-after-days: .inf}", "a number that ends"),
        ("  folder: data", "  retention: always", "its keys below it"),
        ("unknown-sources: true", "unknown-sources: mostly", "true or false"),
    ],
)
def test_what_a_value_should_be_is_said_in_words(
    tmp_path: Path, good: str, bad: str, what_to_write: str
) -> None:
    """Not in Python's: who writes the file needn't know what a tuple is."""
    assert good in GOOD

    (line,) = complaints(tmp_path, GOOD.replace(good, bad, 1))

    assert f": write {what_to_write}" in line


@pytest.mark.parametrize(
    "said", ["pacs..example", "10.0.0.7:104", "https://pacs.example", "'10.0.0.7 '", "''", "-pacs"]
)
def test_an_address_that_is_none_is_refused(tmp_path: Path, said: str) -> None:
    """Nothing could ever be sent there, and nobody would know why."""
    (line,) = complaints(tmp_path, GOOD.replace("host-ip: orthanc", f"host-ip: {said}"))

    assert "destinations.0.host-ip: write an IP address or a host name and nothing else" in line


@pytest.mark.parametrize(
    "said", ["http://triton:8001", "triton", "triton:0", "triton:8001/v2", ":8001", "${TRITON}"]
)
def test_a_place_of_triton_that_is_none_is_refused(tmp_path: Path, said: str) -> None:
    """A client takes any text, and waits for ever."""
    (line,) = complaints(tmp_path, GOOD + f'triton: {{url: "{said}"}}\n')

    assert "triton.url: write host and port, such as 127.0.0.1:8001" in line


@pytest.mark.parametrize("said", ["127.0.0.1:8001", "triton_1.site:8001", "[::1]:8001"])
def test_a_place_of_triton_is_taken_as_it_is(tmp_path: Path, said: str) -> None:
    """Numbers of either kind, and names."""
    assert read(tmp_path, GOOD + f'triton: {{url: "{said}"}}\n').triton.url == said


@pytest.mark.parametrize(
    "said", ["nonsense", "mysql://db/tritome", "sqlite://", "sqlite:///index.sqlite", "postgresql"]
)
def test_an_index_of_another_kind_is_refused(tmp_path: Path, said: str) -> None:
    """A file beside the current folder too: who looks from elsewhere would see another one."""
    (line,) = complaints(tmp_path, GOOD + f"  database-url: {said}\n")

    assert "store.database-url: write postgresql+psycopg://user@host/database, or" in line


def test_postgresql_goes_by_the_driver_that_comes_with_us(tmp_path: Path) -> None:
    """Whatever SQLAlchemy of that version takes by itself; the password stays."""
    settings = read(tmp_path, GOOD + "  database-url: postgresql://me:s%40y@db/tritome\n")

    assert settings.database_url == "postgresql+psycopg://me:s%40y@db/tritome"


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    """Nobody wants to mend one line per start."""
    text = GOOD.replace("port: 11112", "port: 0x").replace("name: pacs", "name: 'The PACS'")

    assert len(complaints(tmp_path, text)) == 2


def test_a_title_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    """Which of the two would count?"""
    again = "      - {ae-title: LUNG, pipelines: [lung_ct]}\n    reject-unknown"

    (line,) = complaints(tmp_path, GOOD.replace("    reject-unknown", again, 1))

    assert "the same AE title is listed twice" in line


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("dicom: [", "no valid YAML"),
        ("", "holds no settings"),
        ("dicom: {}", "dicom.scp: "),
        ("- a\n- b\n", "holds no settings"),
    ],
)
def test_what_is_no_configuration_is_refused_by_name(
    tmp_path: Path, text: str, complaint: str
) -> None:
    """Broken YAML, an empty file, a list: each is told, none is a traceback."""
    assert any(complaint in line for line in complaints(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """With the system's reason."""
    with pytest.raises(ConfigurationError, match=r"absent\.yaml: can't be read"):
        load_settings(tmp_path / "absent.yaml")


def test_tls_files_are_relative_to_the_settings(tmp_path: Path) -> None:
    """As every path in gateway.yaml; wherever the gateway is started from."""
    text = GOOD.replace(
        "    reject-unknown-sources: true\n",
        "    reject-unknown-sources: true\n"
        "    tls:\n"
        "      certificate-file: tls/own.pem\n"
        "      key-file: /etc/own.key\n"
        "      client-ca-file: ca.pem\n",
    )
    tls = read(tmp_path, text).dicom.scp.tls
    assert tls is not None
    assert tls.certificate_file == tmp_path / "tls" / "own.pem"
    assert (tls.key_file, tls.client_ca_file) == (Path("/etc/own.key"), tmp_path / "ca.pem")
    assert (tls.port, tls.client_certificates) == (2762, "required")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("    port: 11112\n", "    plain: false\n", "nothing would be listened on"),
        (
            "        host-ip: 10.0.0.5\n",
            "        certificates: [ct1.radiology]\n",
            "'MODALITY' is bound to certificates, which needs tls",
        ),
        (
            "        host-ip: 10.0.0.5\n",
            "        certificates: ['no name']\n",
            "name a certificate by its SHA-256 fingerprint",
        ),
        ("        host-ip: 10.0.0.5\n", "        port: 104\n", "has a port but no host-ip"),
    ],
)
def test_receiving_settings_that_contradict_each_other_are_refused(
    tmp_path: Path, old: str, new: str, complaint: str
) -> None:
    """With a sentence that names the source or the key."""
    assert old in GOOD
    (said,) = complaints(tmp_path, GOOD.replace(old, new))
    assert complaint in said
