"""Starting, stopping, TLS, and failures that must be seen."""

import asyncio
import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from device_agent.config import LimitsConfig, ListenConfig
from device_agent.net import server as module
from device_agent.net.connections import Connections
from device_agent.net.listen import listen
from device_agent.net.server import Server, loop_factory

from .conftest import Serve, Tiny, answer, drained, eventually, request, respond


def test_stop_closes_idle_connections_at_once(serve: Serve) -> None:
    with serve() as tiny, tiny.connect() as idle, tiny.connect() as silent:
        idle.sendall(request())
        assert answer(idle)[0] == 200
        started = time.monotonic()
        assert tiny.stop(drain_s=5.0)
        assert time.monotonic() - started < 1.0
        assert drained(idle) == drained(silent) == b""
        with pytest.raises(ConnectionRefusedError):
            tiny.connect()
        assert not tiny.socket.exists()


def test_stop_lets_requests_under_way_finish(serve: Serve) -> None:
    with serve() as tiny, tiny.connect() as sock, tiny.connect() as halfway:
        sock.sendall(request("/slow", b"answer"))
        halfway.sendall(request("/", b"later")[:-3])
        eventually(lambda: len(tiny.seen) == 1)
        stopping = threading.Thread(target=tiny.stop)
        stopping.start()
        time.sleep(0.1)
        halfway.sendall(b"ter")
        status, body, headers = answer(sock)
        assert (status, body, headers["connection"]) == (200, b"answer", "close")
        assert answer(halfway)[1] == b"later"
        stopping.join()
        assert tiny.counts.open == 0


def test_stop_cuts_off_what_takes_too_long(serve: Serve) -> None:
    with serve() as tiny, tiny.connect() as sock:
        sock.sendall(request("/", b"never whole")[:-1])
        time.sleep(0.2)
        started = time.monotonic()
        assert not tiny.stop(drain_s=0.3)
        assert time.monotonic() - started < 2.0
        assert drained(sock) == b""
        assert tiny.gone == ["/"]


def test_what_ends_the_sweep_is_raised(tmp_path: Path) -> None:
    class Broken(Connections):
        def sweep(self, elapsed_s: float, unix_s: float) -> None:
            if elapsed_s:
                raise ZeroDivisionError

    async def run() -> None:
        limits = LimitsConfig()
        listeners, _ = listen(ListenConfig(port=0), tmp_path)
        server = Server(None, listeners, limits, table=Broken(limits))
        await server.start()
        with pytest.raises(ZeroDivisionError):
            await server.watch()
        with pytest.raises(ZeroDivisionError):
            await server.stop(1.0)

    asyncio.run(run())


def test_addresses_say_where_it_listens(serve: Serve) -> None:
    with serve() as tiny:
        assert tiny.server.addresses == [
            f"unix:{tiny.socket}", f"http://127.0.0.1:{tiny.port}",
        ]  # fmt: skip


def test_loop_is_uvloop_where_it_is_installed() -> None:
    uvloop = pytest.importorskip("uvloop")
    assert loop_factory() is uvloop.new_event_loop


# TLS


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A CA, and certificates that it signed for the agent and for a caller."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificates")
    made = tmp_path / "certificates"
    made.mkdir()
    new = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
           "-nodes"]  # fmt: skip
    _openssl(made, *new, "-x509", "-subj", "/CN=ca", "-keyout", "ca.key", "-out",
             "ca.pem", "-days", "2")  # fmt: skip
    for name in ("agent", "caller"):
        _openssl(made, *new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out",
                 f"{name}.csr")  # fmt: skip
        _openssl(made, "openssl", "x509", "-req", "-in", f"{name}.csr", "-CA",
                 "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
                 "-out", f"{name}.pem")  # fmt: skip
    return made


def _openssl(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


@pytest.fixture(params=["uvloop", "asyncio"])
def mutual(
    request: pytest.FixtureRequest,
    certificates: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Tiny]:
    """A server that asks callers for a certificate."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    monkeypatch.setattr(module, "HANDSHAKES_MAX", 4)
    factory = loop_factory() if request.param == "uvloop" else asyncio.new_event_loop
    config = ListenConfig(
        port=0,
        tls_cert=certificates / "agent.pem",
        tls_key=certificates / "agent.key",
        tls_client_ca=certificates / "ca.pem",
    )
    ready, ended = threading.Event(), asyncio.Event()
    found: list[Tiny] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, 200, scope["scheme"].encode())

    async def run() -> None:
        listeners, _ = listen(config, tmp_path)
        server = Server(app, listeners, LimitsConfig(header_s=1.0))
        port = listeners[1].socket.getsockname()[1]
        loop = asyncio.get_running_loop()
        found.append(Tiny(server, loop, tmp_path / "agent.sock", port))
        await server.start()
        ready.set()
        await ended.wait()

    with asyncio.Runner(loop_factory=factory) as runner:
        thread = threading.Thread(target=runner.run, args=(run(),))
        thread.start()
        assert ready.wait(10)
        yield found[0]
        found[0].stop(0.0)
        found[0].loop.call_soon_threadsafe(ended.set)
        thread.join()


def caller(certificates: Path, *, shows: bool = True) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    context.check_hostname = False
    if shows:
        context.load_cert_chain(
            certificates / "caller.pem", certificates / "caller.key"
        )
    return context


def test_tls_asks_callers_for_a_certificate(mutual: Tiny, certificates: Path) -> None:
    assert mutual.server.addresses[1] == f"https://127.0.0.1:{mutual.port}"
    with caller(certificates).wrap_socket(mutual.connect()) as sock:
        for _ in range(2):
            sock.sendall(request())
            assert answer(sock)[:2] == (200, b"https")
    with contextlib.suppress(OSError):  # closed with an alert, or reset
        stranger = caller(certificates, shows=False).wrap_socket(mutual.connect())
        stranger.sendall(request())
        assert stranger.recv(100) == b""
    eventually(lambda: mutual.counts.refused["handshake"] >= 1)


def test_unfinished_handshakes_hold_nobody_up(mutual: Tiny, certificates: Path) -> None:
    crowd = [mutual.connect() for _ in range(30)]
    started = time.monotonic()
    with caller(certificates).wrap_socket(mutual.connect()) as sock:
        sock.sendall(request())
        assert answer(sock)[0] == 200
    assert time.monotonic() - started < 1.0
    assert mutual.counts.evicted["handshake"] >= 20
    assert drained(crowd[-1]) == b""  # its handshake has a deadline
    for sock in crowd:
        sock.close()


def test_plain_text_on_the_tls_port_is_closed(mutual: Tiny) -> None:
    with mutual.connect() as sock:
        sock.sendall(request())
        assert b"HTTP/1.1" not in drained(sock)
    with socket.socket(socket.AF_UNIX) as local:
        local.connect(str(mutual.socket))
        local.sendall(request())
        assert answer(local)[:2] == (200, b"http")
