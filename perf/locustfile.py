"""A locust file whose user is a hospital: it sends studies and waits for their results.

Each user sends a study with new UIDs to the gateway by C-STORE and waits until the result
that belongs to it comes back by C-STORE. With `--web`, every other study goes by STOW-RS, and
after each one the hospital asks the API for what it has sent. `make bench` runs it with one user;
for a load test of your own gateway, list this as a destination and a source in gateway.yaml and
run

    locust -f perf/locustfile.py --host 127.0.0.1:11112 --study FOLDER --receive-port 11113

Two figures come out for each study: how long sending took, and how long from the first
instance to the result; and one for each question.
"""

from __future__ import annotations

import io
import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import requests
from locust import User, constant, events, task
from pynetdicom import AE, AllStoragePresentationContexts, build_context, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from perf.studies import StudyTemplate

SENT = "study sent"
ANSWERED = "study to result"
QUESTIONS = 5
"""How often each question is asked after a study."""
_BOUNDARY = "tritome-locust"
_WEB_TIMEOUT_S = 600.0

# Locust has put gevent's greenlets in the place of threads, queues and sockets by the time it
# loads this file, so that the standard library's own are the right ones here.
_waiting: dict[str, queue.Queue[float]] = {}


class StudyFailed(Exception):
    """A study was not taken, or its result did not come."""


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _add_options(parser: Any) -> None:
    parser.add_argument("--study", required=True, help="folder with one study to send")
    parser.add_argument("--called", default="LUNG_CT", help="AE title of the gateway")
    parser.add_argument("--calling", default="LOCUST", help="our AE title, sending and receiving")
    parser.add_argument("--receive-port", type=int, default=11113, help="where results come")
    parser.add_argument("--result-timeout", type=float, default=600, help="seconds for a result")
    parser.add_argument("--studies", type=int, default=0, help="stop after so many; 0: never")
    parser.add_argument("--web", default="", help="the gateway's http://HOST:PORT, for DICOMweb")
    parser.add_argument("--token-file", default="", help="holds the bearer token for --web")
    parser.add_argument("--durations", default="", help="file for each duration, as JSON lines")


@events.init.add_listener  # type: ignore[untyped-decorator]
def _listen(environment: Any, **_: Any) -> None:
    options = environment.parsed_options
    ae = AE(ae_title=options.calling)
    ae.supported_contexts = AllStoragePresentationContexts
    ae.add_supported_context(Verification)
    server: Any = ae.start_server(
        ("0.0.0.0", options.receive_port),  # noqa: S104 - the gateway may be another machine
        block=False,
        evt_handlers=[(evt.EVT_CONN_OPEN, _without_delay), (evt.EVT_C_STORE, _receive)],
    )
    environment.events.quitting.add_listener(lambda **_: server.shutdown())
    if options.durations:
        environment.events.request.add_listener(_Journal(Path(options.durations)))


class _Journal:
    """Writes every duration: locust's own statistics round them."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(
        self, name: str, response_time: float, exception: BaseException | None, **_: Any
    ) -> None:
        line = {"name": name, "duration_s": response_time / 1000, "failed": exception is not None}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _without_delay(event: Any) -> None:
    # A C-STORE goes out in two pieces, and the kernel holds the second one back until the
    # first is acknowledged: up to 45 ms for each instance that would be measured as ours.
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _receive(event: Any) -> int:
    # Every result says which study it belongs to; one that nobody waits for (any longer)
    # is accepted all the same, or the gateway would send it again for days.
    result = _waiting.pop(str(event.dataset.StudyInstanceUID), None)
    if result is not None:
        result.put(time.perf_counter())
    return 0x0000


class Hospital(User):
    """Sends one study after the other, each when the result of the one before is there."""

    wait_time = constant(0)
    _counting = threading.Lock()
    _begun = 0

    def on_start(self) -> None:
        """Reads the study once."""
        self._options = self.environment.parsed_options
        self._study = StudyTemplate(Path(self._options.study))
        host, _, port = (self.host or "").rpartition(":")
        self._address = host, int(port)
        self._ways: list[tuple[str, Callable[[], None]]] = [("C-STORE", self._send)]
        if self._options.web:
            self._ways.append(("STOW-RS", self._store))
            self._web = requests.Session()
            self._web.trust_env = False  # a proxy of the site is not for a gateway
            if self._options.token_file:
                token = Path(self._options.token_file).read_text(encoding="utf-8").strip()
                self._web.headers["Authorization"] = f"Bearer {token}"

    @task
    def send_and_wait(self) -> None:
        """One study there and its result back; then what the API says of it."""
        number = self._begin()
        if number is None:
            self.environment.runner.quit()
            return
        way, send = self._ways[number % len(self._ways)]
        study_instance_uid = self._study.renew()
        result = _waiting[study_instance_uid] = queue.Queue(1)
        began = time.perf_counter()
        try:
            send()
            self._note(way, SENT, time.perf_counter() - began)
            ended = result.get(timeout=self._options.result_timeout)
            self._note(way, ANSWERED, ended - began)
        except (StudyFailed, requests.RequestException) as error:
            self._note(way, SENT, time.perf_counter() - began, error)
        except queue.Empty:
            limit_s = self._options.result_timeout
            late = StudyFailed(f"no result within {limit_s:g} s; see 'tritome jobs list'")
            self._note(way, ANSWERED, time.perf_counter() - began, late)
        else:
            if self._options.web:
                self._ask(study_instance_uid)
        finally:
            _waiting.pop(study_instance_uid, None)

    def _begin(self) -> int | None:
        """The number of the next study; None when there have been enough."""
        with Hospital._counting:
            if self._options.studies and Hospital._begun >= self._options.studies:
                return None
            Hospital._begun += 1
            return Hospital._begun - 1

    def _send(self) -> None:
        ae = AE(ae_title=self._options.calling)
        contexts = [build_context(*pair) for pair in self._study.contexts]
        host, port = self._address
        association = ae.associate(
            host,
            port,
            contexts=contexts,
            ae_title=self._options.called,
            evt_handlers=[(evt.EVT_CONN_OPEN, _without_delay)],
        )
        if not association.is_established:
            msg = (
                f"{host}:{port} did not accept the association from '{self._options.calling}' to "
                f"'{self._options.called}'; both must be in the gateway's gateway.yaml"
            )
            raise StudyFailed(msg)
        try:
            for number, dataset in enumerate(self._study, start=1):
                status = association.send_c_store(dataset, msg_id=number % 65535)
                if "Status" not in status or status.Status != 0x0000:
                    said = f"0x{status.Status:04X}" if "Status" in status else "nothing"
                    msg = f"instance {number} of {len(self._study)} was answered with {said}"
                    raise StudyFailed(msg)
        finally:
            if association.is_established:
                association.release()

    def _store(self) -> None:
        kind = f'multipart/related; type="application/dicom"; boundary={_BOUNDARY}'
        answer = self._web.post(
            f"{self._dicomweb()}/studies",
            data=self._parts(),
            headers={"Content-Type": kind, "Accept": "application/dicom+json"},
            timeout=_WEB_TIMEOUT_S,
        )
        if answer.status_code != HTTPStatus.OK:
            msg = f"STOW-RS was answered with {answer.status_code}; not all instances are taken"
            raise StudyFailed(msg)

    def _parts(self) -> Iterator[bytes]:
        """The study as a body that is never in memory as a whole."""
        for dataset in self._study:
            file = io.BytesIO()
            dataset.save_as(file, enforce_file_format=True)
            head = f"--{_BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n"
            yield b"".join((head.encode(), file.getvalue(), b"\r\n"))
        yield f"--{_BOUNDARY}--\r\n".encode()

    def _dicomweb(self) -> str:
        return f"{self._options.web}/dicom-web/{self._options.called}"

    def _ask(self, study_instance_uid: str) -> None:
        study = f"{self._dicomweb()}/studies/{study_instance_uid}"
        first = next(iter(self._study))
        series = f"{study}/series/{first.SeriesInstanceUID}"
        json_, objects = "application/dicom+json", 'multipart/related; type="application/dicom"'
        for name, url, kind in (
            ("health", f"{self._options.web}/health", "application/json"),
            ("QIDO-RS, series of a study", f"{study}/series", json_),
            ("QIDO-RS, its instances", f"{series}/instances", json_),
            ("WADO-RS, an instance", f"{series}/instances/{first.SOPInstanceUID}", objects),
        ):
            for _ in range(QUESTIONS):
                began = time.perf_counter()
                error: Exception | None = None
                try:
                    answer = self._web.get(url, headers={"Accept": kind}, timeout=_WEB_TIMEOUT_S)
                    if answer.status_code != HTTPStatus.OK:
                        error = StudyFailed(f"{name} was answered with {answer.status_code}")
                except requests.RequestException as failed:
                    error = failed
                self._note("API", name, time.perf_counter() - began, error)

    def _note(
        self, way: str, name: str, duration_s: float, error: BaseException | None = None
    ) -> None:
        self.environment.events.request.fire(
            request_type=way,
            name=f"{way}, {name}",
            response_time=duration_s * 1000,
            response_length=0,
            exception=error,
            context={},
        )
