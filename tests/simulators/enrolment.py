"""A fleet as far as enrolment goes: a real HTTPS server with a real authority.

::

    with enrolling(broker) as fleet:
        token = fleet.token("cam-7")
        enroll(state, REAL, fleet.url, token, poster(fleet.ca, now))
"""

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from brokers import TENANT

from device_agent.contract.enrolment import (
    ENROLMENT_BYTES_MAX,
    PATH,
    BrokerAddress,
    Enrolment,
    Membership,
    Refusal,
)
from device_agent.contract.errors import MessageError
from device_agent.contract.messages import read, write
from edgeml.authority import Authority
from edgeml.errors import InputError

KEY = {
    "keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": "00" * 32},
}  # fmt: skip
ROOT = json.dumps({"signed": {"_type": "root", "version": 1}, "signatures": []})


class EnrolmentServer:
    """Tokens, and who used them."""

    def __init__(self, authority: Authority, folder: Path) -> None:
        self.authority = authority
        self.folder = folder
        self.url = ""
        self.clock = lambda: datetime.now(UTC)
        self.changes: dict[str, Any] = {}
        """Fields of the answer that are other than they should be."""
        self.answer: tuple[int, dict[str, str], bytes] | None = None
        """In place of any other answer: status, headers, body."""
        self.asked: list[Enrolment] = []
        self.broker = BrokerAddress(host="127.0.0.1", port=8883)
        self.root, self.director = ROOT, {"keys": {"d": KEY}}
        self.registry = ("https://registry.example/",)
        self._tokens: dict[str, tuple[str, datetime]] = {}
        self._used: dict[str, tuple[str, bytes]] = {}

    @property
    def ca(self) -> Path:
        """Whom to believe to be this server."""
        return self.folder / "server-ca.crt"

    def token(self, device: str, life: timedelta = timedelta(hours=1)) -> str:
        """A new one-time token for a device."""
        token = f"token-{len(self._tokens) + 1}"
        self._tokens[token] = device, self.clock() + life
        return token

    def enrolled(self, raw: bytes) -> tuple[int, dict[str, str], bytes]:
        """The answer to a request: status, headers, body."""
        if self.answer is not None:
            return self.answer
        try:
            asked = read(raw, Enrolment, ENROLMENT_BYTES_MAX)
        except MessageError as error:
            return _refusal(400, "csr_invalid", str(error))
        self.asked.append(asked)
        known = self._tokens.get(asked.token)
        if known is None:
            return _refusal(403, "token_unknown", "there is no such token")
        device, until = known
        if self.clock() > until:
            return _refusal(403, "token_expired", f"the token was good until {until}")
        key = _public(asked.csr)
        used, answer = self._used.get(asked.token, (key, b""))
        if used != key:
            return _refusal(409, "token_used", "the token was used by another key")
        if not answer:
            try:
                answer = write(self._membership(device, asked))
            except InputError as error:
                return _refusal(400, "csr_invalid", str(error))
            self._used[asked.token] = key, answer
        return 200, {"Content-Type": "application/json"}, answer

    def _membership(self, device: str, asked: Enrolment) -> Membership:
        certificate = self.authority.client(asked.csr.encode(), device, self.clock())
        fields: dict[str, Any] = {
            "tenant": TENANT, "device": device, "certificate": certificate.decode(),
            "ca": self.authority.certificate.decode(), "broker": self.broker,
            "registry": self.registry, "root": self.root, "director": self.director,
            "time": self.clock(),
        }  # fmt: skip
        return Membership.model_construct(**{**fields, **self.changes})


@contextmanager
def enrolling(
    folder: Path, authority: Authority | None = None, *,
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost"),
    certified: datetime | None = None,
) -> Iterator[EnrolmentServer]:  # fmt: skip
    """Serve until the test ends.

    Args:
        folder: for its certificates.
        authority: whose certificates devices get; None: a new one.
        hosts: what its own certificate is for.
        certified: when that began; None: now.
    """
    now = datetime.now(UTC)
    folder.mkdir(parents=True, exist_ok=True)
    own = Authority.create("the server's CA", certified or now)
    server = EnrolmentServer(authority or Authority.create("devices", now), folder)
    pair = own.server(hosts, certified or now)
    (folder / "server.pem").write_bytes(pair.key + pair.certificate)
    server.ca.write_bytes(own.certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    listener = ThreadingHTTPServer(("127.0.0.1", 0), _answering(server))
    listener.socket = context.wrap_socket(listener.socket, server_side=True)
    server.url = f"https://127.0.0.1:{listener.server_port}"
    thread = threading.Thread(target=listener.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()


def _answering(server: EnrolmentServer) -> type[BaseHTTPRequestHandler]:
    class Answering(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = int(self.headers.get("Content-Length", "0"))
            raw = self.rfile.read(min(size, ENROLMENT_BYTES_MAX + 1))
            answer = server.enrolled(raw) if self.path == PATH else (404, {}, b"")
            status, headers, body = answer
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    return Answering


def _refusal(status: int, reason: str, text: str) -> tuple[int, dict[str, str], bytes]:
    body = write(Refusal(reason=reason, text=text))
    return status, {"Content-Type": "application/json"}, body


def _public(csr: str) -> str:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    try:
        found = x509.load_pem_x509_csr(csr.encode())
    except ValueError:
        return ""
    key = found.public_key()
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()
