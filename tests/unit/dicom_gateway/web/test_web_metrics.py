"""Who may read /metrics, and how."""

from __future__ import annotations

from pathlib import Path

from tests.support.dicomweb import METRICS, TOKEN, an_open_web, ask

OTHER = "another-token-that-is-long"


def bearer(token: str) -> dict[str, str]:
    """The header."""
    return {"Authorization": f"Bearer {token}"}


def callers(folder: Path) -> list[dict[str, object]]:
    """A Prometheus, and a viewer with the rights that a caller has where none are given."""
    made: list[dict[str, object]] = []
    for name, token in (("PROMETHEUS", TOKEN), ("VIEWER", OTHER)):
        path = folder / f"{name}.token"
        path.write_text(token, encoding="ascii")
        made.append({"calling-ae-title": name, "token-file": str(path)})
    made[0]["rights"] = ["metrics"]
    return made


def test_a_token_for_metrics_reads_metrics_and_nothing_else(tmp_path: Path) -> None:
    """And one for studies reads no metrics; nobody unknown gets anything."""
    with an_open_web(tmp_path / "store", callers=callers(tmp_path)) as web:
        metrics = f"http://127.0.0.1:{web.port}/metrics"
        answer = ask(metrics, headers=bearer(TOKEN))
        assert (answer.status_code, answer.content) == (200, METRICS)
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert ask(metrics, headers=bearer(OTHER)).status_code == 403
        assert ask(metrics).status_code == 401
        assert ask(f"{web.url}/studies", headers=bearer(TOKEN)).status_code == 403
        assert ask(f"{web.url}/studies", "POST", headers=bearer(TOKEN)).status_code == 403
        assert ask(f"{web.url}/studies", headers=bearer(OTHER)).status_code == 204


def test_on_loopback_without_callers_everybody_of_this_machine_reads_them(tmp_path: Path) -> None:
    """As everything there; HEAD says how long they are, and nothing else is done to them."""
    with an_open_web(tmp_path) as web:
        metrics = f"http://127.0.0.1:{web.port}/metrics"
        assert ask(metrics).content == METRICS
        head = ask(metrics, "HEAD")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(METRICS))
        for method in ("POST", "PUT", "DELETE"):
            assert ask(metrics, method).status_code == 405
        assert ask(metrics, headers={"Host": "evil.example"}).status_code == 401
