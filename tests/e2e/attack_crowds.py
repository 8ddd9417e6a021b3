"""Attacks by many: more connections than there are places, held or thrown away."""

import contextlib
import time

from .attack_tools import (
    Target,
    all_closed,
    closed,
    infer,
    post,
    request,
    statuses,
    together,
)

INFER = "/v2/models/linear/infer"
BODY = infer([1, 4], [1, 2, 3, 4])


def idle_2000(target: Target) -> str:
    """2,000 idle sockets, held; one who has work is served all the same."""
    socks = target.crowd(2000)
    with all_closed(socks):
        served = sum(target.ask(INFER, BODY)[0] == 200 for _ in range(20))
        assert served == 20, served
        closed(socks, target.header_s + 3)
    return "20 of 20 served meanwhile"


def idle_after_use(target: Target) -> str:
    """600 callers are answered once, and stay."""
    socks = []
    with all_closed(socks):
        for _ in range(600):
            sock = target.connect()
            socks.append(sock)
            sock.sendall(request(INFER, BODY))
            assert statuses(sock.recv(1000)) == [200]
        assert target.ask("/v2/health/ready")[0] == 200
    return "600 answered"


def every_place_taken(target: Target) -> str:
    """400 unfinished bodies that keep coming: only the reserve is left for others."""
    socks = []
    stop = time.monotonic() + target.body_s
    with all_closed(socks):
        for _ in range(400):
            sock = target.connect()
            socks.append(sock)
            sock.sendall(post(INFER, b"Content-Length: 1000") + b"\r\n{")
        seen = []
        while time.monotonic() < stop - 0.5:
            for sock in socks:
                with contextlib.suppress(OSError):
                    sock.sendall(b" ")
            seen.append(target.ask("/v2/health/ready")[0])
            time.sleep(0.1)
        assert set(seen) == {200}, seen
    return f"{len(seen)} times ready"


def churn(target: Target) -> str:
    """Connections opened and closed as fast as two threads can, for two seconds."""
    counts: list[int] = []
    stop = time.monotonic() + 2.0

    def run() -> None:
        count = 0
        while time.monotonic() < stop:
            with contextlib.suppress(OSError):
                target.connect().close()
                count += 1
        counts.append(count)

    together(run, 2)
    return f"{sum(counts)} connections"


def crowd_of_bodies(target: Target) -> str:
    """60 callers send 1 MB each and stop before its end: together over the budget."""
    size_bytes = 1_000_000
    head = post("/v2/models/broad/infer", b"Content-Length: %d" % size_bytes)
    socks = []
    with all_closed(socks):
        for _ in range(60):
            sock = target.connect()
            socks.append(sock)
            sock.settimeout(2.0)
            with contextlib.suppress(OSError):
                sock.sendall(head + b"\r\n" + b" " * (size_bytes - 1))
        said = closed(socks, target.body_s + 4)
    seen = [statuses(raw)[0] for raw in said]
    return str({status: seen.count(status) for status in set(seen)})


def hard_questions(target: Target) -> str:
    """16 callers ask for what costs most to answer: pages, metrics, the API's text."""
    stop = time.monotonic() + 2.0
    counts: list[int] = []

    def run() -> None:
        done = 0
        while time.monotonic() < stop:
            for path in ("/metrics", "/openapi.json", "/docs", "/", "/v2/models/stats"):
                assert target.ask(path)[0] in (200, 429, 503), path
                done += 1
        counts.append(done)

    together(run, 16)
    assert len(counts) == 16
    return f"{sum(counts)} answers"
