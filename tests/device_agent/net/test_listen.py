"""Where the agent may listen, and who may call."""

import os
import resource
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from device_agent.config import LimitsConfig, ListenConfig
from device_agent.errors import AccessError, ConfigError, RequestError
from device_agent.net import listen as module
from device_agent.net.listen import Access, ForbiddenError, close, listen

TOKEN = "0123456789abcdef"


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\nsecond line\n")
    path.chmod(0o600)
    return path


def scope(
    path: str = "/v2", method: str = "GET", port: int | None = 8000, **headers: str
) -> dict[str, Any]:
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    server = ("127.0.0.1", port) if port else ("/run/agent.sock", None)
    return {"server": server, "path": path, "method": method, "headers": pairs}


# Where


def test_default_is_a_unix_socket_and_loopback(tmp_path: Path) -> None:
    listeners, _ = listen(ListenConfig(port=0), tmp_path / "state")
    try:
        unix, tcp = listeners
        assert unix.address == f"unix:{tmp_path / 'state' / 'agent.sock'}"
        assert stat.S_IMODE((tmp_path / "state" / "agent.sock").stat().st_mode) == 0o660
        port = tcp.socket.getsockname()[1]
        assert tcp.address == f"http://127.0.0.1:{port}"
        assert port > 0
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    finally:
        close(listeners)
    assert not (tmp_path / "state" / "agent.sock").exists()


def test_the_umask_is_put_back(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        close(listen(ListenConfig(tcp=False), tmp_path)[0])
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


@pytest.mark.parametrize("host", ["::1", "localhost"])
def test_ipv6_and_localhost_are_loopback(tmp_path: Path, host: str) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    try:
        listeners, _ = listen(ListenConfig(host=host, port=0), tmp_path)
    except ConfigError as error:
        pytest.skip(str(error))
    ports = {one.socket.getsockname()[1] for one in listeners[1:]}
    close(listeners)
    assert len(ports) == 1


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_other_addresses_need_a_token_or_certificates(
    tmp_path: Path, host: str
) -> None:
    with pytest.raises(ConfigError, match=r"token_file.*tls_client_ca.*127\.0\.0\.1"):
        listen(ListenConfig(host=host, port=0), tmp_path)
    assert not (tmp_path / "agent.sock").exists()


def test_a_token_opens_other_addresses(tmp_path: Path, token_file: Path) -> None:
    config = ListenConfig(host="0.0.0.0", port=0, token_file=token_file)
    listeners, access = listen(config, tmp_path)
    close(listeners)
    with pytest.raises(AccessError):
        access.check(scope())


def test_names_are_not_addresses(tmp_path: Path, token_file: Path) -> None:
    config = ListenConfig(host="device.example", token_file=token_file)
    with pytest.raises(ConfigError, match="neither an IP address nor localhost"):
        listen(config, tmp_path)


def test_a_taken_port_is_said_to_be(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}: Address already in use"):
            listen(ListenConfig(port=port), tmp_path)
    assert not (tmp_path / "agent.sock").exists()


def test_a_stale_socket_is_replaced_and_a_live_one_refused(tmp_path: Path) -> None:
    config = ListenConfig(tcp=False)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "agent.sock"))
    listeners, _ = listen(config, tmp_path)
    with pytest.raises(ConfigError, match="another agent listens there"):
        listen(config, tmp_path)
    close(listeners)


def test_a_file_in_the_place_of_the_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "agent.sock").write_text("precious")
    with pytest.raises(ConfigError, match="not a socket"):
        listen(ListenConfig(tcp=False), tmp_path)
    assert (tmp_path / "agent.sock").read_text() == "precious"


def test_a_path_that_is_too_long_is_explained(tmp_path: Path) -> None:
    state = tmp_path / ("a" * 120)
    with pytest.raises(ConfigError, match=r"107: set listen\.socket to a shorter one"):
        listen(ListenConfig(tcp=False), state)


# Tokens and certificates


@pytest.mark.parametrize(
    ("text", "mode", "expected"),
    [
        (TOKEN, 0o640, "mode 0640 lets others in; chmod 600 it"),
        (TOKEN, 0o604, "mode 0604 lets others in"),
        ("", 0o600, "at least 16"),
        ("short\n", 0o600, "at least 16"),
        ("with some spaces in it\n", 0o600, "without spaces"),
        (None, 0o600, "No such file"),
    ],
)
def test_unsafe_token_files_are_refused(
    tmp_path: Path, text: str | None, mode: int, expected: str
) -> None:
    path = tmp_path / "token"
    if text is not None:
        path.write_text(text)
        path.chmod(mode)
    with pytest.raises(ConfigError, match=expected):
        listen(ListenConfig(port=0, token_file=path), tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_token_file_of_somebody_else_is_refused(token_file: Path) -> None:
    os.chown(token_file, 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to user 12345"):
        module.read_token(token_file)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (("tls_cert",), "needed together"),
        (("tls_key",), "needed together"),
        (("tls_client_ca",), "needs tls_cert and tls_key"),
        (("tls_cert", "tls_key"), "No such file"),
    ],
)
def test_certificates_come_whole(
    tmp_path: Path, files: tuple[str, ...], expected: str
) -> None:
    config = ListenConfig(port=0, **{name: tmp_path / name for name in files})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=expected):
        listen(config, tmp_path)


# Who


@pytest.fixture
def guarded() -> Access:
    return Access(TOKEN.encode(), loopback=False, host="0.0.0.0")


@pytest.fixture
def local() -> Access:
    return Access(None, loopback=True, host="127.0.0.1")


def test_the_token_lets_in(guarded: Access) -> None:
    guarded.check(scope(authorization=f"Bearer {TOKEN}"))
    guarded.check(scope(authorization=f"bearer {TOKEN}"))


@pytest.mark.parametrize(
    "value",
    [None, "", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}",
     "Bearer", "Bearer ", "Bearer é"],
)  # fmt: skip
def test_anything_else_does_not(guarded: Access, value: str | None) -> None:
    headers = {} if value is None else {"authorization": value}
    with pytest.raises(AccessError) as caught:
        guarded.check(scope(**headers))
    assert TOKEN not in str(caught.value)


def test_health_and_the_pages_need_no_token(guarded: Access) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/", "/docs"):
        guarded.check(scope(path))  # a page holds no data, and asks for the token
    for path in ("/v2/health/live/", "/v2/models/a/ready", "/metrics", "/v2"):
        with pytest.raises(AccessError):
            guarded.check(scope(path))


def test_the_unix_socket_needs_no_token(guarded: Access) -> None:
    guarded.check(scope(port=None))
    guarded.check(scope(port=None, method="POST", host="anything", origin="null"))


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8000", "127.0.0.1", "localhost:8000", "LOCALHOST", "[::1]:8000",
     "127.1.2.3:80", "device.localhost:1"],
)  # fmt: skip
def test_loopback_names_may_call(local: Access, host: str) -> None:
    local.check(scope(host=host))
    local.check(scope(host=host))


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "192.0.2.1:8000",
     "127.0.0.1.evil.example", "[2001:db8::1]", "[::1", "localhost@evil"],
)  # fmt: skip
def test_rebound_names_may_not(local: Access, host: str) -> None:
    for _ in range(2):
        if host == "[::1":
            local.check(scope(host=host))  # still the loopback's
        else:
            with pytest.raises(ForbiddenError) as caught:
                local.check(scope(host=host))
            assert caught.value.status == 403


def test_many_hosts_are_not_all_remembered(local: Access) -> None:
    for port in range(1000):
        local.check(scope(host=f"localhost:{port}"))
    assert len(local._good_hosts) <= 64


def test_no_host_is_an_old_client(local: Access) -> None:
    local.check(scope())


def test_two_hosts_are_refused(local: Access) -> None:
    twice = scope(host="localhost")
    twice["headers"] += [(b"host", b"localhost")]
    with pytest.raises(RequestError):
        local.check(twice)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_other_sites_pages_may_not_call(local: Access, method: str) -> None:
    host = "127.0.0.1:8000"
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9000", "file://"):
        with pytest.raises(ForbiddenError):
            local.check(scope(method=method, host=host, origin=origin))
    local.check(scope(method=method, host=host, origin="http://127.0.0.1:8000"))
    local.check(scope(method=method, host=host))
    local.check(scope(host=host, origin="http://evil.example"))


# Files


def test_soft_limit_of_open_files_is_raised(caplog: pytest.LogCaptureFixture) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
        now = module.raise_file_limit(LimitsConfig())
        assert now == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert 256 + 32 < now <= before[1]
        assert not caplog.records
        module.raise_file_limit(LimitsConfig(connections=before[1]))
        assert "raise it (LimitNOFILE=)" in caplog.text
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
