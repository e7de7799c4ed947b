"""The `tritome` command: what can be asked for, and how troubles are said.

In: a command line. Out: an exit code: 0 done, 1 not done and the red sentence says why and
what to do, 2 the command line itself is wrong, 130 ended by Ctrl-C. Each command's work is
in `clients.commands`; its packages are imported only when it is called, so `--help` is
quick and a gateway-only installation needs neither torch nor MONAI.
"""

from __future__ import annotations

import importlib.metadata
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from clients import cli_builder, cli_gateway
from clients.console import complain, err
from clients.errors import ClientError, MissingExtra
from dicom_gateway.errors import GatewayError
from ensemble_builder.errors import BuilderError

_EXTRA_OF = {
    "monai": "builder",
    "openvino": "builder",
    "scipy": "builder",
    "torch": "builder",
    "pytriton": "server",
    "psycopg": "postgres",
}
_INTERRUPTED = 130

app = typer.Typer(
    name="tritome",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
cli_builder.register(app)
cli_gateway.register(app)

Config = Annotated[
    Path, typer.Option("--config", "-c", help="The gateway's settings.", metavar="FILE")
]
Repository = Annotated[
    Path,
    typer.Option(
        "--model-repository",
        "-m",
        envvar="TRITOME_MODEL_REPOSITORY",
        help="What 'tritome build' wrote.",
    ),
]
_CONFIG = Path("gateway.yaml")
_REPOSITORY = Path("model_repository")


@dataclass
class Options:
    """What was said before the command's name."""

    debug: bool = False


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tritome {version()}")
        raise typer.Exit


def version() -> str:
    """The installed distribution's version; the builder's own where it isn't installed."""
    try:
        return importlib.metadata.version("tritome")
    except importlib.metadata.PackageNotFoundError:
        from ensemble_builder.version import BUILDER_VERSION  # noqa: PLC0415

        return BUILDER_VERSION


@app.callback()
def options(
    ctx: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print and exit.")
    ] = False,
) -> None:
    """MONAI bundles as NVIDIA Triton ensembles behind a DICOM gateway.

    New here? [bold]tritome doctor[/] says what this machine lacks, and [bold]tritome demo[/]
    sends a phantom chest CT the whole way and shows what comes back.

    Not a medical device.
    """
    ctx.ensure_object(Options).debug = debug


@app.command(rich_help_panel="Begin")
def demo(
    study: Annotated[
        Path | None,
        typer.Option(help="A folder with a real chest CT, in place of the phantom."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write.")] = Path(
        "demo_output"
    ),
    model_repository: Repository = _REPOSITORY,
    timeout_s: Annotated[float, typer.Option(help="Give up after so many seconds.")] = 600.0,
) -> None:
    """Send a chest CT the whole way and show what comes back.

    Starts a Triton server, the gateway and a small PACS on free ports, sends a study by
    C-STORE, and writes the DICOM SEG, a picture and the times into a folder.

    Example: [cyan]tritome demo --study ~/chest_ct[/]
    """
    from clients.demo.run import run  # noqa: PLC0415

    run(study, output, model_repository, timeout_s)


@app.command(rich_help_panel="Begin")
def doctor(config: Config = _CONFIG, model_repository: Repository = _REPOSITORY) -> None:
    """Say what is missing on this machine, and what to do about it.

    The exit code is 1 when the demo could not run.

    Example: [cyan]tritome doctor[/]
    """
    from clients.commands.doctor import run  # noqa: PLC0415

    if not run(config, model_repository):
        raise typer.Exit(1)


@app.command(rich_help_panel="Begin")
def init(config: Config = _CONFIG) -> None:
    """Write a commented gateway.yaml to begin with.

    Example: [cyan]tritome init --config gateway.yaml[/]
    """
    from clients.commands.serve import write_example  # noqa: PLC0415

    write_example(config)


@app.command(rich_help_panel="Serve")
def triton(
    model_repository: Repository = _REPOSITORY,
    http_port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8002,
    host: Annotated[
        str, typer.Option(help="Another address only where nobody else can reach it.")
    ] = "127.0.0.1",
) -> None:
    """Run a Triton server on loopback, watch it, and restart what dies.

    It is looked for on PATH, in NVIDIA's container, and in the nvidia-pytriton wheel.

    Example: [cyan]tritome triton --model-repository model_repository[/]
    """
    from clients.commands.serve import run_triton  # noqa: PLC0415

    run_triton(
        model_repository,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        host=host,
    )


@app.command(rich_help_panel="Serve")
def gateway(config: Config = _CONFIG) -> None:
    """Run the DICOM gateway: studies in, results out.

    Example: [cyan]tritome gateway --config gateway.yaml[/]
    """
    from clients.commands.serve import run_gateway  # noqa: PLC0415

    run_gateway(config)


@app.command(rich_help_panel="Serve")
def up(
    config: Config = _CONFIG,
    model_repository: Repository = _REPOSITORY,
    http_port: Annotated[int, typer.Option(help="Triton's; 0 takes a free one.")] = 8000,
    metrics_port: Annotated[int, typer.Option(help="Triton's; 0 takes a free one.")] = 8002,
) -> None:
    """Run Triton and the gateway together; restart either when it dies.

    Ctrl-C ends both in order and leaves nothing behind. 'tritome init' writes the settings.

    Example: [cyan]tritome up --config gateway.yaml[/]
    """
    from clients.commands.serve import run_up  # noqa: PLC0415

    run_up(config, model_repository, http_port=http_port, metrics_port=metrics_port)


@app.command(rich_help_panel="Use")
def send(  # noqa: PLR0917 - an option each
    paths: Annotated[list[Path], typer.Argument(metavar="FOLDER|FILE...")],
    to: Annotated[str, typer.Option("--to", metavar="HOST:PORT", help="The receiver.")] = (
        "127.0.0.1:11112"
    ),
    called: Annotated[str, typer.Option(help="The AE title we call.")] = "LUNG",
    calling: Annotated[str, typer.Option(help="Our own AE title.")] = "TRITOME_SEND",
    timeout_s: Annotated[float, typer.Option(help="Patience with each answer.")] = 60.0,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on: send what appears in the folders later.")
    ] = False,
    memory: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --watch: where it is noted what was sent."),
    ] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Call by DICOM TLS.")] = False,
    tls_ca: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Who signs the receiver's certificate.")
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Ours, if the receiver asks for one.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="PEM", help="Its key.")] = None,
    tls_any_host: Annotated[
        bool, typer.Option("--tls-any-host", help="Its certificate needn't name the host.")
    ] = False,
) -> None:
    """Send DICOM files by C-STORE, byte for byte as they are.

    The exit code is 1 when anything was not accepted.

    Example: [cyan]tritome send ~/chest_ct --to 127.0.0.1:11112 --called LUNG[/]
    """
    from clients.commands.send import run  # noqa: PLC0415
    from clients.commands.send import watch as go_on  # noqa: PLC0415
    from clients.send import Peer, Tls  # noqa: PLC0415

    secured = (
        Tls(tls_ca, tls_certificate, tls_key, check_hostname=not tls_any_host)
        if tls or tls_ca or tls_certificate
        else None
    )
    peer = Peer.parse(to, called, calling, secured)
    if watch:
        go_on(paths, peer, timeout_s=timeout_s, memory=memory)
    else:
        run(paths, peer, timeout_s=timeout_s)


@app.command(rich_help_panel="Use")
def fetch(
    *,
    peer: Annotated[
        str, typer.Option("--from", metavar="PACS", help="Its name under 'pacs' in gateway.yaml.")
    ],
    study: Annotated[str | None, typer.Option(metavar="UID", help="Study Instance UID.")] = None,
    accession: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="Accession number.")
    ] = None,
    query: Annotated[
        list[str] | None,
        typer.Option(metavar="KEYWORD=VALUE", help="What to look for; may be repeated."),
    ] = None,
    series: Annotated[
        list[str] | None,
        typer.Option(metavar="UID", help="Only this series; may be repeated."),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="AE_TITLE", help="Of ours; else as gateway.yaml says."),
    ] = None,
    config: Config = _CONFIG,
) -> None:
    """Let the running gateway fetch studies from a PACS.

    By C-FIND and C-MOVE, or by QIDO-RS and WADO-RS, as gateway.yaml says of the PACS.

    Example: [cyan]tritome fetch --from archive --accession A1234[/]
    """
    from clients.commands.fetch import run  # noqa: PLC0415

    run(
        config,
        peer,
        study=study,
        accession=accession,
        query=query or [],
        series=series or [],
        called=to,
    )


@app.command(rich_help_panel="Use")
def infer(
    source: Annotated[Path, typer.Argument(metavar="FOLDER|FILE.nii.gz")],
    pipeline: Annotated[str, typer.Option(help="Name of the ensemble.")] = "lung_ct",
    triton_url: Annotated[
        str, typer.Option("--triton", metavar="HOST:PORT", help="Its gRPC port, on this machine.")
    ] = "127.0.0.1:8001",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="seg.dcm or mask.nii.gz; the ending decides."),
    ] = None,
    series: Annotated[
        str | None, typer.Option(help="Series Instance UID, where the folder holds several.")
    ] = None,
) -> None:
    """Send one study or NIfTI image straight to Triton, through shared memory.

    Example: [cyan]tritome infer ct.nii.gz --output mask.nii.gz[/]
    """
    from clients.commands.infer import run  # noqa: PLC0415

    run(source, pipeline, triton_url, output, series)


def main() -> None:
    """Runs the command line; every error we have a name for is one red sentence."""
    chosen = Options()
    # Bundles are older than the MONAI that reads them; it says so for each of their transforms,
    # to people who can't change either.
    warnings.filterwarnings("ignore", category=FutureWarning, module="monai")
    try:
        app(obj=chosen)
    except (ClientError, GatewayError, BuilderError) as error:
        _fail(error, chosen)
    except ModuleNotFoundError as error:
        extra = _EXTRA_OF.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        _fail(MissingExtra(error.name or "", extra), chosen)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def _fail(error: Exception, chosen: Options) -> None:
    if chosen.debug:
        err.print_exception()
    complain(str(error))
    sys.exit(1)


if __name__ == "__main__":
    main()
