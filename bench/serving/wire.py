"""Requests as bytes, answers as arrays: how each kind of server is asked.

Every request is built once, before the measurement; every first answer is compared with
what the model answers without a server.
"""

import http.client
import json
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Array = np.ndarray
POLL_S = 0.005
ANSWER_S = 30.0
BINARY_HEADER = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Address:
    """Where a server listens: a port of the loopback, or a unix socket."""

    port: int = 0
    path: Path | None = None

    def connect(self) -> socket.socket:
        """A connection; OSError when nobody listens."""
        if self.path is None:
            return socket.create_connection(("127.0.0.1", self.port), ANSWER_S)
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(ANSWER_S)
        try:
            made.connect(str(self.path))
        except OSError:
            made.close()
            raise
        return made


@dataclass(frozen=True)
class Answer:
    """One HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


Reader = Callable[[Answer], Array]


@dataclass(frozen=True)
class Ask:
    """One way to ask for an inference, and to read what comes back."""

    path: str
    body: Callable[[Array], tuple[bytes, dict[str, str]]]
    """Input → body and headers."""
    read: Reader

    def request(self, model: str, feed: Array) -> bytes:
        """The request as it goes over the wire."""
        body, headers = self.body(feed)
        lines = [
            f"POST {self.path.format(model=model)} HTTP/1.1", "Host: localhost",
            *(f"{name}: {value}" for name, value in headers.items()),
            f"Content-Length: {len(body)}",
        ]  # fmt: skip
        return "\r\n".join([*lines, "", ""]).encode() + body


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def exchange(address: Address, request: bytes) -> Answer:
    """Send one request on a connection of its own and read the answer.

    Raises:
        OSError: nobody listens, or the server hung up or was silent.
    """
    with address.connect() as link:
        link.sendall(request)
        response = http.client.HTTPResponse(link)
        try:
            response.begin()
            body = response.read()
        except http.client.HTTPException as error:
            raise OSError(f"not an HTTP answer: {error!r}") from error
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, body)


def first_answer(
    address: Address, request: bytes, alive: Callable[[], bool], limit_s: float
) -> Answer:
    """Ask every 5 ms until an answer has status 200.

    Raises:
        TimeoutError: there is none within the limit, or the server ended; the text
            says what came last.
    """
    end, last = time.monotonic() + limit_s, "nothing"
    while time.monotonic() < end:
        try:
            answer = exchange(address, request)
        except OSError as error:
            last = str(error) or type(error).__name__
        else:
            if answer.status == 200:
                return answer
            last = f"{answer.status} {answer.body[:200].decode(errors='replace')}"
        if not alive():
            raise TimeoutError("it ended before it answered")
        time.sleep(POLL_S)
    raise TimeoutError(f"no answer within {limit_s:.0f} s; the last was: {last}")


def oip_json(feed: Array) -> tuple[bytes, dict[str, str]]:
    """Open Inference Protocol; numbers as ``tolist()`` gives them."""
    return _json(
        {
            "id": "1",
            "inputs": [
                {"name": "x", "shape": feed.shape, "datatype": "FP32",
                 "data": feed.ravel().tolist()}
            ],
        }
    )  # fmt: skip


def oip_binary(feed: Array) -> tuple[bytes, dict[str, str]]:
    """Open Inference Protocol with the tensors behind the JSON, both ways."""
    head, _ = _json(
        {
            "id": "1",
            "inputs": [
                {"name": "x", "shape": feed.shape, "datatype": "FP32",
                 "parameters": {"binary_data_size": feed.nbytes}}
            ],
            "parameters": {"binary_data_output": True},
        }
    )  # fmt: skip
    headers = {
        BINARY_HEADER: str(len(head)),
        "Content-Type": "application/octet-stream",
    }
    return head + feed.tobytes(), headers


def listed(field: str) -> Callable[[Array], tuple[bytes, dict[str, str]]]:
    """``{field: [numbers]}``."""
    return lambda feed: _json({field: feed.ravel().tolist()})


def plain_bytes(feed: Array) -> tuple[bytes, dict[str, str]]:
    """The tensor's bytes and nothing else."""
    return feed.tobytes(), {"Content-Type": "application/octet-stream"}


def read_oip(answer: Answer) -> Array:
    """The first output, as JSON or behind it."""
    header_bytes = int(answer.headers.get(BINARY_HEADER.lower(), 0))
    if header_bytes:
        return np.frombuffer(answer.body, np.float32, offset=header_bytes)
    return np.array(json.loads(answer.body)["outputs"][0]["data"], np.float32).ravel()


def read_listed(field: str | None) -> Reader:
    """``{field: [numbers]}``, or the numbers alone."""

    def read(answer: Answer) -> Array:
        found = json.loads(answer.body)
        return np.array(found[field] if field else found, np.float32).ravel()

    return read


def read_bytes(answer: Answer) -> Array:
    """The tensor's bytes and nothing else."""
    return np.frombuffer(answer.body, np.float32)


def _json(value: object) -> tuple[bytes, dict[str, str]]:
    return json.dumps(value).encode(), {"Content-Type": "application/json"}
