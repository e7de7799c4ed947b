"""Logs tell what happened and never quote a patient."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from pathlib import Path

import pydicom
import pynetdicom
import pytest

from dicom_gateway.observe import get_logger, set_up_logging

assert pydicom  # their loggers exist once they are imported
assert pynetdicom


def _logged(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    line = capsys.readouterr().err.strip()
    told = json.loads(line)
    assert isinstance(told, dict)
    return told


def test_an_event_is_one_json_line_with_its_context(capsys: pytest.CaptureFixture[str]):
    """Level, time, event and what was bound."""
    set_up_logging("json")

    get_logger(room="store").info("kept", size_bytes=12)

    told = _logged(capsys)
    assert "timestamp" in told
    assert (told["room"], told["event"], told["level"], told["size_bytes"]) == (
        "store",
        "kept",
        "info",
        12,
    )


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_traceback_has_places_but_no_messages_and_no_values(
    style: str, capsys: pytest.CaptureFixture[str]
):
    """The message of a foreign exception may be a patient's name."""
    set_up_logging("console" if style == "console" else "json")
    secret = "CANARY^SECRET"
    try:
        try:
            raise KeyError(secret)
        except KeyError as error:
            raise ValueError(secret) from error
    except ValueError:
        get_logger().error("broke", exc_info=True)

    told = capsys.readouterr().err
    assert "ValueError" in told
    assert "KeyError" in told
    assert "test_a_traceback_has_places" in told
    assert "CANARY" not in told


def test_a_log_that_cannot_be_written_stops_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The disk under standard error is full; once there is another one, it is written again."""
    set_up_logging("json")
    with monkeypatch.context() as full, Path("/dev/full").open("w", encoding="utf-8") as disk:
        full.setattr("sys.stderr", disk)
        get_logger().info("lost")
        with suppress(OSError):
            disk.close()
        get_logger().info("lost as well")

    get_logger().info("told")

    assert _logged(capsys)["event"] == "told"


@pytest.mark.parametrize("name", ["pynetdicom", "pynetdicom.acse", "pydicom", "highdicom"])
def test_libraries_that_log_data_sets_are_silent(
    name: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    """Neither a handler of theirs nor the root logger gets their records."""
    set_up_logging("json")

    logging.getLogger(name).error("(0010,0010) PN: [CANARY^SECRET]")

    assert capsys.readouterr().err == ""
    assert caplog.text == ""
