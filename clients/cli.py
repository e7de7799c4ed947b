"""The `tritome` command: what can be asked for, and how troubles are said.

In: a command line. Out: an exit code: 0 done, 1 not done and the red sentence says why and
what to do, 2 the command line itself is wrong, 130 ended by Ctrl-C. Each command's work is
in `clients.commands`; its packages are imported only when it is called, so `--help` is
quick and a gateway-only installation needs neither torch nor MONAI.
"""

from __future__ import annotations

import importlib.metadata
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from clients import cli_builder
from clients.console import complain, err
from clients.errors import ClientError, MissingExtra
from dicom_gateway.errors import GatewayError
from dicom_gateway.records import JobState
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
jobs_app = typer.Typer(
    no_args_is_help=True,
    help="Look at the gateway's jobs: list, show, watch; start one again, or end it.",
)
app.add_typer(jobs_app, name="jobs", rich_help_panel="Use")
series_app = typer.Typer(
    no_args_is_help=True,
    help="What was decided about a series and why; declare one complete by hand.",
)
app.add_typer(series_app, name="series", rich_help_panel="Use")
route_app = typer.Typer(
    no_args_is_help=True, help="Which rule of gateway.yaml takes a series, and why."
)
app.add_typer(route_app, name="route", rich_help_panel="Use")
store_app = typer.Typer(
    no_args_is_help=True,
    help="Look after what the gateway keeps: check it, mend its index, remove what is due.",
)
app.add_typer(store_app, name="store", rich_help_panel="Use")
cli_builder.register(app)

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
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Its id, or the beginning of it.")]
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


@jobs_app.command("list")
def jobs_list(
    config: Config = _CONFIG,
    state: Annotated[
        list[JobState] | None, typer.Option(help="Only jobs in this state; may be repeated.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
) -> None:
    """List jobs, newest first, and the series that made none.

    Example: [cyan]tritome jobs list --state failed[/]
    """
    from clients.commands.jobs import list_jobs  # noqa: PLC0415

    list_jobs(config, state or [], limit)


@jobs_app.command("show")
def jobs_show(job: JobId, config: Config = _CONFIG) -> None:
    """Tell one job's story, with the time of each stage.

    Example: [cyan]tritome jobs show 3fa9[/]
    """
    from clients.commands.jobs import show  # noqa: PLC0415

    show(config, job)


@jobs_app.command("watch")
def jobs_watch(
    config: Config = _CONFIG,
    every_s: Annotated[float, typer.Option(min=0.2, help="Seconds between looks.")] = 1.0,
) -> None:
    """Keep showing the list until Ctrl-C.

    Example: [cyan]tritome jobs watch[/]
    """
    from clients.commands.jobs import watch  # noqa: PLC0415

    watch(config, every_s)


@jobs_app.command("retry")
def jobs_retry(job: JobId, config: Config = _CONFIG) -> None:
    """Start a failed or cancelled job again.

    Example: [cyan]tritome jobs retry 3fa9[/]
    """
    from clients.commands.jobs import retry  # noqa: PLC0415

    retry(config, job)


@jobs_app.command("cancel")
def jobs_cancel(job: JobId, config: Config = _CONFIG) -> None:
    """End a job by hand.

    Example: [cyan]tritome jobs cancel 3fa9[/]
    """
    from clients.commands.jobs import cancel  # noqa: PLC0415

    cancel(config, job)


@store_app.command("check")
def store_check(config: Config = _CONFIG) -> None:
    """Compare every kept file with its digest and with the index.

    It only looks, also beside a running gateway. The exit code is 1 when anything
    acknowledged is missing, damaged or unknown to the index.

    Example: [cyan]tritome store check[/]
    """
    from clients.commands.store import run_check  # noqa: PLC0415

    if not run_check(config):
        raise typer.Exit(1)


@store_app.command("rebuild")
def store_rebuild(config: Config = _CONFIG) -> None:
    """Make the index again from the files, after it was lost or damaged.

    What the index knows already stays. The gateway must be stopped.

    Example: [cyan]tritome store rebuild[/]
    """
    from clients.commands.store import run_rebuild  # noqa: PLC0415

    run_rebuild(config)


@store_app.command("conflicts")
def store_conflicts(config: Config = _CONFIG) -> None:
    """List objects that came with other bytes under a known SOP Instance UID.

    Example: [cyan]tritome store conflicts[/]
    """
    from clients.commands.store import run_conflicts  # noqa: PLC0415

    run_conflicts(config)


@store_app.command("purge")
def store_purge(
    config: Config = _CONFIG,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
) -> None:
    """Remove now what store.retention in gateway.yaml lets go.

    The running gateway does the same by itself, every few minutes.

    Example: [cyan]tritome store purge --dry-run[/]
    """
    from clients.commands.store import run_purge  # noqa: PLC0415

    run_purge(config, dry_run=dry_run)


@series_app.command("show")
def series_show(
    uid: Annotated[str, typer.Argument(metavar="UID", help="Series Instance UID.")],
    config: Config = _CONFIG,
) -> None:
    """Tell what was decided about a series, when and why.

    Example: [cyan]tritome series show 1.2.840.113619.2.55.3[/]
    """
    from clients.commands.series import show  # noqa: PLC0415

    show(config, uid)


@series_app.command("complete")
def series_complete(
    uid: Annotated[str, typer.Argument(metavar="UID", help="Of the series, or of a study.")],
    config: Config = _CONFIG,
    called: Annotated[
        str | None, typer.Option(help="Our AE title, where it was sent to several.")
    ] = None,
) -> None:
    """Declare a series that still waits complete as it is, or a whole study.

    Example: [cyan]tritome series complete 1.2.840.113619.2.55.3[/]
    """
    from clients.commands.series import complete  # noqa: PLC0415

    complete(config, uid, called)


@route_app.command("explain")
def route_explain(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER")],
    config: Config = _CONFIG,
    called: Annotated[str | None, typer.Option(help="Which of our AE titles is called.")] = None,
    calling: Annotated[str, typer.Option(help="The sender's AE title.")] = "TRITOME_SEND",
    show_values: Annotated[
        bool, typer.Option("--show-values", help="Also values that say who the patient is.")
    ] = False,
) -> None:
    """Say which rules take the series in a folder, and why the others don't.

    Needs neither a running gateway nor Triton; nothing is sent.

    Example: [cyan]tritome route explain ~/chest_ct --called LUNG[/]
    """
    from clients.commands.route import explain  # noqa: PLC0415

    explain(folder, config, called=called, calling=calling, show_values=show_values)


@route_app.command("schema")
def route_schema() -> None:
    """Print the JSON Schema of gateway.yaml, for editors that check it.

    Example: [cyan]tritome route schema > gateway.schema.json[/]
    """
    from clients.commands.route import print_schema  # noqa: PLC0415

    print_schema()


def main() -> None:
    """Runs the command line; every error we have a name for is one red sentence."""
    chosen = Options()
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
