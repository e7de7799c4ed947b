"""Mutated instances through the door and on to assembling: no crash, no error without a name.

`TRITOME_FUZZ` says how many, `TRITOME_FUZZ_FROM` from which number on; the same number is
always the same instance.
"""

from __future__ import annotations

import gc
import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import structlog.testing

from clients.send import Found, Outcome, Peer, find_instances, send
from dicom_gateway.assemble.arena import Arena
from dicom_gateway.assemble.completeness import gather
from dicom_gateway.assemble.decoders import DecoderPool
from dicom_gateway.assemble.volume import assemble_volume
from dicom_gateway.errors import GatewayError
from dicom_gateway.records import Instance, Series
from tests.support.dicom import CANARY, a_ct_series, write_series
from tests.support.gateway import an_open_door
from tests.support.mutations import a_mutant
from tests.support.peers import echoscu
from tests.support.road import a_gateway
from tests.support.series import a_kept_series

pytestmark = pytest.mark.system
MUTANTS = int(os.environ.get("TRITOME_FUZZ", "200"))
FIRST = int(os.environ.get("TRITOME_FUZZ_FROM", "0"))
SENDERS = 3
GROWTH_LIMIT_BYTES = 64 << 20
ANSWERS = frozenset((0x0000, 0xA900, 0xC000))


def mutants(folder: Path, first: int, count: int) -> list[Found]:
    """Files of the mutants from number `first` on."""
    folder.mkdir()
    return [a_mutant(number).write(folder) for number in range(first, first + count)]


def send_all(found: Sequence[Found], port: int, calling: str = "SCANNER") -> list[Outcome]:
    """Sends them in associations of some dozens; what got no answer is sent again, twice.

    On a busy machine pynetdicom's client now and then drops an answer itself: its reactor
    wakes up late and takes it.
    """
    peer = Peer("127.0.0.1", port, "LUNG", calling)
    outcomes: dict[Path, Outcome] = {}
    waiting = list(found)
    for _ in range(3):
        for first in range(0, len(waiting), 50):
            for one in send(waiting[first : first + 50], peer, timeout_s=20).outcomes:
                outcomes[one.found.path] = one
        waiting = [one.found for one in outcomes.values() if one.status is None]
    return list(outcomes.values())


@contextmanager
def an_honest_series_beside(folder: Path, port: int) -> Iterator[list[Outcome]]:
    """Sends a true series again and again while the block lasts."""
    found = find_instances(write_series(folder, a_ct_series(12))).instances
    enough = threading.Event()
    outcomes: list[Outcome] = []

    def keep_sending() -> None:
        while True:
            outcomes.extend(send_all(found, port, "HONEST"))
            if enough.wait(0.2):
                return

    thread = threading.Thread(target=keep_sending, daemon=True)
    thread.start()
    try:
        yield outcomes
    finally:
        enough.set()
        thread.join(120)


def test_every_mutant_gets_an_answer_and_honest_senders_notice_nothing(tmp_path: Path) -> None:
    """Each is kept byte for byte or refused by name; memory stays what it was."""
    files = mutants(tmp_path / "mutants", FIRST, MUTANTS)
    with an_open_door(tmp_path / "store") as door, structlog.testing.capture_logs() as logs:
        send_all(files[:5], door.port)  # what is loaded once is loaded now
        gc.collect()
        before_bytes = psutil.Process().memory_info().rss
        parts: list[list[Outcome]] = [[] for _ in range(SENDERS)]

        def one_sender(number: int) -> None:
            parts[number] = send_all(files[5 + number :: SENDERS], door.port)

        with an_honest_series_beside(tmp_path / "honest", door.port) as honest:
            threads = [threading.Thread(target=one_sender, args=(n,)) for n in range(SENDERS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        gc.collect()
        growth_bytes = psutil.Process().memory_info().rss - before_bytes
        outcomes = [outcome for part in parts for outcome in part]

        answers = Counter(outcome.status for outcome in outcomes)
        lost = [(o.found.path.stem, o.note) for o in outcomes if o.status is None]
        assert lost == [], [log for log in logs if log["log_level"] != "debug"][-20:]
        assert answers.keys() <= ANSWERS, answers
        assert answers[0x0000] > len(outcomes) // 4, "most mutants must get as far as the store"
        assert sum(answers.values()) == MUTANTS - 5
        assert not [log for log in logs if "unforeseen" in log["event"]]
        assert not any(CANARY in str(log) for log in logs)
        assert honest
        assert {outcome.status for outcome in honest} == {0x0000}
        assert growth_bytes < GROWTH_LIMIT_BYTES
        kept = {instance.sop_instance_uid: instance for instance in door.kept}
        for outcome in outcomes:
            if outcome.status == 0x0000:
                path = kept[outcome.found.sop_instance_uid].path
                number = int(outcome.found.path.stem)
                assert path.read_bytes().endswith(a_mutant(number).encoded_dataset)
        below = {path.resolve() for path in (tmp_path / "store").rglob("*")}
        assert {instance.path for instance in kept.values()} <= below


# pydicom warns of a character set that doesn't exist, which here is one more thing to bear.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_assembling_names_what_is_wrong_with_each_mutant(tmp_path: Path) -> None:
    """A volume, or an error of the tree: nothing else comes out of reading a mutant."""
    files = mutants(tmp_path / "mutants", FIRST, MUTANTS)
    honest = a_kept_series(tmp_path / "honest", a_ct_series(3, rows=16, columns=16))
    outcomes: Counter[str] = Counter()
    strange: list[str] = []
    with Arena(32 << 20) as arena, DecoderPool(2) as decoders:
        for found in files:
            series = _with_one_more(honest, found)
            for members in (series.instances[-1:], series.instances):
                code = _assembled(_of(series, members), arena, decoders)
                outcomes[code.partition(":")[0]] += 1
                if code.startswith("strange"):
                    strange.append(f"mutant {found.path.stem}: {code}")
        after = assemble_volume(honest, arena, decoders)
        assert after.shape_kji == (3, 16, 16)
    assert strange == []
    assert len(outcomes) >= 4, f"too few kinds of answers: {outcomes}"


def test_a_running_gateway_lives_through_mutants(tmp_path: Path) -> None:
    """The judge and the door of a real process: alive, an honest study waits for its Triton."""
    count = max(20, MUTANTS // 10)
    files = mutants(tmp_path / "mutants", FIRST, count)
    with a_gateway(tmp_path / "gateway", triton="127.0.0.1:9") as gateway:
        outcomes = send_all(files, gateway.port)
        lost = [(one.found.path.stem, one.note) for one in outcomes if one.status is None]
        assert lost == [], gateway.log()
        assert {outcome.status for outcome in outcomes} <= ANSWERS
        honest = write_series(tmp_path / "honest", a_ct_series(6))
        assert gateway.send(honest).exit_code == 0
        assert echoscu("127.0.0.1", gateway.port, "SCANNER", "LUNG").exit_code == 0
        log = (gateway.folder / "gateway.log").read_text(encoding="utf-8", errors="replace")
        assert gateway.stop() == 0
    for word in ("unforeseen", "thread_died", "not_judged", "not_decided", CANARY):
        assert word not in log


def _with_one_more(honest: Series, found: Found) -> Series:
    one = Instance(
        sop_instance_uid=found.sop_instance_uid,
        sop_class_uid=found.sop_class_uid,
        transfer_syntax_uid=found.transfer_syntax_uid,
        series_instance_uid=honest.series_instance_uid,
        study_instance_uid=honest.study_instance_uid,
        modality="CT",
        path=found.path,
        sha256="",
        size_bytes=found.path.stat().st_size,
    )
    return _of(honest, (*honest.instances, one))


def _of(series: Series, members: tuple[Instance, ...]) -> Series:
    return Series(
        series.series_instance_uid,
        series.study_instance_uid,
        series.modality,
        series.called_ae_title,
        series.calling_ae_title,
        members,
    )


def _assembled(series: Series, arena: Arena, decoders: DecoderPool) -> str:
    try:
        gather(series)
        volume = assemble_volume(series, arena, decoders)
    except GatewayError as error:
        return "strange: a patient attribute in a text" if CANARY in str(error) else error.code
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        return f"strange: {type(error).__name__}: {error}"
    arena.free(volume.image)
    return "volume"
