"""`tritome triton`, `gateway` and `up`: the server, the gateway, or both together.

In: a model repository and gateway.yaml. Out: log lines. What must survive a crash is in
the gateway's store; everything here can be killed and started again.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
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
from dicom_gateway.config import GatewaySettings, load_settings

TRITON = "triton"
GATEWAY = "gateway"
_COLOURS = {TRITON: "green", GATEWAY: "cyan"}


def run_triton(
    model_repository: Path,
    *,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    host: str = "127.0.0.1",
) -> None:
    """Launches a tritonserver, watches and restarts it, until Ctrl-C or SIGTERM."""
    from ensemble_builder.server import TritonServer  # noqa: PLC0415

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    end_with_supervisor()
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
                f"gRPC {server.grpc_url}, HTTP {server.http_url}. Ctrl-C ends it."
            )
            server.wait()
    except KeyboardInterrupt:
        return


def run_gateway(config: Path) -> None:
    """Runs the gateway in this process until Ctrl-C or SIGTERM."""
    from dicom_gateway.app import run  # noqa: PLC0415

    end_with_supervisor()
    status = run(load_settings(config))
    if status:
        raise SystemExit(status)


def run_up(config: Path, model_repository: Path, *, http_port: int, metrics_port: int) -> None:
    """Runs server and gateway as two processes until Ctrl-C or SIGTERM.

    Raises:
        ClientError: one of them dies again and again.
    """
    settings = load_settings(config)
    programs = [
        triton_program(
            model_repository,
            grpc_port=grpc_port_of(settings),
            http_port=http_port,
            metrics_port=metrics_port,
        ),
        gateway_program(config),
    ]
    width = max(len(program.name) for program in programs)

    def show(name: str, line: str) -> None:
        out.print(Text.assemble((f"{name:<{width}} │ ", _COLOURS[name]), line), soft_wrap=True)

    with ending_on_signals() as ended, Supervisor(programs, show) as supervisor:
        while not ended.is_set() and not supervisor.wait(0.5):
            pass
        out.print("Ending ...")
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
    return Program(GATEWAY, command, _environment())


def grpc_port_of(settings: GatewaySettings) -> int:
    """The port at which the gateway looks for Triton.

    Raises:
        ClientError: it looks on another machine, so there is nothing to start here.
    """
    host, _, port = settings.triton.url.rpartition(":")
    if host not in ("127.0.0.1", "localhost", "[::1]") or not port.isdigit():
        msg = (
            f"triton.url in gateway.yaml is {settings.triton.url}, which is not on this machine; "
            "start only the gateway with 'tritome gateway', or set it to 127.0.0.1:8001"
        )
        raise ClientError(msg)
    return int(port)


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
    return {"PYTHONPATH": here} if here not in sys.path[1:] else {}
