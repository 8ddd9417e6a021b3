"""HTTP/1.1 by hand: what goes over the wire is what a case says, and nothing else.

A client library adds headers, retries, decompresses and follows; a conformance case
must not.
"""

import gzip
import http.client
import json
import socket
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn
from urllib.parse import urlsplit

TIMEOUT_S = 30.0


def _not_json(literal: str) -> NoReturn:
    raise ValueError(f"{literal} is not JSON")


@dataclass(frozen=True)
class Answer:
    """One response; header names are lower-case, ``body`` as it came."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    version: str = "HTTP/1.1"

    @property
    def decoded(self) -> bytes:
        """The body without its content encoding."""
        match self.headers.get("content-encoding", "identity"):
            case "identity":
                return self.body
            case "gzip":
                return gzip.decompress(self.body)
            case "deflate":
                return zlib.decompress(self.body)
            case other:
                raise AssertionError(f"content encoding {other!r} was not asked for")

    @property
    def json(self) -> Any:
        """The body as strict JSON: no NaN, no Infinity, UTF-8."""
        return json.loads(self.decoded.decode(), parse_constant=_not_json)

    @property
    def media_type(self) -> str:
        """The content type without its parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


class Server:
    """A v2 server by its URL."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme != "http":
            raise ValueError(f"expected http://HOST:PORT, got {url!r}")
        self.host = parts.hostname or "127.0.0.1"
        self.port = parts.port or 80
        self.prefix = parts.path.rstrip("/")
        self.headers = dict(headers or {})

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str | None] | None = None,
    ) -> Answer:
        """One request, one connection; a header that is None is not sent."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT_S)
        try:
            return self.ask(connection, method, path, body, headers)
        finally:
            connection.close()

    def ask(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str | None] | None = None,
    ) -> Answer:
        """One request over a connection that the case keeps."""
        connection.putrequest(method, self.prefix + path, skip_accept_encoding=True)
        sent = {**self.headers, **(headers or {})}
        if body is not None and not {"content-length"} & set(map(str.lower, sent)):
            sent["Content-Length"] = str(len(body))
        for name, value in sent.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        got = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, got, response.read())

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        return self.request("GET", path, headers=headers)

    def post(
        self,
        path: str,
        body: bytes | object = b"",
        headers: Mapping[str, str | None] | None = None,
    ) -> Answer:
        """POST of bytes, or of an object as JSON; no content type unless given."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("POST", path, raw, headers)

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection((self.host, self.port), TIMEOUT_S)

    def head(
        self, method: str, path: str, *lines: str, version: str = "HTTP/1.1"
    ) -> bytes:
        """Request line and headers as bytes, the empty line included."""
        own = [f"{name}: {value}" for name, value in self.headers.items()]
        host = [f"Host: {self.host}:{self.port}"] if version == "HTTP/1.1" else []
        first = f"{method} {self.prefix}{path} {version}"
        return "\r\n".join([first, *host, *own, *lines, "", ""]).encode()

    def exchange(
        self, *parts: bytes, methods: Sequence[str] = ("POST",)
    ) -> list[Answer]:
        """Send bytes as they are; read one answer for each of ``methods``.

        Fewer answers come back where the server closed the connection.
        """
        with self.connect() as peer:
            for part in parts:
                peer.sendall(part)
            with peer.makefile("rb") as stream:
                return read_answers(stream, methods)


def read_answers(stream: BinaryIO, methods: Sequence[str]) -> list[Answer]:
    """As many answers as methods, or as came before the end."""
    found: list[Answer] = []
    for method in methods:
        answer = read_answer(stream, method)
        if answer is None:
            break
        found.append(answer)
    return found


def read_answer(stream: BinaryIO, method: str = "POST") -> Answer | None:
    """The next answer that is final or 100; None at the end of the stream."""
    try:
        line = stream.readline(65_537)
    except ConnectionResetError:
        return None
    if not line:
        return None
    version, status, *_ = line.decode("latin-1").split(" ", 2)
    parsed = http.client.parse_headers(stream)
    headers = {name.lower(): value for name, value in parsed.items()}
    code = int(status)
    if method == "HEAD" or code == 100 or code in (204, 304):
        body = b""
    elif "chunked" in headers.get("transfer-encoding", "").lower():
        body = _chunks(stream)
    elif "content-length" in headers:
        body = stream.read(int(headers["content-length"]))
        assert len(body) == int(headers["content-length"]), "the body ended early"
    else:
        body = stream.read()
    return Answer(code, headers, body, version)


def _chunks(stream: BinaryIO) -> bytes:
    parts = []
    while True:
        size = int(stream.readline().partition(b";")[0], 16)
        if size == 0:
            while stream.readline().strip():  # trailers
                continue
            return b"".join(parts)
        parts.append(stream.read(size))
        assert stream.readline() == b"\r\n"


def chunked(*parts: bytes) -> bytes:
    """A body in chunks, its end included."""
    sent = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return sent + b"0\r\n\r\n"
