"""``edgeml-agent status``: asks the running agent how it is, and prints that.

It asks through the API that everybody uses, by default on the unix socket, with the
standard library alone. What comes back is shown, not trusted: it is limited in size and
its control characters are escaped.
"""

import argparse
import json
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from . import standing
from .config import SOCKET_NAME, default_state
from .errors import ConfigError, StorageError
from .log import printable

if TYPE_CHECKING:
    from http.client import HTTPConnection

READY, NOT_READY, USAGE, REFUSED, NO_AGENT = 0, 1, 2, 4, 5
SERVICE_STATE = Path("/var/lib/edgeml-agent")
"""The state directory of ``packaging/edgeml-agent.service``."""
TIMEOUT_S = 10.0
ANSWER_BYTES_MAX = 4 << 20
TOKEN_BYTES_MAX = 4096


class _NoStatusError(Exception):
    """There is no status to print; the exit code, and why."""

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        super().__init__(text)


@dataclass(frozen=True)
class Model:
    """One version; the counts are None where it is not loaded."""

    name: str
    version: str
    state: str
    reason: str = ""
    requests: int | None = None
    """Run, well or not."""
    failures: int | None = None
    refused: dict[str, int] | None = None
    """Turned away before they were run, by reason."""
    mean_ms: float | None = None
    """From admission to answer, of those that went well."""


@dataclass(frozen=True)
class Status:
    """What the agent has said of itself."""

    address: str
    ready: bool
    name: str
    version: str
    models: tuple[Model, ...]
    device: dict[str, Any]
    """Slots, the last update, floors, spool and link (``GET /v1/device``)."""


@dataclass(frozen=True)
class Address:
    """Where an agent may be: a unix socket, or a host and a port."""

    text: str
    path: Path | None = None
    host: str = "localhost"
    port: int | None = None
    tls: bool = False

    def connect(self) -> "HTTPConnection":
        """A connection that is open.

        Raises:
            OSError: nobody listens there, or it may not be reached.
        """
        from http.client import HTTPConnection, HTTPSConnection

        kind = HTTPSConnection if self.tls else HTTPConnection
        connection = kind(self.host, self.port, timeout=TIMEOUT_S)
        if self.path is None:
            connection.connect()
            return connection
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.settimeout(TIMEOUT_S)
            connection.sock.connect(str(self.path))
        except OSError:
            connection.close()
            raise
        return connection


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command line may say."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--socket", type=Path, metavar="PATH", help="its unix socket")
    where.add_argument("--state", type=Path, metavar="DIR", help="its state directory")
    where.add_argument("--url", metavar="URL", help="http(s)://HOST:PORT")
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE",
        help="file whose first line is the token that the agent wants",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quiet", action="store_true", help="print nothing when ready")


def run(namespace: argparse.Namespace) -> int:
    """Ask, print, and say how it went.

    Returns:
        The exit code: 0 ready, 1 running but not ready, 2 usage, 4 the agent refuses to
        say, 5 no agent is there.
    """
    try:
        token = _token(namespace.token_file)
        status = _status(_reachable(_addresses(namespace)), token)
    except _NoStatusError as error:
        kept = _kept(namespace.state) if error.code == NO_AGENT else None
        if namespace.json:
            said = {"ready": False, "error": str(error), "device": kept}
            sys.stdout.write(json.dumps(said) + "\n")
        else:
            sys.stdout.write("".join(_printed(standing.lines(kept))))
        sys.stderr.write(f"{error}\n")
        return error.code
    if namespace.json:
        sys.stdout.write(json.dumps(asdict(status), indent=2) + "\n")
    elif not (status.ready and namespace.quiet):
        sys.stdout.write("".join(_printed(_lines(status))))
    return READY if status.ready else NOT_READY


def _printed(found: Iterable[str]) -> Iterator[str]:
    return (f"{printable(line)}\n" for line in found)


def _kept(state: Path | None) -> dict[str, Any] | None:
    """What a state directory tells that was named, though no agent is there."""
    if state is None:
        return None
    try:
        return standing.offline(state)
    except StorageError as error:
        sys.stderr.write(f"{error}\n")
        return None


def _token(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            lines = file.read(TOKEN_BYTES_MAX).decode("ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _NoStatusError(
            USAGE, f"--token-file {path}: cannot be read: {error}"
        ) from error
    if not lines or not lines[0].strip():
        raise _NoStatusError(
            USAGE, f"--token-file {path}: expected a token in its first line"
        )
    return lines[0].strip()


def _addresses(namespace: argparse.Namespace) -> tuple[Address, ...]:
    if namespace.url is not None:
        return (_of_url(namespace.url),)
    if namespace.socket is not None:
        return (_of_socket(namespace.socket),)
    if namespace.state is not None:
        return (_of_socket(namespace.state / SOCKET_NAME),)
    states = [SERVICE_STATE]
    with suppress(ConfigError):  # no home: then no agent of this user's either
        states.insert(0, default_state())
    return tuple(_of_socket(state / SOCKET_NAME) for state in dict.fromkeys(states))


def _of_socket(path: Path) -> Address:
    return Address(f"unix:{path}", path=path)


def _of_url(url: str) -> Address:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _NoStatusError(USAGE, f"--url {url}: {error}") from error
    if parts.scheme not in ("http", "https") or not host or parts.path not in ("", "/"):
        raise _NoStatusError(USAGE, f"--url: expected http://HOST:PORT, found {url!r}")
    return Address(url, host=host, port=port, tls=parts.scheme == "https")


def _reachable(addresses: Sequence[Address]) -> Address:
    """The first address where someone listens."""
    tried = []
    for address in addresses:
        try:
            address.connect().close()
        except OSError as error:
            tried.append(f"  {address.text}: {error.strerror or error}")
        else:
            return address
    raise _NoStatusError(
        NO_AGENT,
        "no agent is there; tried\n" + "\n".join(tried) + "\n"
        "Is it elsewhere? Name it: --socket PATH, --state DIR or --url URL. Start one: "
        "edgeml-agent run --bundle FILE, or: systemctl start edgeml-agent",
    )


def _status(address: Address, token: str | None) -> Status:
    code, server = _ask(address, token, "GET", "/v2")
    if code == 401:
        raise _NoStatusError(
            REFUSED, f"{address.text}: it wants a token; give --token-file FILE"
        )
    if code != 200 or not isinstance(server, dict):
        raise _NoStatusError(
            NO_AGENT, f"{address.text}: what answers (HTTP {code}) is no agent"
        )
    ready, _ = _ask(address, token, "GET", "/v2/health/ready")
    _, index = _ask(address, token, "POST", "/v2/repository/index")
    _, counts = _ask(address, token, "GET", "/v2/models/stats")
    known, device = _ask(address, token, "GET", "/v1/device")
    if known != 200:  # an agent of before there were fleets
        device = {"enrolled": False}
    return Status(
        address=address.text,
        ready=ready == 200,
        name=_text(server, "name"),
        version=_text(server, "version"),
        models=tuple(_models(_list(index), _list(_dict(counts).get("model_stats")))),
        device=_dict(device),
    )


def _ask(
    address: Address, token: str | None, method: str, path: str
) -> tuple[int, Any]:
    """The status code, and the body as JSON (None where it is none)."""
    from http.client import HTTPException

    body = b"{}" if method == "POST" else None
    headers = {"Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    try:
        with closing(address.connect()) as connection:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            raw = response.read(ANSWER_BYTES_MAX)
    except TimeoutError as error:
        why = f"{address.text}: someone listens, and says nothing for {TIMEOUT_S:g} s"
        raise _NoStatusError(NOT_READY, why) from error
    except (OSError, HTTPException) as error:
        why = f"{address.text}: what listens there is no agent: {error!r}"
        raise _NoStatusError(NO_AGENT, why) from error
    try:
        return response.status, json.loads(raw)
    except (ValueError, RecursionError):  # also what is cut, or not UTF-8
        return response.status, None


def _models(index: list[Any], counts: list[Any]) -> Iterator[Model]:
    """Every version in the index, with what the statistics know of it."""
    known = {(_text(one, "name"), _text(one, "version")): one for one in counts}
    for entry in index:
        name, version = _text(entry, "name"), _text(entry, "version")
        state, reason = _text(entry, "state"), _text(entry, "reason")
        found = known.get((name, version))
        if found is None:
            yield Model(name, version, state, reason)
            continue
        took = _dict(_dict(found).get("inference_stats"))
        success, fail = _dict(took.get("success")), _dict(took.get("fail"))
        answered, failed = _whole(success, "count"), _whole(fail, "count")
        refused = _dict(_dict(found).get("refused"))
        yield Model(
            name, version, state, reason,
            requests=answered + failed,
            failures=failed,
            refused={why: _whole(refused, why) for why in sorted(refused)},
            mean_ms=_whole(success, "ns") / answered / 1e6 if answered else None,
        )  # fmt: skip


def _lines(status: Status) -> Iterator[str]:
    state = "ready" if status.ready else "not ready"
    yield f"{status.name} {status.version} at {status.address}: {state}"
    yield from _of_models(status)
    yield from standing.lines(status.device)


def _of_models(status: Status) -> Iterator[str]:
    if not status.models:
        yield "no model is loaded"
        return
    rows = [
        ("model", "version", "state", "requests", "failures", "refused", "mean ms"),
        *(_row(model) for model in status.models),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
    for model in status.models:
        label = f"{model.name} {model.version}".strip()
        if model.reason:
            yield f"{label}: {model.reason}"
        if model.refused:
            why = ", ".join(f"{name} {count}" for name, count in model.refused.items())
            yield f"{label}: refused: {why}"


def _row(model: Model) -> tuple[str, ...]:
    refused = None if model.refused is None else sum(model.refused.values())
    figures = (model.requests, model.failures, refused)
    return (
        printable(model.name),
        printable(model.version) or "-",
        printable(model.state),
        *("-" if figure is None else str(figure) for figure in figures),
        "-" if model.mean_ms is None else f"{model.mean_ms:.3f}",
    )


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any, key: str) -> str:
    found = _dict(value).get(key, "")
    return found if isinstance(found, str) else str(found)


def _whole(value: dict[str, Any], key: str) -> int:
    found = value.get(key, 0)
    return found if isinstance(found, int) else 0
