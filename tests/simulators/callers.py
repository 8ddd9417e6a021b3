"""Callers that ask a model over HTTP, all the time, and look at every answer.

::

    with calling(device.url, check) as callers:
        ...
        callers.more(20)
    assert not callers.failures

1. Each keeps one connection and asks the next as soon as it has an answer, or
   ``pause_s`` later.
2. A request is lost when its connection ends without an answer; that is a failure.
3. ``check`` looks at an answer and says which version gave it.
"""

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np

X = np.ones((1, 4), np.float32)
_ITEM = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": X.tolist()}


@dataclass(frozen=True)
class Failure:
    """A request that was not answered as it should."""

    status: int
    """0: the connection ended."""
    text: str
    retry_after: str | None = None


@dataclass(frozen=True)
class Answer:
    """A request that was, and the version that says so."""

    version: str
    asked_s: float
    """When it was asked, on the monotonic clock."""
    answered_s: float
    """When all of it was here. Callers that are many note theirs in any order."""


@dataclass
class Callers:
    """What they have seen so far."""

    url: str
    check: Callable[[Any], str]
    model: str
    pause_s: float = 0.0
    answers: list[Answer] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    asked: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def more(self, count: int, within_s: float = 20.0) -> list[Answer]:
        """Wait for so many answers to what is asked from now on; they."""
        since, seen = time.monotonic(), len(self.answers)
        while time.monotonic() < since + within_s:
            found = [one for one in self.answers[seen:] if one.asked_s > since]
            if len(found) >= count:
                return found
            time.sleep(0.002)
        raise AssertionError(
            f"no {count} answers in {within_s:g} s: {self.failures[-3:]}"
        )

    def _call(self, number: int) -> None:
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(address.netloc, timeout=30)
        turn = 0
        while not self._stop.is_set():
            turn += 1
            try:
                self._ask(connection, f"{number}.{turn}")
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(Failure(0, repr(error)))
                connection.close()
            if self.pause_s:
                self._stop.wait(self.pause_s)
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection, name: str) -> None:
        body = json.dumps({"id": name, "inputs": [_ITEM]})
        with self._lock:
            self.asked += 1
        asked_s = time.monotonic()
        connection.request("POST", f"/v2/models/{self.model}/infer", body)
        answer = connection.getresponse()
        raw = answer.read()
        answered_s = time.monotonic()
        if answer.status != 200:
            found = Failure(
                answer.status, raw.decode()[:500], answer.getheader("Retry-After")
            )
            self.failures.append(found)
            return
        document = json.loads(raw)
        try:
            assert document["id"] == name, "the answer to another question"
            version = self.check(document)
        except AssertionError as error:
            self.failures.append(Failure(200, f"{error}: {raw.decode()[:300]}"))
            return
        self.answers.append(Answer(version, asked_s, answered_s))


@contextmanager
def calling(
    url: str,
    check: Callable[[Any], str],
    count: int = 8,
    model: str = "linear",
    pause_s: float = 0.0,
) -> Iterator[Callers]:
    """Let ``count`` callers ask until the end of the block."""
    callers = Callers(url, check, model, pause_s)
    threads = [
        threading.Thread(target=callers._call, args=(number,), daemon=True)
        for number in range(count)
    ]
    for thread in threads:
        thread.start()
    try:
        yield callers
    finally:
        callers._stop.set()
        for thread in threads:
            thread.join(40)
    assert callers.asked == len(callers.answers) + len(callers.failures), "lost"


def post(url: str, path: str, timeout_s: float = 60.0) -> tuple[int, Any]:
    """One request of somebody else; status and the JSON of the answer, if any."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=timeout_s)
    connection.request("POST", path, b"{}")
    answer = connection.getresponse()
    raw = answer.read()
    connection.close()
    return answer.status, json.loads(raw) if raw else None
