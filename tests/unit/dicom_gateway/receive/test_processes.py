"""Several receiving processes on one port, as real ones."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from dicom_gateway.config import GatewaySettings, load_settings
from dicom_gateway.receive import Receiver
from dicom_gateway.receive.processes import Child, FromChildren
from dicom_gateway.receiving import receiving_child
from dicom_gateway.records import Arrival, Instance
from tests.support.patience import until
from tests.support.peers import echoscu

SOURCES = 3000
ONE_MESSAGE_BYTES = 64 * 1024


LED_BY_RULES = """
store: {folder: kept}
dicom:
  scp:
    processes: 2
    ae-titles: [{ae-title: AI}]
    sources: [{ae-title: CT1, host-ip: 127.0.0.1}]
    tls: {certificate-file: own.pem, key-file: own.key}
  scu:
    destinations:
      - {name: pacs, host-ip: 127.0.0.1, port: 104, ae-title: PACS, confirm: storage-commitment}
      - {name: cloud, dicomweb: {url: "https://cloud.example"}}
routing:
  rules:
    - name: lungs
      where:
        - {tag: SeriesDescription, matches: "(?i)chest"}
        - {slices: {at-least: 30}}
        - any-of: [{plane: axial}, {tag: KVP, equals: [120, "140"]}]
      destinations: []
      pipelines: [lung_ct]
    - name: pair
      pipelines: [brain_mr]
      roles:
        t1: {where: [{tag: EchoTime, less-than: 30}]}
        t2: {where: [{tag: EchoTime, between: [80, 120]}], choose: thinnest}
assembly: {irregular: {lung_ct: refuse}}
results: {lung_ct: {objects: [segmentation]}}
"""


def test_a_receiving_process_knows_what_the_gateway_knows(tmp_path: Path) -> None:
    """Also of an AE title whose pipelines are left to the rules."""
    path = tmp_path / "gateway.yaml"
    path.write_text(LED_BY_RULES, encoding="utf-8")
    settings = load_settings(path)
    child = receiving_child(settings)
    assert GatewaySettings.model_validate_json(child.greeting) == settings


def two_processes(folder: Path, sources: list[dict[str, str]]) -> GatewaySettings:
    """A gateway with two receiving processes, for these."""
    scp = {
        "host": "127.0.0.1",
        "port": 0,
        "processes": 2,
        "ae-titles": [{"ae-title": "LUNG", "pipelines": ["lung_ct"]}],
        "sources": sources,
    }
    return GatewaySettings.model_validate({"store": {"folder": str(folder)}, "dicom": {"scp": scp}})


def _never_here(_arrival: Arrival) -> Instance:
    raise AssertionError("the children keep")


def test_a_receiving_process_is_told_all_of_a_long_gateway_yaml(tmp_path: Path) -> None:
    """A site with many sources or rules is served as one with few."""
    sources = [{"ae-title": f"CT{n}", "host-ip": "127.0.0.1"} for n in range(SOURCES)]
    settings = two_processes(tmp_path, sources)
    child = receiving_child(settings)
    assert len(child.greeting) > ONE_MESSAGE_BYTES
    receiver = Receiver(settings.dicom.scp, _never_here, lambda *_how: None, child=child)
    receiver.start()
    try:
        answer = echoscu("127.0.0.1", receiver.port, f"CT{SOURCES - 1}", "LUNG")
        assert answer.exit_code == 0, answer.output
    finally:
        receiver.stop()


A_CHILD_THAT_TELLS_AND_ASKS = """
import json, socket, sys
line = socket.socket(fileno=int(sys.argv[1]))
sys.stdin.read()
who = {"called": "LUNG", "calling": "CT1", "host_ip": "127.0.0.1", "certificate": None}
for message in (
    {"kind": "ready"},
    {"kind": "delivered", "job_id": "1", "destination": "pacs", "failure": None},
    {"kind": "ask", "id": sys.argv[1], **who},
):
    line.send(json.dumps(message).encode())
answer = json.loads(line.recv(65536))
line.send(json.dumps({"kind": "refused", "code": answer["kind"]}).encode())
line.recv(1)
"""


def test_nobody_who_wants_to_come_in_waits_for_what_is_told(tmp_path: Path) -> None:
    """Whoever hears of a delivery may wait for the database."""
    settings = two_processes(tmp_path, [{"ae-title": "CT1"}])
    database_is_back, heard, answered = threading.Event(), list[str](), list[str]()

    def delivered(job_id: str, _destination: str, _failure: str | None) -> None:
        database_is_back.wait(60)
        heard.append(job_id)

    receiver = Receiver(
        settings.dicom.scp,
        _never_here,
        lambda *_how: None,
        child=Child((sys.executable, "-c", A_CHILD_THAT_TELLS_AND_ASKS), ""),
        from_children=FromChildren(delivered=delivered),
        refused=answered.append,
    )
    receiver.start()
    try:
        until(lambda: answered == ["admission", "admission"])
        assert heard == []
        database_is_back.set()
        until(lambda: heard == ["1", "1"])
    finally:
        database_is_back.set()
        receiver.stop()
