"""The `tritome` command: its help, its exit codes, and how it says troubles."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clients.cli import app, version
from clients.commands.serve import gateway_program, write_example
from dicom_gateway.config import load_settings
from ensemble_builder.version import BUILDER_VERSION
from tests.support.bundles import a_segmentation_bundle

COMMANDS = [
    ["demo"],
    ["doctor"],
    ["init"],
    ["build"],
    ["inspect"],
    ["graph"],
    ["verify"],
    ["models", "list"],
    ["models", "load"],
    ["models", "unload"],
    ["models", "roll"],
    ["triton"],
    ["gateway"],
    ["up"],
    ["send"],
    ["fetch"],
    ["bench"],
    ["infer"],
    ["jobs", "list"],
    ["jobs", "show"],
    ["jobs", "watch"],
    ["jobs", "retry"],
    ["jobs", "cancel"],
    ["deliveries"],
    ["series", "show"],
    ["series", "complete"],
    ["route", "explain"],
    ["route", "schema"],
]
HEAVY = ("torch", "monai", "highdicom", "pydicom", "pynetdicom", "tritonclient", "sqlalchemy")


def tritome(
    *arguments: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the command as a person would, in a process of its own."""
    here = {"PYTHONPATH": str(Path(__file__).resolve().parents[3]), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "clients", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=cwd,
        env=here | environment,
    )


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_of_each_command_teaches_by_an_example(command: list[str]) -> None:
    """Every command's help holds a line that can be copied and run."""
    shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert f"Example: tritome {' '.join(command)}" in shown.output


def test_every_command_is_in_the_help_test() -> None:
    """A command added later must be listed above, and so have an example."""
    named = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert named == {command[0] for command in COMMANDS if len(command) == 1}


def test_version_is_the_builders() -> None:
    """`--version` says one version for the whole distribution."""
    shown = CliRunner().invoke(app, ["--version"])
    assert shown.output == f"tritome {version()}\n"
    assert version() == BUILDER_VERSION


def test_help_imports_nothing_heavy() -> None:
    """`tritome --help` is quick because no library is loaded that it doesn't need."""
    program = (
        "import sys; from clients.cli import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        f"print('LOADED', [name for name in {HEAVY} if name in sys.modules])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[3],
    )
    assert shown.stdout.endswith("LOADED []\n")


def test_an_error_is_one_sentence_and_exit_code_1(tmp_path: Path) -> None:
    """A known error is said without a traceback, on stderr."""
    answer = tritome("jobs", "list", "--config", str(tmp_path / "none.yaml"))
    assert answer.returncode == 1
    assert answer.stderr.startswith("Error: ")
    assert "none.yaml: can't be read" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert answer.stdout == ""


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    """`--debug` adds where the error came from."""
    answer = tritome("--debug", "jobs", "list", "--config", str(tmp_path / "none.yaml"))
    assert answer.returncode == 1
    assert "load_settings" in answer.stderr


def test_a_wrong_command_line_is_exit_code_2() -> None:
    """Usage errors are told apart from failures."""
    assert tritome("send").returncode == 2
    assert tritome("jobs", "list", "--state", "lost").returncode == 2


def test_a_missing_extra_says_what_to_install(tmp_path: Path) -> None:
    """A command whose packages aren't installed names the extra that brings them."""
    program = (
        "import sys\n"
        "for name in ('torch', 'monai', 'scipy'): sys.modules[name] = None\n"
        "sys.argv = ['tritome', 'demo', '--output', sys.argv[1]]\n"
        "from clients.cli import main; main()"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).resolve().parents[3],
    )
    assert answer.returncode == 1
    assert "pip install 'tritome[" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_init_writes_settings_that_the_gateway_reads_and_never_overwrites(tmp_path: Path) -> None:
    """The commented example is valid, and a second `init` leaves it alone."""
    config = tmp_path / "gateway.yaml"
    assert tritome("init", "--config", str(config)).returncode == 0
    settings = load_settings(config)
    assert [title.ae_title for title in settings.dicom.scp.ae_titles] == ["LUNG"]
    config.write_text("mine", encoding="utf-8")
    again = tritome("init", "--config", str(config))
    assert again.returncode == 1
    assert "is there already" in again.stderr
    assert config.read_text(encoding="utf-8") == "mine"


def test_every_line_of_the_example_can_be_taken(tmp_path: Path) -> None:
    """Who takes all the # away gets settings that the gateway reads."""
    config = tmp_path / "gateway.yaml"
    write_example(config)
    a_setting = re.compile(r"^( *)# ((?:- )?(?:[a-z-]+:|\{)| +[a-z#-])", re.MULTILINE)
    text, taken = a_setting.subn(r"\1\2", config.read_text(encoding="utf-8"))
    assert taken > 100

    config.write_text(text.replace("called: AI", "called: LUNG"), encoding="utf-8")

    assert load_settings(config).jobs.workers == 1


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("triton.example:8001", "tritome gateway"),
        ("[::1]:8001", "set it to 127.0.0.1:8001"),
        ("127.0.0.1:0", "write host and port, such as 127.0.0.1:8001"),
        ("127.0.0.1:80010", "write host and port, such as 127.0.0.1:8001"),
    ],
)
def test_up_refuses_a_triton_that_it_could_not_start_there(
    tmp_path: Path, url: str, said: str
) -> None:
    """Jobs would wait forever for a server that listens elsewhere; it says what to write."""
    config = tmp_path / "gateway.yaml"
    tritome("init", "--config", str(config))
    text = config.read_text(encoding="utf-8").replace("127.0.0.1:8001", f'"{url}"')
    config.write_text(text, encoding="utf-8")
    answer = tritome("up", "--config", str(config), "--model-repository", str(models(tmp_path)))
    assert answer.returncode == 1
    assert said in answer.stderr


def models(folder: Path) -> Path:
    """What looks like a model repository from outside."""
    (folder / "models" / "lung_ct").mkdir(parents=True)
    (folder / "models" / "lung_ct" / "config.pbtxt").touch()
    return folder / "models"


def test_up_says_at_once_that_there_are_no_models(tmp_path: Path) -> None:
    """Before anything is started; with the command that writes some."""
    tritome("init", "--config", str(tmp_path / "gateway.yaml"))
    answer = tritome("up", cwd=tmp_path)
    assert answer.returncode == 1
    assert answer.stderr.startswith("Error: model_repository holds no models")
    assert "tritome build lung_ct" in answer.stderr
    assert answer.stdout == ""


def test_up_says_at_once_that_a_pipeline_is_not_there(tmp_path: Path) -> None:
    """A typo in gateway.yaml, told with the name that was meant, before a study waits for it."""
    config = tmp_path / "gateway.yaml"
    tritome("init", "--config", str(config))
    text = config.read_text(encoding="utf-8").replace("[lung_ct]", "[lung_tc]")
    config.write_text(text, encoding="utf-8")
    answer = tritome("up", "--config", str(config), "--model-repository", str(models(tmp_path)))
    assert answer.returncode == 1
    assert "leads LUNG to the pipeline 'lung_tc'" in answer.stderr
    assert "did you mean 'lung_ct'?" in answer.stderr


@pytest.mark.parametrize("which", ["dicom.scp.port", "web.port"])
def test_up_says_at_once_that_a_port_is_in_use(tmp_path: Path, which: str) -> None:
    """By its number, and by where another one is written."""
    config = tmp_path / "gateway.yaml"
    tritome("init", "--config", str(config))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        text = config.read_text(encoding="utf-8")
        if which == "dicom.scp.port":
            text = text.replace("port: 11112", f"port: {port}")
        else:
            text += f"web: {{enabled: true, port: {port}}}\n"
        config.write_text(text, encoding="utf-8")
        answer = tritome("up", "--config", str(config), "--model-repository", str(models(tmp_path)))
    assert answer.returncode == 1
    assert f"127.0.0.1 port {port} can't be had (Address already in use)" in answer.stderr
    assert f"{which} in gateway.yaml" in answer.stderr


def test_settings_that_are_not_there_point_to_init(tmp_path: Path) -> None:
    """The first mistake that everybody makes."""
    answer = tritome("up", cwd=tmp_path)
    assert "'tritome init' writes one" in answer.stderr
    (tmp_path / "gateway.yaml").touch()
    assert "holds no settings" in tritome("up", cwd=tmp_path).stderr


def test_a_typo_in_the_settings_is_told_with_its_line_and_the_right_word(tmp_path: Path) -> None:
    """No parser's words, no key that is suggested in place of itself."""
    config = tmp_path / "gateway.yaml"
    tritome("init", "--config", str(config))
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("ae-titles:", "ae-title:"), encoding="utf-8")
    answer = tritome("up", cwd=tmp_path)
    assert "dicom.scp.ae-title: unknown key; did you mean 'ae-titles'?" in answer.stderr
    config.write_text(text.replace("pipelines: [", "pipelines ["), encoding="utf-8")
    line = 1 + text[: text.index("pipelines: [")].count("\n")
    answer = tritome("up", cwd=tmp_path)
    assert f"no valid YAML: lines {line} to {line + 1}: could not find" in answer.stderr


def test_children_find_tritome_first_and_then_what_the_user_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PYTHONPATH of the user's own, with a bundle's helpers say, still counts."""
    here = str(Path(__file__).resolve().parents[3])
    monkeypatch.setattr(sys, "path", [here, "/usr/lib"])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    theirs = gateway_program(tmp_path / "gateway.yaml").environment["PYTHONPATH"]
    assert theirs == f"{here}{os.pathsep}{tmp_path}"
    monkeypatch.delenv("PYTHONPATH")
    assert gateway_program(tmp_path / "gateway.yaml").environment["PYTHONPATH"] == here


def test_building_a_bundle_says_nothing_of_monais_defaults(tmp_path: Path) -> None:
    """A deprecation for each transform of an old bundle is nothing that its user can mend."""
    bundle = a_segmentation_bundle(tmp_path / "b")
    home = str(tmp_path / "home")
    built = tritome("build", str(bundle), "-o", "repository", cwd=tmp_path, XDG_DATA_HOME=home)
    assert built.returncode == 0, built.stderr
    assert "Warning" not in built.stderr
