"""`tritome triton`, `gateway` and `up`: the server, the gateway, or both together.

In: a model repository and gateway.yaml. Out: log lines. What must survive a crash is in
the gateway's store; everything here can be killed and started again.
"""

from __future__ import annotations

import difflib
import logging
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import resources
from pathlib import Path

from rich.text import Text

from clients.console import out
from clients.errors import ClientError
from clients.supervise import (
    Program,
    Supervisor,
    end_with_supervisor,
    ending_on_signals,
    interrupted_once,
)
from dicom_gateway.config import LOG_STYLE, GatewaySettings, load_settings

TRITON = "triton"
GATEWAY = "gateway"
SELF = "tritome"
_LOOPBACK = "127.0.0.1"
_COLOURS = {TRITON: "green", GATEWAY: "cyan", SELF: "bold"}


def run_triton(
    model_repository: Path,
    *,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    host: str = "127.0.0.1",
) -> None:
    """Launches a tritonserver, watches and restarts it, until Ctrl-C or SIGTERM."""
    end_with_supervisor()  # before the imports that take seconds
    from ensemble_builder.server import TritonServer  # noqa: PLC0415

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        with (
            interrupted_once(),
            TritonServer(
                model_repository,
                http_port=http_port,
                grpc_port=grpc_port,
                metrics_port=metrics_port,
                host=host,
            ) as server,
        ):
            out.print(
                f"Triton ({server.origin}) serves {model_repository} on "
                f"gRPC {server.grpc_url}, HTTP {server.http_url}. Ctrl-C ends it.",
                soft_wrap=True,
            )
            server.wait()
    except KeyboardInterrupt:
        return


def run_gateway(config: Path) -> None:
    """Runs the gateway in this process until Ctrl-C or SIGTERM."""
    end_with_supervisor()  # before the imports that take seconds
    from dicom_gateway.program import run  # noqa: PLC0415

    status = run(load_settings(config))
    if status:
        raise SystemExit(status)


def run_up(config: Path, model_repository: Path, *, http_port: int, metrics_port: int) -> None:
    """Runs server and gateway as two processes until Ctrl-C or SIGTERM.

    Raises:
        ClientError: there are no models, a port is in use, or one of the two dies again
            and again.
    """
    settings = load_settings(config)
    _require_able(settings, model_repository, http_port, metrics_port)
    programs = [
        triton_program(
            model_repository,
            grpc_port=grpc_port_of(settings),
            http_port=http_port,
            metrics_port=metrics_port,
        ),
        gateway_program(config),
    ]
    width = max(len(name) for name in _COLOURS)

    def show(name: str, line: str) -> None:
        # rich leaves with SystemExit when nobody reads stdout any more; server and gateway
        # go on, and are kept running, without a listener.
        with suppress(SystemExit):
            out.print(Text.assemble((f"{name:<{width}} │ ", _COLOURS[name]), line), soft_wrap=True)

    with ending_on_signals() as ended, Supervisor(programs, show) as supervisor:
        while not ended.is_set() and not supervisor.wait(0.5):
            pass
        supervisor.say(SELF, "ending ...")
        supervisor.require_running()


def triton_program(
    model_repository: Path, *, grpc_port: int, http_port: int = 8000, metrics_port: int = 8002
) -> Program:
    """`tritome triton` as a child process."""
    command = (
        *(sys.executable, "-m", "clients", "triton"),
        *("--model-repository", str(model_repository)),
        *("--http-port", str(http_port)),
        *("--grpc-port", str(grpc_port)),
        *("--metrics-port", str(metrics_port)),
    )
    return Program(TRITON, command, _environment())


def gateway_program(config: Path) -> Program:
    """`tritome gateway` as a child process."""
    command = (sys.executable, "-m", "clients", "gateway", "--config", str(config))
    style = {LOG_STYLE: "console"} if out.is_terminal else {}
    return Program(GATEWAY, command, {**_environment(), **style})


def grpc_port_of(settings: GatewaySettings) -> int:
    """The port at which the gateway looks for Triton.

    Raises:
        ClientError: it looks where the Triton that we start would not be found.
    """
    host, _, port = settings.triton.url.rpartition(":")
    # Only what reaches the address that the server listens on; [::1], say, never would.
    if host not in ("127.0.0.1", "localhost"):
        msg = (
            f"triton.url in gateway.yaml is {settings.triton.url}, but 'tritome up' starts its "
            "Triton on 127.0.0.1: set it to 127.0.0.1:8001. For a Triton that runs elsewhere, "
            "start only the gateway with 'tritome gateway'"
        )
        raise ClientError(msg)
    return int(port)


def _require_able(
    settings: GatewaySettings, model_repository: Path, http_port: int, metrics_port: int
) -> None:
    """Finds at once what both programs would die of five times in a row."""
    if not any(model_repository.glob("*/config.pbtxt")):
        msg = (
            f"{model_repository} holds no models: write some with "
            f"'tritome build lung_ct --output {model_repository}', "
            "or name another folder with --model-repository"
        )
        raise ClientError(msg)
    scp = settings.dicom.scp
    served = sorted(path.parent.name for path in model_repository.glob("*/config.pbtxt"))
    wanted = [(title.ae_title, title.pipelines) for title in scp.ae_titles]
    wanted += [(f"rule {rule.name}", rule.pipelines) for rule in settings.routing.rules]
    for who, names in wanted:
        for name in names:
            if name not in served:
                near = difflib.get_close_matches(name, served, n=1)
                hint = f"did you mean '{near[0]}'? If not, " if near else ""
                msg = (
                    f"gateway.yaml leads {who} to the pipeline '{name}', which is not "
                    f"in {model_repository}, so its studies would wait forever; {hint}build it "
                    "with 'tritome build'"
                )
                raise ClientError(msg)
    doors = [(scp.host, scp.port, "dicom.scp.port in gateway.yaml")] if scp.plain else []
    if scp.tls is not None:
        doors.append((scp.host, scp.tls.port, "dicom.scp.tls.port in gateway.yaml"))
    if settings.web.enabled:
        doors.append((settings.web.host, settings.web.port, "web.port in gateway.yaml"))
    for host, port, where in (
        *doors,
        (_LOOPBACK, grpc_port_of(settings), "triton.url in gateway.yaml"),
        (_LOOPBACK, http_port, "--http-port"),
        (_LOOPBACK, metrics_port, "--metrics-port"),
    ):
        if reason := _why_not_bound(host, port):
            msg = (
                f"{host} port {port} can't be had ({reason}). Does another tritome or Triton run "
                f"here? End it, or change {where}"
            )
            raise ClientError(msg)


def _why_not_bound(host: str, port: int) -> str:
    """Empty when a server could listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # As servers do: connections of an earlier life that fade away don't count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return str(error.strerror or error)
    return ""


def write_example(config: Path) -> None:
    """`tritome init`: writes a commented gateway.yaml.

    Raises:
        ClientError: there is one already, or it can't be written.
    """
    text = resources.files("clients").joinpath("gateway.example.yaml").read_text("utf-8")
    try:
        with config.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        msg = f"{config} is there already; name another with --config, or remove it first"
        raise ClientError(msg) from error
    except OSError as error:
        msg = f"{config} can't be written ({error.strerror})"
        raise ClientError(msg) from error
    out.print(f"Wrote {config}. Next: put your PACS into it, then [bold]tritome up[/].")


def _environment() -> Mapping[str, str]:
    # The children must import the same tritome as we do, from wherever we were started.
    here = str(Path(__file__).resolve().parents[2])
    if here in sys.path[1:]:
        return {}
    theirs = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": os.pathsep.join(filter(None, (here, theirs)))}
