"""The builder's commands: build, inspect, graph, verify, models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

_PANEL = "Build"
_REPOSITORY = Path("model_repository")
_URL = "127.0.0.1:8001"

models_app = typer.Typer(
    no_args_is_help=True,
    help="Look at the models, load and unload them, go back to an earlier version.",
)

Bundle = Annotated[
    str,
    typer.Argument(
        help="A MONAI bundle's folder or zip, a pipeline's YAML, or a built-in one: lung_ct."
    ),
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
Configs = Annotated[
    list[str] | None,
    typer.Option(
        "--config",
        help="A config in the bundle; several are merged, later ones win.",
        metavar="FILE",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Change a value of the config, such as inferer.roi_size=\\[64,64,64].",
        metavar="KEY=VALUE",
    ),
]
Runtime = Annotated[
    Literal["auto", "torch", "openvino", "onnxruntime", "tensorrt", "torch_compile"],
    typer.Option(help="What computes the network; auto: OpenVINO on a CPU, torch on a GPU."),
]
Precision = Annotated[
    Literal["f32", "bf16", "f16"],
    typer.Option(help="Of the network's arithmetic; below f32 results differ a little."),
]
NetworkBackend = Annotated[
    Literal["python", "onnxruntime", "tensorrt", "pytorch"] | None,
    typer.Option(
        help="Make the network a Triton model of its own, on this backend of Triton's, so that "
        "windows of concurrent studies merge into batches."
    ),
]
InputDatatype = Annotated[
    Literal["INT16", "FP32"],
    typer.Option(help="Of stored pixel values; FP32 also takes series of floating point pixels."),
]
Instances = Annotated[
    int,
    typer.Option(
        min=1,
        help="How many instances of the inferer compute beside each other. Each has a copy of the "
        "network; with one alone an urgent study waits for the running one.",
    ),
]
Trust = Annotated[
    bool, typer.Option("--trust", help="Build a bundle that has changed since the last time.")
]
RandomWeights = Annotated[
    int | None,
    typer.Option(
        help="Seed of random weights for a bundle without any; its results mean nothing.",
        metavar="SEED",
    ),
]
Url = Annotated[str, typer.Option(help="Triton's gRPC host:port.")]


def _print_schema(wanted: bool) -> None:
    if wanted:
        from ensemble_builder.spec import schema_text  # noqa: PLC0415

        typer.echo(schema_text(), nl=False)
        raise typer.Exit


def build(
    bundle: Bundle,
    *,
    schema: Annotated[
        bool,
        typer.Option(
            "--schema",
            callback=_print_schema,
            is_eager=True,
            help="Print the JSON Schema of a pipeline's YAML and exit.",
        ),
    ] = False,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The model repository to write into.")
    ] = _REPOSITORY,
    name: Annotated[str | None, typer.Option(help="The ensemble's name in Triton.")] = None,
    configs: Configs = None,
    settings: Settings = None,
    runtime: Runtime = "auto",
    precision: Precision = "f32",
    network_backend: NetworkBackend = None,
    random_weights: RandomWeights = None,
    input_datatype: InputDatatype = "INT16",
    instances: Instances = 2,
    trust: Trust = False,
    replace: Annotated[
        bool, typer.Option(help="Drop earlier versions instead of adding one.")
    ] = False,
) -> None:
    """Turn a MONAI bundle into a Triton ensemble.

    What is there already stays untouched; a change adds a version, and
    [cyan]tritome models roll[/] goes back.

    Example: [cyan]tritome build lung_ct --output model_repository[/]

    Example: [cyan]tritome build spleen.zip --set inferer.overlap=0.25 --runtime torch[/]
    """
    from clients.commands.build import run  # noqa: PLC0415
    from clients.commands.bundles import options  # noqa: PLC0415

    chosen = options(
        configs=configs or (),
        settings=settings or (),
        runtime=runtime,
        precision=precision,
        network_backend=network_backend or "",
        name=name,
        random_weights=random_weights,
        input_datatype=input_datatype,
        instances=instances,
    )
    run(bundle, output, chosen, trust=trust, replace=replace)


def inspect(
    bundle: Bundle,
    *,
    configs: Configs = None,
    settings: Settings = None,
    runtime: Runtime = "auto",
    random_weights: RandomWeights = None,
    trust: Trust = False,
) -> None:
    """Say what a bundle takes, does and gives, and where each transform will run.

    Writes nothing.

    Example: [cyan]tritome inspect my_bundle[/]
    """
    from clients.commands.bundles import options  # noqa: PLC0415
    from clients.commands.inspect import run  # noqa: PLC0415

    chosen = options(
        configs=configs or (),
        settings=settings or (),
        runtime=runtime,
        random_weights=random_weights,
    )
    run(bundle, chosen, trust=trust)


def graph(
    target: Annotated[
        str, typer.Argument(help="A pipeline in the repository, a bundle, or a pipeline's YAML.")
    ],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture.")] = Path(
        "pipeline.svg"
    ),
    model_repository: Repository = _REPOSITORY,
    configs: Configs = None,
    settings: Settings = None,
    random_weights: RandomWeights = None,
    trust: Trust = False,
) -> None:
    """Draw a pipeline: its models and every tensor between them (SVG).

    Example: [cyan]tritome graph lung_ct -o lung_ct.svg[/]
    """
    from clients.commands.bundles import options  # noqa: PLC0415
    from clients.commands.inspect import draw  # noqa: PLC0415

    chosen = options(configs=configs or (), settings=settings or (), random_weights=random_weights)
    draw(target, output, model_repository, chosen, trust=trust)


def verify(
    target: Annotated[
        str | None,
        typer.Argument(help="A pipeline in the repository, or a bundle to build aside."),
    ] = None,
    *,
    every: Annotated[
        Path | None,
        typer.Option("--all", help="Verify every bundle of a folder and print a table."),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option("--input", help="A DICOM folder or NIfTI file; generated where not given."),
    ] = None,
    model_repository: Repository = _REPOSITORY,
    configs: Configs = None,
    settings: Settings = None,
    runtimes: Annotated[
        list[str] | None,
        typer.Option("--runtime", help="For a bundle: what to serve with; may be repeated."),
    ] = None,
    random_weights: RandomWeights = None,
    markdown: Annotated[
        Path | None, typer.Option(help="With --all: write the table there, too.")
    ] = None,
    trust: Trust = False,
) -> None:
    """Prove that what Triton serves is what MONAI computes in one process.

    Compares after each step, and writes a parity certificate beside a pipeline of the
    repository. The exit code is 1 where they differ.

    Example: [cyan]tritome verify lung_ct --input ~/chest_ct[/]

    Example: [cyan]tritome verify --all ~/bundles --random-weights 0[/]
    """
    from clients.commands.bundles import options  # noqa: PLC0415
    from clients.commands.verify import run, run_all  # noqa: PLC0415

    if (target is None) == (every is None):
        raise typer.BadParameter("name a pipeline or a bundle, or give --all FOLDER")
    if every is not None:
        equal = run_all(every, markdown=markdown, random_weights=random_weights or 0, trust=trust)
    else:
        chosen = options(
            configs=configs or (), settings=settings or (), random_weights=random_weights
        )
        equal = run(
            str(target),
            model_repository,
            chosen,
            image=image,
            runtimes=runtimes or ("torch", "auto"),
            trust=trust,
        )
    if not equal:
        raise typer.Exit(1)


@models_app.command("list")
def models_list(model_repository: Repository = _REPOSITORY, url: Url = _URL) -> None:
    """Each model with its versions, and what Triton says of it.

    Example: [cyan]tritome models list[/]
    """
    from clients.commands.models import list_models  # noqa: PLC0415

    list_models(model_repository, url)


@models_app.command("load")
def models_load(pipeline: str, model_repository: Repository = _REPOSITORY, url: Url = _URL) -> None:
    """Load a pipeline, or load it anew after a build. It isn't served meanwhile; jobs wait.

    Example: [cyan]tritome models load lung_ct[/]
    """
    from clients.commands.models import load  # noqa: PLC0415

    load(model_repository, pipeline, url)


@models_app.command("unload")
def models_unload(
    pipeline: str, model_repository: Repository = _REPOSITORY, url: Url = _URL
) -> None:
    """Unload a pipeline and the models that only it uses.

    Example: [cyan]tritome models unload lung_ct[/]
    """
    from clients.commands.models import unload  # noqa: PLC0415

    unload(model_repository, pipeline, url)


@models_app.command("roll")
def models_roll(
    pipeline: str,
    to: Annotated[
        int | None, typer.Option(help="The version; the one before where not given.")
    ] = None,
    model_repository: Repository = _REPOSITORY,
    url: Url = _URL,
) -> None:
    """Go back to an earlier version of a pipeline, or forward again.

    Example: [cyan]tritome models roll lung_ct --to 1[/]
    """
    from clients.commands.models import roll  # noqa: PLC0415

    roll(model_repository, pipeline, to, url)


def bench(
    *,
    full: Annotated[bool, typer.Option("--full", help="300 slices, and all peers: hours.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A smoke test.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help="One part (models, studies, intake, ...); may be given again."),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(help="How often each side is counted.", metavar="N")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report.", metavar="FOLDER")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="An earlier report; says which change is beyond noise.", metavar="JSON"),
    ] = None,
    bundles: Annotated[
        list[Path] | None, typer.Option("--bundle", help="A further MONAI bundle.")
    ] = None,
    volumes: Annotated[
        list[Path] | None, typer.Option("--volume", help="A further volume: a DICOM folder.")
    ] = None,
    database_urls: Annotated[
        list[str] | None,
        typer.Option(
            "--database-url", help="For the queue, too: a PostgreSQL database that is EMPTIED."
        ),
    ] = None,
) -> None:
    """Measure this machine: models, studies, intake, the queue, our steps beside MONAI's, peers.

    Needs perf_analyzer, which 'make bench' installs.

    Example: [cyan]tritome bench --full --against earlier/bench.json[/]
    """
    from clients.commands.bench import run  # noqa: PLC0415

    arguments = [flag for flag, given in (("--full", full), ("--quick", quick)) if given]
    for flag, values in (
        ("--only", only or []),
        ("--rounds", [rounds] if rounds else []),
        ("--out", [out] if out else []),
        ("--against", [against] if against else []),
        ("--bundle", bundles or []),
        ("--volume", volumes or []),
        ("--database-url", database_urls or []),
    ):
        for value in values:
            arguments += [flag, str(value)]
    raise typer.Exit(run(arguments))


def register(app: typer.Typer) -> None:
    """Adds the builder's commands to the program."""
    for command in (build, inspect, graph, verify, bench):
        app.command(rich_help_panel=_PANEL)(command)
    app.add_typer(models_app, name="models", rich_help_panel=_PANEL)
