"""The `tritome` command: its help, its exit codes, and how it says troubles."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clients.cli import app, version
from dicom_gateway.config import load_settings
from ensemble_builder.version import BUILDER_VERSION

COMMANDS = [
    ["demo"],
    ["doctor"],
    ["init"],
    ["build"],
    ["triton"],
    ["gateway"],
    ["up"],
    ["send"],
    ["infer"],
    ["jobs", "list"],
    ["jobs", "show"],
    ["jobs", "watch"],
    ["jobs", "retry"],
    ["jobs", "cancel"],
]
HEAVY = ("torch", "monai", "highdicom", "pydicom", "pynetdicom", "tritonclient", "sqlalchemy")


def tritome(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the command as a person would, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "clients", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=cwd,
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[3]), "COLUMNS": "200"},
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


def test_up_refuses_a_triton_on_another_machine(tmp_path: Path) -> None:
    """`up` can only start a Triton here, and says what to do instead."""
    config = tmp_path / "gateway.yaml"
    tritome("init", "--config", str(config))
    text = config.read_text(encoding="utf-8").replace("127.0.0.1:8001", "triton.example:8001")
    config.write_text(text, encoding="utf-8")
    answer = tritome("up", "--config", str(config))
    assert answer.returncode == 1
    assert "tritome gateway" in answer.stderr
