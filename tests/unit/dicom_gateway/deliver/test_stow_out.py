"""One file to one peer by STOW-RS, and what each answer means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dicom_gateway.config_delivery import Destination, DicomwebDestination
from dicom_gateway.deliver.stow import Stow
from dicom_gateway.errors import (
    ConfigurationError,
    DestinationRefused,
    DestinationUnavailable,
    DestinationUnreachable,
    GatewayError,
    NotUnderstood,
)
from tests.support.certificates import an_authority
from tests.support.dicom import CANARY, a_ct_series, write_series
from tests.support.processes import free_port
from tests.support.scripted_web_pacs import Answer, a_web_pacs, failed, stored

SECRET = "7d1fa1c0ffee7d1fa1c0ffee"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """One DICOM file, standing for a result."""
    (path,) = write_series(tmp_path / "results", a_ct_series(frames=1))
    return path


def send(path: Path, url: str, **more: Any) -> str:
    """One file over a connection of its own."""
    sender = Stow(Destination(name="web", dicomweb=DicomwebDestination(url=url, **more)))
    try:
        return sender.send(path)
    finally:
        sender.close()


@pytest.mark.parametrize(
    ("answer", "note"),
    [
        ((200, stored()), "accepted"),
        ((202, stored(0xB000)), "accepted with warning 0xB000"),
        ((409, failed(0x0111)), "it had the object already"),
    ],
)
def test_the_bytes_of_the_file_arrive(file: Path, answer: Answer, note: str):
    """Also with a warning, and where it had them before."""
    with a_web_pacs([answer]) as pacs:
        assert note in send(file, pacs.url)

    assert pacs.objects == [file.read_bytes()]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((409, failed(0xA700)), DestinationUnavailable),
        ((200, failed(0x0110)), DestinationUnavailable),
        ((200, None), DestinationUnavailable),
        ((200, stored(uid="1.2.3")), DestinationUnavailable),
        ((202, None), DestinationUnavailable),
        ((202, stored(uid="1.2.3")), DestinationUnavailable),
        ((503, None), DestinationUnavailable),
        ((429, None), DestinationUnavailable),
        ((500, None), DestinationUnavailable),
        ((409, failed(0xC000)), NotUnderstood),
        ((409, None), NotUnderstood),
        ((202, failed(0xA900)), DestinationRefused),
        ((409, failed(0x0122)), DestinationRefused),
        ((400, None), DestinationRefused),
        ((413, None), DestinationRefused),
        ((302, None), DestinationUnreachable),
        ((404, None), DestinationUnreachable),
        ((405, None), DestinationUnreachable),
        ((401, None), DestinationUnreachable),
        ((403, None), DestinationUnreachable),
    ],
)
def test_each_answer_has_its_meaning(file: Path, answer: Answer, error: type[GatewayError]):
    """Failure reasons are those of C-STORE; without one the HTTP status decides.

    An answer that doesn't name the object, or names another one, says nothing of it.
    """
    with a_web_pacs([answer]) as pacs, pytest.raises(GatewayError) as raised:
        send(file, pacs.url)

    assert type(raised.value) is error
    assert CANARY not in str(raised.value)


def test_a_token_or_a_password_says_who_we_are_and_stands_nowhere_else(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """From a file or the environment; not in a sentence."""
    token, password = tmp_path / "token", tmp_path / "password"
    token.write_text(f"{SECRET}\n", encoding="ascii")
    password.write_text(f"tritome:{SECRET}\n", encoding="ascii")
    monkeypatch.setenv("PACS_TOKEN", SECRET)
    with a_web_pacs([(200, stored()), (200, stored()), (200, stored()), (401, None)]) as pacs:
        send(file, pacs.url, token_file=token)
        send(file, pacs.url, token_environment="PACS_TOKEN")
        send(file, pacs.url, password_file=password)
        with pytest.raises(DestinationUnreachable) as error:
            send(file, pacs.url, token_file=token)

    assert pacs.authorization[:2] == [f"Bearer {SECRET}"] * 2
    assert pacs.authorization[2].startswith("Basic ")
    assert SECRET not in str(error.value)


def test_a_token_that_is_changed_counts_at_once(file: Path, tmp_path: Path):
    """Some run out every hour; while there is none, nothing is sent, and it is tried again."""
    token = tmp_path / "token"
    token.write_text("first", encoding="ascii")
    with a_web_pacs() as pacs:
        where = DicomwebDestination(url=pacs.url, token_file=token)
        sender = Stow(Destination(name="web", dicomweb=where))
        sender.send(file)
        token.write_text("\ufeffsecond\r\n", encoding="utf-8")  # by a Windows editor
        sender.send(file)
        token.unlink()
        with pytest.raises(DestinationUnreachable, match="can't be read") as error:
            sender.send(file)
        sender.close()

    assert pacs.authorization == ["Bearer first", "Bearer second"]
    assert error.value.is_lasting


@pytest.mark.parametrize("text", ["", "two\nlines", "vierunddreißig"])
def test_what_is_no_token_is_said_at_once(tmp_path: Path, text: str):
    """And not repeated."""
    (tmp_path / "token").write_text(text, encoding="utf-8")

    with pytest.raises(ConfigurationError, match="must hold one line, the token") as error:
        send(tmp_path, "https://pacs.example/dicom-web", token_file=tmp_path / "token")
    assert not text or text not in str(error.value)


def test_a_password_that_is_not_there_is_said_at_once(tmp_path: Path):
    """Before the first result is made."""
    with pytest.raises(ConfigurationError, match="can't be read"):
        send(tmp_path, "https://pacs.example/dicom-web", password_file=tmp_path / "gone")
    (tmp_path / "odd").write_text("no colon", encoding="ascii")
    with pytest.raises(ConfigurationError, match="user:password"):
        send(tmp_path, "https://pacs.example/dicom-web", password_file=tmp_path / "odd")


def test_https_with_an_authority_of_ones_own(file: Path, tmp_path: Path):
    """Sent to whom the authority has signed; to nobody else."""
    ours = an_authority(tmp_path / "ours")
    other = an_authority(tmp_path / "other", "somebody else")
    with a_web_pacs(tls=ours.sign("pacs")) as pacs:
        assert send(file, pacs.url, ca_file=ours.certificate) == "accepted"
        with pytest.raises(DestinationUnreachable, match="ca-file") as error:
            send(file, pacs.url, ca_file=other.certificate)
        assert len(pacs.objects) == 1
    assert error.value.is_lasting


def test_nobody_listening_is_retryable(file: Path):
    """The PACS is being restarted."""
    with pytest.raises(DestinationUnreachable, match="can't be reached"):
        send(file, f"http://127.0.0.1:{free_port()}/dicom-web")
