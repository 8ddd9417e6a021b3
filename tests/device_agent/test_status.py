"""``edgeml-agent status`` against small servers that answer as an agent does, or not.

The end of the file asks a real agent.
"""

import argparse
import http.client
import json
import os
import socket
import socketserver
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import pytest
from agents import Agent, agent
from bundles import bundle

from device_agent import status

Answers = Mapping[str, tuple[int, Any]]

STATS = {
    "name": "digits",
    "version": "1.0.0",
    "last_inference": 1760000000000,
    "inference_count": 120,
    "execution_count": 60,
    "inference_stats": {
        "success": {"count": 120, "ns": 240_000_000},
        "fail": {"count": 3, "ns": 1_000},
        "queue": {"count": 120, "ns": 1_000},
        "compute_input": {"count": 0, "ns": 0},
        "compute_infer": {"count": 120, "ns": 200_000_000},
        "compute_output": {"count": 0, "ns": 0},
    },
    "batch_stats": [],
    "refused": {"queue": 10, "deadline": 2},
}
READY: Answers = {
    "GET /v2": (
        200,
        {"name": "edgeml-agent", "version": "0.1.0", "extensions": ["statistics"]},
    ),
    "GET /v2/health/ready": (200, {}),
    "POST /v2/repository/index": (
        200,
        [{"name": "digits", "version": "1.0.0", "state": "READY", "reason": ""}],
    ),
    "GET /v2/models/stats": (200, {"model_stats": [STATS]}),
}
NOT_READY: Answers = READY | {
    "GET /v2/health/ready": (503, {"error": "digits is not loaded"}),
    "POST /v2/repository/index": (
        200,
        [
            {"name": "digits", "version": "1.0.0", "state": "READY", "reason": ""},
            {
                "name": "speech",
                "version": "2.0.0",
                "state": "UNAVAILABLE",
                "reason": "golden: 3 of 16\n\x1b[2Jvectors are wrong",
            },
        ],
    ),
}


class Unix(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


class Tcp(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


@contextmanager
def serving(
    server: Unix | Tcp, answers: Answers, token: str | None = None
) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        said: ClassVar[Answers] = answers

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            code, body = self.said.get(f"{self.command} {self.path}", (404, None))
            if token and self.headers["Authorization"] != f"Bearer {token}":
                code, body = 401, {"error": "a token is wanted"}
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            return

    server.RequestHandlerClass = Handler
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def on_socket(path: Path, answers: Answers = READY) -> Iterator[Path]:
    with serving(Unix(str(path), BaseHTTPRequestHandler), answers):
        yield path


@contextmanager
def on_tcp(answers: Answers = READY, token: str | None = None) -> Iterator[str]:
    server = Tcp(("127.0.0.1", 0), BaseHTTPRequestHandler)
    with serving(server, answers, token):
        yield f"http://127.0.0.1:{server.server_address[1]}"


def ask(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    status.arguments(parser)
    return status.run(parser.parse_args(list(map(str, arguments))))


@pytest.fixture(autouse=True)
def no_agent_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setattr(status, "SERVICE_STATE", tmp_path / "service")


def test_a_ready_agent(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with on_socket(tmp_path / "a.sock") as path:
        assert ask("--socket", path) == 0
    assert capsys.readouterr().out == (
        f"edgeml-agent 0.1.0 at unix:{path}: ready\n"
        "model   version  state  requests  failures  refused  mean ms\n"
        "digits  1.0.0    READY       123         3       12    2.000\n"
        "digits 1.0.0: refused: deadline 2, queue 10\n"
    )


def test_an_agent_that_is_not_ready(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with on_socket(tmp_path / "a.sock", NOT_READY) as path:
        assert ask("--socket", path) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[0].endswith(": not ready")
    assert "speech  2.0.0    UNAVAILABLE         -" in out
    assert r"speech 2.0.0: golden: 3 of 16\n\x1b[2Jvectors are wrong" in out


def test_an_agent_without_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    answers = READY | {
        "POST /v2/repository/index": (200, []),
        "GET /v2/models/stats": (200, {"model_stats": []}),
    }
    with on_socket(tmp_path / "a.sock", answers) as path:
        assert ask("--socket", path) == 0
    assert capsys.readouterr().out.endswith("ready\nno model is loaded\n")


def test_json_has_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with on_socket(tmp_path / "a.sock") as path:
        assert ask("--socket", path, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "address": f"unix:{path}",
        "ready": True,
        "name": "edgeml-agent",
        "version": "0.1.0",
        "models": [
            {
                "name": "digits",
                "version": "1.0.0",
                "state": "READY",
                "reason": "",
                "requests": 123,
                "failures": 3,
                "refused": {"deadline": 2, "queue": 10},
                "mean_ms": 2.0,
            }
        ],
        "device": {"enrolled": False},
    }


def test_how_it_stands_with_its_fleet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    slot = {"model": "digits", "version": "1.0.0", "digest": "ab" * 32, "counter": 1}
    told = {
        "enrolled": True, "device": "cam-7", "tenant": "acme",
        "slots": {"a": slot, "b": None}, "committed": "a", "active": "a",
        "attempt": {"rollout": "r-1", "attempt": 2, "phase": "idle",
                    "outcome": "failed", "reason": "hung", "text": "no answer"},
        "note": None, "floors": {"counters": {"digits/rpi4": {"counter": 4}}},
        "spool": {"records": 3, "bytes": 400},
        "link": {"connected": False, "error": "no route"},
    }  # fmt: skip
    with on_socket(tmp_path / "a.sock", READY | {"GET /v1/device": (200, told)}) as at:
        assert ask("--socket", at) == 0
    assert capsys.readouterr().out.splitlines()[3:] == [
        "digits 1.0.0: refused: deadline 2, queue 10",
        "device cam-7 of acme",
        "slot a: digits 1.0.0 (abababababab) committed active",
        "slot b: empty",
        "update: r-1 attempt 2: failed (hung: no answer)",
        "floors: digits/rpi4 4",
        "spool: 3 records, 400 bytes",
        "link: not connected: no route",
    ]


def test_quiet_says_nothing_when_ready(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with on_socket(tmp_path / "a.sock") as path:
        assert ask("--socket", path, "--quiet") == 0
    assert capsys.readouterr().out == ""
    with on_socket(tmp_path / "b.sock", NOT_READY) as path:
        assert ask("--socket", path, "--quiet") == 1
    assert "not ready" in capsys.readouterr().out


# Where it is looked for


def test_it_is_found_in_its_state_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "state").mkdir()
    with on_socket(tmp_path / "state/agent.sock"):
        assert ask() == 0
        assert ask("--state", tmp_path / "state") == 0
        assert ask("--state", tmp_path) == 5


def test_else_the_service_is_asked(tmp_path: Path):
    (tmp_path / "service").mkdir()
    with on_socket(tmp_path / "service/agent.sock"):
        assert ask() == 0


def test_no_agent_is_named_with_what_was_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert ask() == 5
    out, err = capsys.readouterr()
    assert out == ""
    for folder in ("state", "service"):
        where = f"unix:{tmp_path}/{folder}/agent.sock: No such file or directory"
        assert where in err
    assert "edgeml-agent run --bundle FILE" in err


def test_no_agent_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert ask("--socket", tmp_path / "none", "--json") == 5
    found = json.loads(capsys.readouterr().out)
    assert found["ready"] is False
    assert "No such file or directory" in found["error"]


def test_a_socket_that_an_agent_left_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "a.sock"))
    assert ask("--socket", tmp_path / "a.sock") == 5
    assert "Connection refused" in capsys.readouterr().err


def test_a_socket_of_somebody_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with on_socket(tmp_path / "a.sock") as path:
        path.chmod(0)
        with not_root():
            assert ask("--socket", path) == 5
    assert "Permission denied" in capsys.readouterr().err


@contextmanager
def not_root() -> Iterator[None]:
    """Root may use any socket, so a test that runs as root becomes nobody."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_a_path_too_long_for_a_socket(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert ask("--socket", tmp_path / ("s" * 120)) == 5
    assert "AF_UNIX path too long" in capsys.readouterr().err


# TCP


def test_over_tcp(capsys: pytest.CaptureFixture[str]):
    with on_tcp() as url:
        assert ask("--url", url) == 0
        assert ask("--url", f"{url}/") == 0
    assert f"edgeml-agent 0.1.0 at {url}: ready" in capsys.readouterr().out
    assert ask("--url", url) == 5


def test_a_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("secret\nnot this\n")
    wrong.write_text("guess")
    with on_tcp(token="secret") as url:
        assert ask("--url", url, "--token-file", right) == 0
        assert ask("--url", url, "--token-file", wrong) == 4
        assert ask("--url", url) == 4
    err = capsys.readouterr().err
    assert "give --token-file FILE" in err
    assert "guess" not in err


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff"])
def test_a_token_file_without_a_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
):
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    assert ask("--token-file", path) == 2
    assert f"--token-file {path}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://a", "http://", "http://a:x", "http://a:99999",
     "http://[::1", "http://a/v2"],
)  # fmt: skip
def test_what_is_no_url(url: str, capsys: pytest.CaptureFixture[str]):
    assert ask("--url", url) == 2
    assert "--url" in capsys.readouterr().err


# What answers is shown, not trusted


@pytest.mark.parametrize(
    "answers",
    [
        {},
        {"GET /v2": (200, ["not", "an", "object"])},
        {"GET /v2": (200, b"<html>")},
        {"GET /v2": (500, {"error": "broken"})},
        {"GET /v2": (200, b"[" * 100_000)},
    ],
)
def test_something_else_answers(answers: Answers, capsys: pytest.CaptureFixture[str]):
    with on_tcp(answers) as url:
        assert ask("--url", url) == 5
    assert "is no agent" in capsys.readouterr().err


@pytest.mark.parametrize("odd", [None, 1, "x", [1], {"a": 1}, b"\xff", [[]], [{}]])
def test_odd_answers_are_not_stumbled_over(odd: object):
    for question in READY:
        answers = READY | {question: (200, odd)}
        if question == "GET /v2":
            continue
        with on_tcp(answers) as url:
            assert ask("--url", url) == 0
    stats = STATS | {"inference_stats": odd if not isinstance(odd, bytes) else 1}
    answers = READY | {"GET /v2/models/stats": (200, {"model_stats": [stats, 1]})}
    with on_tcp(answers) as url:
        assert ask("--url", url) == 0


@contextmanager
def saying(raw: bytes | None) -> Iterator[str]:
    """Someone who takes connections, says ``raw`` and closes; None: says nothing."""
    listener = socket.create_server(("127.0.0.1", 0))
    kept: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                one, _ = listener.accept()
            except OSError:
                return
            kept.append(one)
            if raw is not None:
                one.sendall(raw)
                one.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for one in kept:
            one.close()


@pytest.mark.parametrize("raw", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\n"])
def test_who_does_not_speak_http(raw: bytes, capsys: pytest.CaptureFixture[str]):
    with saying(raw) as url:
        assert ask("--url", url) == 5
    assert "is no agent" in capsys.readouterr().err


def test_who_says_nothing_is_not_ready(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(status, "TIMEOUT_S", 0.2)
    with saying(None) as url:
        assert ask("--url", url) == 1
    assert "says nothing for 0.2 s" in capsys.readouterr().err


# A real agent


def infer(device: Agent, token: str) -> int:
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    connection = http.client.HTTPConnection(device.host, device.port, timeout=30)
    with closing(connection):
        connection.request(
            "POST",
            "/v2/models/linear/infer",
            json.dumps({"inputs": [tensor]}),
            {"Authorization": f"Bearer {token}"},
        )
        return connection.getresponse().status


def test_a_real_agent(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model, token = tmp_path / "linear.edgeml", tmp_path / "token"
    model.write_bytes(bundle())
    token.write_text("0123456789abcdef\n")
    token.chmod(0o600)
    with agent([model], toml=f'[listen]\ntoken_file = "{token}"\n') as device:
        assert [infer(device, "0123456789abcdef") for _ in range(3)] == [200] * 3
        assert ask("--socket", device.socket, "--json") == 0
        (found,) = json.loads(capsys.readouterr().out)["models"]
        assert found.pop("mean_ms") > 0
        assert found == {
            "name": "linear", "version": "1.0.0", "state": "READY", "reason": "",
            "requests": 3, "failures": 0, "refused": {},
        }  # fmt: skip
        assert ask("--url", device.url) == 4
        assert ask("--url", device.url, "--token-file", token) == 0
        assert "linear  1.0.0    READY         3" in capsys.readouterr().out
    assert ask("--socket", device.socket) == 5


def test_a_real_agent_that_has_refused_a_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    good, bad = tmp_path / "good.edgeml", tmp_path / "damaged.edgeml"
    good.write_bytes(bundle())
    bad.write_bytes(bundle()[:-3000])
    with agent([good, bad]) as device:
        assert ask("--socket", device.socket) == 1
    out = capsys.readouterr().out
    assert ": not ready\n" in out
    assert "damaged: bundle: member 'golden.npz' claims" in out
