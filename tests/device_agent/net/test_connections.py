"""Who leaves when there are too many, and what the reserve answers."""

import contextlib
import socket
import time

from .conftest import Serve, Tiny, answer, drained, error, eventually, request

PARTIAL = b"POST /partial HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx"


def idle(tiny: Tiny) -> socket.socket:
    """A connection that has had an answer."""
    sock = tiny.connect()
    sock.sendall(request("/idle"))
    assert answer(sock)[0] == 200
    return sock


def busy(tiny: Tiny) -> socket.socket:
    """A connection with a request under way until ``tiny.released`` is set."""
    sock = tiny.connect()
    before = len(tiny.seen)
    sock.sendall(request("/held"))
    eventually(lambda: len(tiny.seen) > before)
    return sock


def tick() -> None:
    """Longer than the table's clock takes to move on."""
    time.sleep(0.3)


def test_newcomers_take_the_place_of_the_unused_then_the_idlest(serve: Serve) -> None:
    with serve(connections=3) as tiny, contextlib.ExitStack() as stack:
        older = stack.enter_context(idle(tiny))
        tick()
        unused = stack.enter_context(tiny.connect())
        younger = stack.enter_context(idle(tiny))
        assert tiny.counts.open == 3
        stack.enter_context(idle(tiny))
        assert drained(unused) == b""
        stack.enter_context(idle(tiny))
        assert drained(older) == b""
        assert tiny.counts.evicted == {"unused": 1, "idle": 1}
        younger.sendall(request())
        assert answer(younger)[0] == 200
        assert (tiny.counts.open, tiny.counts.reserved) == (3, 0)


def test_the_idlest_goes_for_newcomers_that_are_few(serve: Serve) -> None:
    with serve(connections=16, reserved_connections=2) as tiny:
        used = [idle(tiny) for _ in range(15)]
        tick()
        fresh = tiny.connect()
        eventually(lambda: tiny.counts.open == 16)
        assert tiny.get("/")[0] == 200
        assert tiny.counts.evicted == {"idle": 1}
        assert drained(used[0]) == b""
        fresh.sendall(request("/", b"x"))
        assert answer(fresh)[1] == b"x"
        for sock in (fresh, *used):
            sock.close()


def test_among_busy_ones_a_newcomer_gets_time_to_ask(serve: Serve) -> None:
    with serve(connections=8, reserved_connections=2) as tiny:
        under_way = [busy(tiny) for _ in range(7)]
        fresh = tiny.connect()
        eventually(lambda: tiny.counts.open == 8)
        assert tiny.get("/v2/health/live")[0] == 200
        fresh.sendall(request("/", b"x"))
        assert answer(fresh)[1] == b"x"
        for sock in (fresh, *under_way):
            sock.close()


def test_a_stalled_body_gives_way_to_a_newcomer(serve: Serve) -> None:
    with serve(connections=1, reserved_connections=1) as tiny:
        with tiny.connect() as stalled:
            stalled.sendall(PARTIAL)
            eventually(lambda: tiny.counts.open == 1)
            time.sleep(1.2)
            assert tiny.get("/")[0] == 200
            assert drained(stalled) == b""
        eventually(lambda: tiny.gone == ["/partial"])
        assert tiny.counts.evicted == {"stalled": 1}


def test_reserve_answers_health_and_nothing_else(serve: Serve) -> None:
    with serve(connections=2, reserved_connections=2) as tiny:
        under_way = [busy(tiny), busy(tiny)]
        for path in ("/v2/health/live", "/v2/models/a/ready", "/metrics"):
            assert tiny.get(path)[0] == 200
        with tiny.connect() as sock:
            sock.sendall(request("/v2/models/a/infer", b"x" * 100_000))
            raw = drained(sock)
        assert error(raw)[0] == 503
        assert b"retry-after: 1\r\n" in raw.lower()
        assert tiny.counts.refused["reserve"] == 1
        tiny.released.set()
        assert all(answer(sock)[0] == 200 for sock in under_way)
        assert tiny.get("/")[0] == 200
        for sock in under_way:
            sock.close()


def test_a_reserved_connection_is_served_when_there_is_room(serve: Serve) -> None:
    with serve(connections=1, reserved_connections=1) as tiny:
        with busy(tiny) as sock:
            kept = tiny.connect()
            kept.sendall(request("/v2/health/live"))
            assert answer(kept)[0] == 200
            assert tiny.counts.reserved == 1
            tiny.released.set()
            assert answer(sock)[0] == 200
        eventually(lambda: tiny.counts.open == 0)
        kept.sendall(request("/", b"x"))
        assert answer(kept)[1] == b"x"
        assert (tiny.counts.open, tiny.counts.reserved) == (1, 0)
        kept.close()


def test_the_reserve_turns_nobody_away(serve: Serve) -> None:
    with serve(connections=1, reserved_connections=2) as tiny, tiny.connect() as held:
        held.sendall(PARTIAL)
        tick()
        crowd = [tiny.connect() for _ in range(20)]
        eventually(lambda: tiny.counts.accepted == 21)
        assert tiny.get("/v2/health/live")[0] == 200
        assert tiny.counts.reserved <= 2
        for sock in crowd:
            sock.close()


def test_health_answers_in_a_crowd_that_keeps_coming(serve: Serve) -> None:
    with serve(connections=8, reserved_connections=4) as tiny:
        crowd: list[socket.socket] = []
        worst_s = 0.0
        for _ in range(20):
            crowd += [tiny.connect() for _ in range(20)]
            started = time.monotonic()
            assert tiny.get("/v2/health/live")[0] == 200
            worst_s = max(worst_s, time.monotonic() - started)
        assert worst_s < 1.0
        assert tiny.counts.open <= 8
        for sock in crowd:
            sock.close()


def test_counts_return_to_nothing(serve: Serve) -> None:
    with serve(connections=4, reserved_connections=2) as tiny:
        crowd = [tiny.connect() for _ in range(50)]
        eventually(lambda: tiny.counts.accepted == 50)
        for sock in crowd:
            sock.close()
        eventually(lambda: tiny.counts.open + tiny.counts.reserved == 0)
        assert tiny.server.table.emptied.is_set()
        assert not tiny.server._state.connections
