"""Where the agent listens, and who may call.

1. A unix socket always; its file mode (0660) says who may call.
2. TCP on loopback without more: whoever is on the device. A web page in the device's
   browser is not: a ``Host`` that is not the loopback's and a foreign ``Origin`` are
   refused (DNS rebinding, cross-site requests).
3. TCP elsewhere only with a token or with certificates of both sides. A token that is
   configured is asked for on every TCP listener.
4. ``/v2/health/live`` and ``/v2/health/ready`` never need the token.
"""

import errno
import hmac
import ipaddress
import logging
import os
import resource
import socket
import ssl
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..config import LimitsConfig, ListenConfig
from ..errors import AccessError, ConfigError, RequestError

BACKLOG = 4096
TOKEN_CHARACTERS_MIN = 16
_SOCKET_MODE = 0o660
_PATH_BYTES_MAX = 107
"""What fits the kernel's ``sun_path``."""
_SPARE_FILES = 256
"""Open files beside connections: bundles, libraries, logs, probes."""
_LIVE_PROBE_S = 1.0
_OPEN_PATHS = frozenset(("/v2/health/live", "/v2/health/ready", "/", "/docs"))
_READING = frozenset(("GET", "HEAD", "OPTIONS"))
_HOSTS_REMEMBERED = 64

_log = logging.getLogger(__name__)


class ForbiddenError(AccessError):
    """Not from here, whatever the token: a web page calls through a browser."""

    status: ClassVar[int] = 403


@dataclass(frozen=True)
class Listener:
    """One listening socket; who makes it closes it, and removes ``path``."""

    socket: socket.socket
    address: str
    """``http://127.0.0.1:8000``, ``https://[::1]:8000`` or ``unix:/…/agent.sock``."""
    tls: ssl.SSLContext | None = None
    path: Path | None = None
    """The file of a unix socket."""


class Access:
    """Who may call on which listener."""

    def __init__(self, token: bytes | None, loopback: bool, host: str) -> None:
        self._bearer = None if token is None else b"Bearer " + token
        self._loopback = loopback
        self._host = host.lower()
        self._good_hosts: set[bytes] = set()

    def check(self, scope: Any) -> None:
        """Refuse an ASGI HTTP scope that may not go on.

        Raises:
            AccessError: the token is missing or wrong.
            ForbiddenError: it comes from a web page.
            RequestError: it has two ``Host`` headers.
        """
        server = scope["server"]
        if server is None or server[1] is None:  # unix socket
            return
        host = origin = bearer = None
        for name, value in scope["headers"]:
            if name == b"host":
                if host is not None:
                    raise RequestError("two Host headers")
                host = value
            elif name == b"origin":
                origin = value
            elif name == b"authorization":
                bearer = value
        if self._loopback and host is not None and host not in self._good_hosts:
            self._check_host(host)
        if origin is not None and scope["method"] not in _READING:
            _check_origin(origin, host)
        if self._bearer is not None and scope["path"] not in _OPEN_PATHS:
            self._check_token(bearer)

    def _check_host(self, value: bytes) -> None:
        name = _host_name(value)
        if not (name == self._host or _is_loopback(name) or _is_local_name(name)):
            raise ForbiddenError(
                f"Host {value.decode('latin-1')!r} is not this device's loopback; "
                "call it as localhost or 127.0.0.1"
            )
        if len(self._good_hosts) < _HOSTS_REMEMBERED:
            self._good_hosts.add(value)

    def _check_token(self, bearer: bytes | None) -> None:
        assert self._bearer is not None
        if bearer is None:
            raise AccessError("no token: send the header Authorization: Bearer <token>")
        given = b"Bearer " + bearer[7:] if bearer[:7].lower() == b"bearer " else bearer
        if not hmac.compare_digest(given, self._bearer):
            raise AccessError("the token is not the one in this agent's token file")


def listen(config: ListenConfig, state: Path) -> tuple[list[Listener], Access]:
    """Bind every socket that the configuration asks for.

    Args:
        config: ``[listen]``.
        state: the state directory; the unix socket is made in it by default.

    Raises:
        ConfigError: an address that may not or cannot be listened on, or a token or
            certificate that is missing, unsafe or unreadable.
    """
    token = None if config.token_file is None else read_token(config.token_file)
    tls = tls_context(config)
    addresses = _addresses(config) if config.tcp else []
    loopback = all(_is_loopback(address) for address in addresses)
    mutual = tls is not None and config.tls_client_ca is not None
    if not loopback and token is None and not mutual:
        raise ConfigError(
            f"listen.host {config.host}: an address that others reach needs a token "
            "(listen.token_file) or certificates of both sides (listen.tls_cert, "
            "tls_key and tls_client_ca); or listen on 127.0.0.1"
        )
    if not loopback and tls is None:
        _log.warning("token and data go unencrypted over %s: no tls_cert", config.host)
    listeners = [_unix(config.socket or state / "agent.sock")]
    try:
        port = config.port
        for address in addresses:
            listener = _tcp(address, port, tls)
            if listener is not None:
                listeners.append(listener)
                port = listener.socket.getsockname()[1]
    except ConfigError:
        close(listeners)
        raise
    return listeners, Access(token, loopback, config.host)


def close(listeners: Iterable[Listener]) -> None:
    """Close the sockets and remove their files."""
    for listener in listeners:
        listener.socket.close()
        if listener.path is not None:
            with suppress(OSError):  # what is left the next start takes away
                listener.path.unlink()


def read_token(path: Path) -> bytes:
    """The first line of a token file that nobody else can read or write.

    Raises:
        ConfigError: it is missing, open to others, not ours, or too short.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            line = file.readline(4096).strip()
    except OSError as error:
        raise ConfigError(f"listen.token_file {path}: {error.strerror}") from error
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise ConfigError(
            f"listen.token_file {path}: mode {mode:04o} lets others in; chmod 600 it"
        )
    if status.st_uid not in (os.geteuid(), 0):
        raise ConfigError(
            f"listen.token_file {path}: belongs to user {status.st_uid}; it must be "
            f"of the agent's user ({os.geteuid()}) or root"
        )
    if len(line) < TOKEN_CHARACTERS_MIN or not line.isascii() or b" " in line:
        raise ConfigError(
            f"listen.token_file {path}: its first line must hold at least "
            f"{TOKEN_CHARACTERS_MIN} ASCII characters without spaces "
            "(openssl rand -hex 32)"
        )
    return line


def tls_context(config: ListenConfig) -> ssl.SSLContext | None:
    """How TCP is encrypted; None: it is not.

    Raises:
        ConfigError: one file without the other, or a file that cannot be used.
    """
    if config.tls_cert is None and config.tls_key is None:
        if config.tls_client_ca is not None:
            raise ConfigError("listen.tls_client_ca needs tls_cert and tls_key as well")
        return None
    if config.tls_cert is None or config.tls_key is None:
        raise ConfigError("listen.tls_cert and tls_key are needed together")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key)
        if config.tls_client_ca is not None:
            context.load_verify_locations(config.tls_client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"listen.tls_cert {config.tls_cert}, tls_key {config.tls_key}, "
            f"tls_client_ca {config.tls_client_ca}: {error}"
        ) from error
    return context


def raise_file_limit(limits: LimitsConfig) -> int:
    """Let the process open as many files as its connections may need.

    Returns:
        The soft limit of open files as it is now. When the hard limit is too low for
        the configured connections, that is logged.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = limits.connections + limits.reserved_connections + _SPARE_FILES
    # Newcomers hold a file each before somebody else is closed for them.
    wanted = needed + BACKLOG
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
        if hard < needed:
            _log.warning(
                "the hard limit of open files is %d, %d connections need %d: raise "
                "it (LimitNOFILE=) or lower limits.connections",
                hard, limits.connections, needed,
            )  # fmt: skip
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return soft


def _addresses(config: ListenConfig) -> list[str]:
    if _is_local_name(config.host.lower()):
        return ["127.0.0.1", "::1"]
    try:
        return [str(ipaddress.ip_address(config.host.strip("[]")))]
    except ValueError as error:
        raise ConfigError(
            f"listen.host {config.host!r} is neither an IP address nor localhost; "
            "0.0.0.0 or :: are all addresses"
        ) from error


def _tcp(address: str, port: int, tls: ssl.SSLContext | None) -> Listener | None:
    """A listener; None: the second address of localhost is not there."""
    six = ":" in address
    try:
        sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET)
    except OSError:
        if address == "::1":
            return None
        raise
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if six:
            only = 0 if address == "::" else 1
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        sock.bind((address, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if address == "::1" and error.errno == errno.EADDRNOTAVAIL:
            return None
        raise ConfigError(
            f"listen.host {address}, port {port}: {error.strerror}"
        ) from error
    sock.setblocking(False)
    shown = f"[{address}]" if six else address
    scheme = "http" if tls is None else "https"
    return Listener(sock, f"{scheme}://{shown}:{sock.getsockname()[1]}", tls)


def _unix(path: Path) -> Listener:
    size_bytes = len(os.fsencode(path))
    if size_bytes > _PATH_BYTES_MAX:
        raise ConfigError(
            f"listen.socket {path}: a path of {size_bytes} bytes; the system takes "
            f"{_PATH_BYTES_MAX}: set listen.socket to a shorter one"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX)
    before = os.umask(0o777 & ~_SOCKET_MODE)
    try:
        sock.bind(str(path))
        sock.listen(BACKLOG)  # at once: one that starts beside us sees that we live
    except OSError as error:
        sock.close()
        raise ConfigError(f"listen.socket {path}: {error.strerror}") from error
    finally:
        os.umask(before)
    sock.setblocking(False)
    return Listener(sock, f"unix:{path}", path=path)


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(
            f"listen.socket {path}: something that is not a socket is there"
        )
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_LIVE_PROBE_S)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            raise ConfigError(f"listen.socket {path}: {error}") from error
    raise ConfigError(
        f"listen.socket {path}: another agent listens there; stop it, or give this "
        "one its own state directory or socket"
    )


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _is_local_name(name: str) -> bool:
    return name.rstrip(".") == "localhost" or name.rstrip(".").endswith(".localhost")


def _host_name(value: bytes) -> str:
    """The name in ``name:port`` or ``[address]:port``, in lower case."""
    text = value.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]


def _check_origin(origin: bytes, host: bytes | None) -> None:
    _, _, authority = origin.decode("latin-1").lower().partition("://")
    if host is None or authority != host.decode("latin-1").strip().lower():
        raise ForbiddenError(
            f"Origin {origin.decode('latin-1')!r} is another site's page; only the "
            "agent's own page may call it from a browser"
        )
