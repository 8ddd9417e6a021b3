"""What one connection may take: the same of both parsers, on both loops."""

import json
import socket
import time
from itertools import pairwise

import pytest

from .conftest import Serve, answer, drained, error, eventually, request

SHORT = {"header_s": 0.5, "body_s": 0.5}


def test_requests_follow_each_other_on_one_connection(serve: Serve) -> None:
    with serve() as tiny, tiny.connect() as sock:
        for number in range(3):
            sock.sendall(request("/a%20b?c=d", b"%d" % number))
            status, body, headers = answer(sock)
            assert (status, body) == (200, b"%d" % number)
            assert headers["date"].endswith("GMT")
            assert headers["connection"] is None
        assert tiny.seen == [("POST", "/a b", b"%d" % n) for n in range(3)]
        assert tiny.counts.accepted == tiny.counts.open == 1
    eventually(lambda: tiny.counts.open == 0)


def test_unix_socket_serves_the_same(serve: Serve) -> None:
    with serve() as tiny, socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(tiny.socket))
        sock.sendall(request("/", b"hello"))
        assert answer(sock)[:2] == (200, b"hello")


def test_http_1_0_is_answered_and_closed(serve: Serve) -> None:
    with serve() as tiny:
        raw = tiny.exchange(b"GET / HTTP/1.0\r\n\r\n")
        assert raw.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"connection: close" in raw.lower()


def test_headers_have_an_absolute_deadline(serve: Serve) -> None:
    with serve(**SHORT) as tiny, tiny.connect() as sock:
        started = time.monotonic()
        sock.sendall(b"GET / HTTP/1.1\r\nX: ")
        sock.settimeout(0.05)
        raw = b""
        while not raw:  # a byte at a time keeps no connection alive
            try:
                sock.sendall(b"a")
                raw = sock.recv(1000)
            except TimeoutError:
                assert time.monotonic() < started + 5
        assert error(raw) == (408, "the headers were not here within 0.5 s")
        assert time.monotonic() >= started + 0.5
        assert tiny.counts.refused["header_timeout"] == 1


def test_deadline_of_the_next_request_starts_at_its_first_byte(serve: Serve) -> None:
    with serve(**SHORT) as tiny, tiny.connect() as sock:
        sock.sendall(request("/1"))
        assert answer(sock)[0] == 200
        time.sleep(1.2)  # idle is not slow
        sock.sendall(request("/2") + b"GET")
        assert answer(sock)[0] == 200
        assert error(drained(sock))[0] == 408


def test_a_caller_that_says_nothing_is_closed_without_a_word(serve: Serve) -> None:
    with serve(**SHORT) as tiny, tiny.connect() as sock:
        assert drained(sock) == b""
        assert tiny.counts.evicted["silent"] == 1


def test_body_has_an_absolute_deadline(serve: Serve) -> None:
    with serve(**SHORT) as tiny, tiny.connect() as sock:
        sock.sendall(
            b"POST /slow-body HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"
        )
        for _ in range(3):
            sock.sendall(b"x")
            time.sleep(0.1)
        assert error(drained(sock)) == (408, "the body was not here within 0.5 s")
        eventually(lambda: tiny.gone == ["/slow-body"])


def test_idle_connections_are_closed(serve: Serve) -> None:
    with serve(keep_alive_s=0.5) as tiny, tiny.connect() as sock:
        sock.sendall(request())
        assert answer(sock)[0] == 200
        assert drained(sock) == b""
        assert tiny.counts.evicted["keep_alive"] == 1


@pytest.mark.parametrize(
    "raw",
    [
        request("/", b"", *(f"x-{n}: 1" for n in range(200))),
        request("/", b"", "x: " + "a" * 5000),
        request("/", b"", *(f"x{n}: {'a' * 100}" for n in range(50))),
        request("/" + "a" * 5000),
        b"GET /" + b"a" * 5000,
        b"GET / HTTP/1.1\r\nx: " + b"a" * 5000,
    ],
    ids=["many", "large", "together", "url", "endless-url", "endless"],
)
def test_headers_have_a_size(serve: Serve, raw: bytes) -> None:
    with serve(header_bytes=4000, headers=100) as tiny:
        status, text = error(tiny.exchange(raw))
        assert status == 431
        assert "headers" in text
        with tiny.connect() as sock:
            for at in range(0, len(raw), 100):
                sock.sendall(raw[at : at + 100])
            assert error(drained(sock))[0] == 431
        assert tiny.seen == []


HEAD = b"POST /x HTTP/1.1\r\nHost: a\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n"
MALFORMED = {
    "length-and-chunks": CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n",
    "chunks-and-length": HEAD
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two-lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "same-length-twice": HEAD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "list-of-lengths": HEAD + b"Content-Length: 5, 5\r\n\r\nhello",
    "signed-length": HEAD + b"Content-Length: +5\r\n\r\nhello",
    "negative-length": HEAD + b"Content-Length: -5\r\n\r\nhello",
    "hex-length": HEAD + b"Content-Length: 0x5\r\n\r\nhello",
    "chunks-in-1.0": CHUNKED.replace(b"/1.1", b"/1.0") + b"\r\n0\r\n\r\n",
    "bare-lf": HEAD.replace(b"\r\n", b"\n") + b"Content-Length: 5\n\nhello",
    "one-bare-lf": HEAD + b"X: y\nContent-Length: 5\r\n\r\nhello",
    "last-lf": HEAD + b"Content-Length: 5\r\n\nhello",
    "bare-cr": HEAD + b"X: y\rContent-Length: 5\r\n\r\nhello",
    "folded": HEAD + b"X: y\r\n z\r\nContent-Length: 5\r\n\r\nhello",
    "folded-framing": HEAD + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "space-before-colon": HEAD + b"Content-Length : 5\r\n\r\nhello",
    "null-in-value": HEAD + b"X: y\0z\r\n\r\n",
    "null-in-path": b"GET /a\0b HTTP/1.1\r\nHost: a\r\n\r\n",
    "chunk-size-prefix": CHUNKED + b"\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "negative-chunk": CHUNKED + b"\r\n-5\r\nhello\r\n0\r\n\r\n",
    "huge-chunk": CHUNKED + b"\r\n" + b"f" * 30 + b"\r\nhello\r\n0\r\n\r\n",
    "chunk-end": CHUNKED + b"\r\n5\r\nhelloXX0\r\n\r\n",
    "no-http": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xaa" * 200,
    "garbage": bytes(range(256)) * 4,
    "http-2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED)
def test_what_could_be_read_in_two_ways_is_not_read(serve: Serve, raw: bytes) -> None:
    with serve(**SHORT) as tiny:
        status, text = error(tiny.exchange(raw + request("/smuggled")))
        assert status == 400, text
        assert tiny.seen == []


@pytest.mark.parametrize(
    "raw",
    [
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PROPFIND / HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
    ids=["coding", "trace", "connect", "webdav"],
)
def test_what_is_not_served_is_said_to_be(serve: Serve, raw: bytes) -> None:
    with serve() as tiny:
        assert error(tiny.exchange(raw))[0] == 501
        assert tiny.seen == []


@pytest.mark.parametrize(
    "body",
    [b"Content-Length: 5\r\n\r\nhello",
     b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"],
    ids=["length", "chunks"],
)  # fmt: skip
def test_upgrade_is_ignored(serve: Serve, body: bytes) -> None:
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    with serve() as tiny, tiny.connect() as sock:
        sock.sendall(HEAD + upgrade + body + request("/2"))
        sock.shutdown(socket.SHUT_WR)
        raw = drained(sock)
        assert raw.count(b"HTTP/1.1 200 OK") == 2
        assert tiny.seen == [("POST", "/x", b"hello"), ("GET", "/2", b"")]


def test_websocket_gets_a_plain_answer(serve: Serve) -> None:
    upgrade = ("Connection: Upgrade", "Upgrade: websocket")
    with serve() as tiny, tiny.connect() as sock:
        for _ in range(2):
            sock.sendall(request("/", b"", *upgrade))
            assert answer(sock)[0] == 200


def test_expect_is_answered_before_the_body_is_sent(serve: Serve) -> None:
    with serve(body_bytes=1000) as tiny, tiny.connect() as sock:
        sock.sendall(request("/", b"x" * 500, "Expect: 100-continue")[:-500])
        assert sock.recv(1000).startswith(b"HTTP/1.1 100 Continue\r\n")
        sock.sendall(b"y" * 500)
        assert answer(sock)[1] == b"y" * 500
        sock.sendall(request("/", b"x" * 1001, "Expect: 100-continue")[:-1001])
        status, text = error(drained(sock))
        assert status == 413
        assert "1001 bytes; at most 1000" in text


def test_refusal_reaches_a_caller_that_sends_all_first(serve: Serve) -> None:
    with serve(body_bytes=1000) as tiny, tiny.connect() as sock:
        sock.sendall(request("/", b"x" * (20 << 20)))
        assert error(drained(sock))[0] == 413
        assert tiny.seen == []


def test_early_answer_leaves_the_connection_usable(serve: Serve) -> None:
    with serve() as tiny, tiny.connect() as sock:
        for _ in range(3):
            sock.sendall(request("/early", b"x" * (1 << 20)))
            assert answer(sock)[0] == 429
        sock.sendall(request("/", b"y"))
        assert answer(sock)[1] == b"y"


def test_a_body_that_goes_on_after_its_answer_is_cut_off(serve: Serve) -> None:
    with serve() as tiny, tiny.connect() as sock:
        sock.sendall(b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\nx")
        assert answer(sock)[0] == 429
        assert drained(sock) == b""
        assert tiny.counts.evicted["discarded"] == 1


def test_failing_application_is_answered_for(serve: Serve) -> None:
    with serve() as tiny:
        status, text = error(tiny.exchange(request("/boom")))
        assert status == 500
        assert "mistake" not in text


@pytest.mark.parametrize("count", [50, 2000])
def test_pipelined_requests_are_answered_in_order(serve: Serve, count: int) -> None:
    with serve() as tiny, tiny.connect() as sock:
        last = request("/last", b"", "Connection: close")
        sock.sendall(b"".join(request(f"/{n}", b"%d" % n) for n in range(count)) + last)
        raw = drained(sock)
        assert raw.count(b"HTTP/1.1 200 OK") == count + 1
        bodies = [part.rpartition(b"\r\n\r\n")[2] for part in raw.split(b"HTTP/1.1 ")]
        assert bodies[1:-1] == [b"%d" % n for n in range(count)]
        assert tiny.server.table.pipelined_bytes == 0


def test_answers_before_a_refusal_are_written_first(serve: Serve) -> None:
    with serve() as tiny:
        raw = tiny.exchange(request("/slow") + request("/slow") + b"\0\0\0\r\n\r\n")
        assert raw.count(b"HTTP/1.1 200 OK") == 2
        assert error(raw)[0] == 400


def test_a_bad_body_is_refused_in_its_turn(serve: Serve) -> None:
    with serve() as tiny:
        raw = tiny.exchange(request("/slow") + CHUNKED + b"\r\nZZ\r\n")
        assert raw.index(b"200 OK") < raw.index(b"400 Bad Request")
        assert [path for _, path, _ in tiny.seen] == ["/slow"]


def test_half_closed_callers_get_their_answers(serve: Serve) -> None:
    with serve() as tiny, tiny.connect() as sock:
        sock.sendall(request("/slow") + request("/slow"))
        sock.shutdown(socket.SHUT_WR)
        assert drained(sock).count(b"HTTP/1.1 200 OK") == 2


def test_a_body_cut_off_ends_the_request(serve: Serve) -> None:
    with serve() as tiny, tiny.connect() as sock:
        sock.sendall(b"POST /cut HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx")
        sock.shutdown(socket.SHUT_WR)
        assert drained(sock) == b""
        eventually(lambda: tiny.gone == ["/cut"])


@pytest.mark.parametrize(
    "more",
    [b"1\r\na\r\n" * 40_000,
     b"1;" + b"e" * 300_000,
     b"0\r\n" + b"t: " + b"a" * 300_000,
     b"0\r\n" + b"t: a\r\n" * 50_000],
    ids=["chunks", "extension", "trailer", "trailers"],
)  # fmt: skip
def test_framing_of_chunks_has_a_size(serve: Serve, more: bytes) -> None:
    with serve() as tiny:
        assert error(tiny.exchange(CHUNKED + b"\r\n" + more))[0] == 400
        assert tiny.seen == []


def test_small_chunks_and_trailers_are_taken(serve: Serve) -> None:
    body = b"1\r\na\r\n" * 3000 + b"0\r\nX-Sum: 1\r\nHost: b\r\n\r\n"
    with serve() as tiny, tiny.connect() as sock:
        sock.sendall(CHUNKED.replace(b"/x", b"/headers") + b"\r\n" + body)
        status, found, _ = answer(sock)
        assert (status, b"b" in found.split(b"=")) == (200, False)
        assert tiny.seen[0][2] == b"a" * 3000


def test_unread_answers_are_given_up(serve: Serve) -> None:
    with serve(response_s=0.5) as tiny, tiny.connect() as sock:
        sock.sendall(request("/big"))
        eventually(lambda: tiny.counts.evicted["unread"] == 1)
        assert tiny.counts.open == 0
        assert len(drained(sock)) < 8 << 20


def test_unread_answers_have_a_size_together(serve: Serve) -> None:
    with serve(buffered_bytes=4 << 20) as tiny:
        socks = [tiny.connect() for _ in range(6)]
        for sock in socks:
            sock.sendall(request("/big"))
        eventually(lambda: tiny.counts.evicted["unread_bytes"] >= 1)
        time.sleep(0.2)
        assert tiny.counts.open >= 1  # somebody may be slow
        for sock in socks:
            sock.close()


def test_error_bodies_are_json_objects(serve: Serve) -> None:
    with serve() as tiny:
        raw = tiny.exchange(b"nonsense\r\n\r\n")
        head, _, body = raw.partition(b"\r\n\r\n")
        assert json.loads(body).keys() == {"error"}
        assert f"content-length: {len(body)}".encode() in head
        assert b"connection: close" in head


def test_dates_move_on(serve: Serve) -> None:
    with serve() as tiny, tiny.connect() as sock:
        dates = []
        for _ in range(3):
            sock.sendall(request())
            dates.append(answer(sock)[2]["date"])
            time.sleep(0.7)
        assert all(one <= two for one, two in pairwise(dates))
        assert dates[0] != dates[-1]
