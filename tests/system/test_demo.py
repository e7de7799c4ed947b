"""`tritome demo` as a person runs it: one command, one process, everything real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from pydicom import dcmread

from tests.support.peers import dciodvfy
from tests.support.processes import running
from tests.support.shared_memory import dev_shm_as_before

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[2]
OURS = ("tritome_",)


@dataclass(frozen=True)
class Demo:
    """One demo that has ended."""

    folder: Path
    exit_code: int
    output: str

    @property
    def report(self) -> dict[str, Any]:
        """report.json."""
        document: dict[str, Any] = json.loads((self.folder / "report.json").read_text("utf-8"))
        return document


def demo(folder: Path, *arguments: str) -> Demo:
    """Runs `tritome demo` and waits for its end."""
    ended = subprocess.run(
        [sys.executable, "-m", "clients", "demo", "--output", str(folder), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=800,
        check=False,
        env={**os.environ, "COLUMNS": "160"},
    )
    return Demo(folder, ended.returncode, ended.stdout)


def processes_with(word: str) -> list[int]:
    """Processes whose command line holds `word`."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if process.info["status"] != psutil.STATUS_ZOMBIE:
            line = " ".join(process.info["cmdline"] or [])
            if word in line and process.pid != os.getpid():
                found.append(process.pid)
    return found


@pytest.fixture(scope="module")
def phantom_demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """The demo with its phantom, run once for the tests below."""
    with dev_shm_as_before(prefixes=OURS, mapped_too=False):
        return demo(tmp_path_factory.mktemp("demo") / "demo_output")


def test_it_ends_well_and_every_check_passes(phantom_demo: Demo) -> None:
    """Exit code 0; positions, references, sides and overlap are all right."""
    assert phantom_demo.exit_code == 0, phantom_demo.output
    checks = phantom_demo.report["checks"]
    assert len(checks) == 6
    assert [check["what"] for check in checks if not check["passed"]] == []
    assert "FAILED" not in phantom_demo.output
    assert set(phantom_demo.report["dice"]) == {"Left lung", "Right lung"}


def test_the_tables_say_what_happened(phantom_demo: Demo) -> None:
    """Each stage has its seconds, each segment its millilitres."""
    stages = phantom_demo.report["seconds"]
    for stage in ("send by C-STORE", "  assemble the volume", "  infer in Triton", "all together"):
        assert f"{stages[stage]:.2f}" in phantom_demo.output
    for segment in phantom_demo.report["segmentation"]["segments"]:
        assert f"{segment['ml']:,.0f}" in phantom_demo.output
        assert segment["ml"] > 500


def test_the_seg_is_valid_and_is_the_one_reported(phantom_demo: Demo) -> None:
    """What the PACS got has no dciodvfy error."""
    (seg,) = phantom_demo.folder.glob("segmentation-*.dcm")
    assert dciodvfy(seg) == []
    reported = phantom_demo.report["segmentation"]["sop_instance_uid"]
    assert dcmread(seg).SOPInstanceUID == reported


def test_the_picture_shows_both_lungs_in_their_colours(phantom_demo: Demo) -> None:
    """Each segment's rim is there, the left lung's to the right of the right one's."""
    picture = Image.open(phantom_demo.folder / "overlay.png").convert("RGB")
    segments = {s["name"]: s for s in phantom_demo.report["segmentation"]["segments"]}
    centre = {}
    axial = picture.crop((0, 64, picture.width // 3, picture.height - 72))
    for name, segment in segments.items():
        xs = [
            n % axial.width
            for n, pixel in enumerate(axial.get_flattened_data())
            if max(abs(a - b) for a, b in zip(pixel, segment["colour_rgb"], strict=True)) < 16
        ]
        assert len(xs) > 200
        centre[name] = sum(xs) / len(xs)
    assert centre["Left lung"] > centre["Right lung"]


def test_a_study_that_is_none_fails_at_once(tmp_path: Path) -> None:
    """A wrong folder is said before anything is started."""
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "letter.txt").write_text("dear doctor", encoding="utf-8")
    failed = demo(tmp_path / "out", "--study", str(tmp_path / "letters"))
    assert failed.exit_code == 1
    assert "no DICOM files under" in failed.output
    assert "Traceback" not in failed.output


def test_a_server_that_cannot_start_ends_the_demo_with_its_last_words(tmp_path: Path) -> None:
    """The reason and the log's last lines are shown, and nothing stays behind."""
    broken = tmp_path / "models" / "lung_ct"
    broken.mkdir(parents=True)
    (broken / "config.pbtxt").write_text('name: "lung_ct"\nbackend: "none"\n', encoding="utf-8")
    with dev_shm_as_before(prefixes=OURS, mapped_too=False):
        failed = demo(tmp_path / "out", "--model-repository", str(tmp_path / "models"))
    assert failed.exit_code == 1
    assert "triton ended 2 times in a row" in " ".join(failed.output.split())
    assert "the last lines of triton" in failed.output
    assert processes_with(str(tmp_path)) == []


def test_ctrl_c_ends_everything(tmp_path: Path) -> None:
    """Interrupted while the servers start: exit code 130, no process and no memory left."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "clients", "demo", "--output", out]
    with dev_shm_as_before(prefixes=OURS, mapped_too=False):
        with running(command, log=tmp_path / "log", stop_timeout_s=90) as ours:
            # The stubs of Triton are the last to appear.
            log = out / "log.txt"
            ours.wait_until(
                lambda: log.exists() and "TRITONBACKEND_ModelInstanceInitialize" in log.read_text(),
                that="Triton loaded its models",
                timeout_s=240,
            )
            ours.process.send_signal(signal.SIGINT)
            assert ours.process.wait(120) == 130, ours.output()
            config = [line for line in log.read_text().splitlines() if "tritome-demo-" in line]
        assert processes_with("tritome-demo-") == [], config
