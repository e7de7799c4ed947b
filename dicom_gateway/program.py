"""One gateway as a process: from its settings to its exit status.

In: settings, signals. Out: an exit status. It waits for a database server that is away at the
start; it ends after a signal, or when a thread of it dies, so that a supervisor starts it anew:
never half alive. Nothing survives here.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dicom_gateway.app import Gateway
from dicom_gateway.config import LOG_LEVEL, LOG_STYLE, GatewaySettings
from dicom_gateway.errors import ConfigurationError, DatabaseUnavailable, GatewayError
from dicom_gateway.observe import get_logger, level_of, set_up_logging

_DATABASE_AGAIN_S = 2.0


def run(settings: GatewaySettings, ready_file: Path | None = None) -> int:
    """Runs a gateway until SIGTERM or SIGINT.

    Args:
        settings: From `load_settings`.
        ready_file: Written once the door is open: JSON with `pid`, `port` and, where HTTP is
            answered, `web_port`.

    Returns:
        The process's exit status: 0 after a signal, 1 when a part of it died.

    Raises:
        ConfigurationError, DatabaseUnavailable: it can't start; the message says why.
    """
    # 'tritome up' reads our lines through a pipe, and knows whether a person reads its own.
    for_people = sys.stderr.isatty() or os.environ.get(LOG_STYLE) == "console"
    level = level_of(os.environ.get(LOG_LEVEL))
    set_up_logging("console" if for_people else "json", level)
    log = get_logger(room="app")
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        # Only a note: a handler that logs or sets an event may meet its own lock.
        signal.signal(number, lambda received, _frame: asked.append(received))
    os.umask(0o077)  # the index, results and notes are about patients
    gateway = _started(settings, asked)
    if gateway is None:
        return 0
    try:
        with suppress(OSError):  # whoever would have read it is gone
            _say_where(settings, gateway)
        if ready_file is not None:
            _write_ready(ready_file, gateway.port, gateway.web_port)
        while not asked:
            time.sleep(0.2)
            dead = gateway.dead_parts()
            if dead:
                log.critical("gateway_ends", reason=f"{', '.join(dead)}: dead or lost; see above")
                return 1
        log.info("stopping", signal=signal.Signals(asked[0]).name)
    finally:
        gateway.stop()
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)
    return 0


def _started(settings: GatewaySettings, asked: Sequence[int]) -> Gateway | None:
    """A gateway with its door open; None where a signal came first.

    A database server may come up after us, as when a machine starts: it is waited for.

    Raises:
        ConfigurationError, DatabaseUnavailable: it can't start; the message says why.
    """
    log = get_logger(room="app")
    while not asked:
        gateway = Gateway(settings)
        try:
            gateway.start()
        except DatabaseUnavailable as error:
            if settings.database_url.startswith("sqlite"):
                raise
            log.warning("index_away", reason=str(error))
            again_s = time.monotonic() + _DATABASE_AGAIN_S
            while time.monotonic() < again_s and not asked:
                time.sleep(0.2)
        else:
            return gateway
    return None


def _say_where(settings: GatewaySettings, gateway: Gateway) -> None:
    titles = ", ".join(title.ae_title for title in settings.dicom.scp.ae_titles)
    print(f"DICOM: {settings.dicom.scp.host} port {gateway.port}, AE titles {titles}", flush=True)
    if gateway.web_port is not None:
        scheme = "http" if settings.web.tls is None else "https"
        print(f"DICOMweb: {scheme}://{settings.web.host}:{gateway.web_port}/dicom-web", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """`python -m dicom_gateway`: what `tritome gateway` does, without the command line's rest."""
    import argparse  # noqa: PLC0415 - only here

    from dicom_gateway.config import load_settings  # noqa: PLC0415

    parser = argparse.ArgumentParser(
        prog="python -m dicom_gateway", description="Runs one gateway until SIGTERM or SIGINT."
    )
    parser.add_argument("--config", type=Path, default=Path("gateway.yaml"))
    parser.add_argument("--ready-file", type=Path)
    chosen = parser.parse_args(arguments)
    try:
        return run(load_settings(chosen.config), chosen.ready_file)
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2
    except GatewayError as error:
        print(error, file=sys.stderr)
        return 1


def _write_ready(path: Path, port: int, web_port: int | None) -> None:
    beside = path.with_name(f"{path.name}.part")
    ready = {"pid": os.getpid(), "port": port} | ({"web_port": web_port} if web_port else {})
    beside.write_text(json.dumps(ready) + "\n", encoding="ascii")
    beside.replace(path)
