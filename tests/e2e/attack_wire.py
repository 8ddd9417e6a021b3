"""Attacks on the connection: time, sizes of what is not body, framing, resets."""

import contextlib
import random
import socket
import threading
import time

from .attack_tools import (
    HOST,
    SLACK_S,
    Target,
    all_closed,
    closed,
    drained,
    dripped,
    infer,
    post,
    refused,
    request,
    reset,
    statuses,
    together,
)

INFER = "/v2/models/linear/infer"
WIDE = "/v2/models/wide/infer"
CHUNKED = post(INFER, b"Transfer-Encoding: chunked") + b"\r\n"
GOOD = request(INFER, infer([1, 4], [1, 2, 3, 4]))
HEALTH = request("/v2/health/live")


def slow_headers(target: Target) -> str:
    """100 callers send a byte of their headers a second."""
    begun = b"GET /v2/health/live HTTP/1.1\r\nX-Slow: "
    return _slow(target, begun, b"a", target.header_s)


def slow_body(target: Target) -> str:
    """100 callers send a byte of their body a second."""
    begun = post(INFER, b"Content-Length: 1000") + b"\r\n{"
    return _slow(target, begun, b" ", target.body_s)


def _slow(target: Target, begun: bytes, byte: bytes, within_s: float) -> str:
    socks = target.crowd(100)
    with all_closed(socks):
        for sock in socks:
            sock.sendall(begun)
        dripping = threading.Thread(target=dripped, args=(socks, byte, within_s + 1))
        dripping.start()
        said = closed(socks, within_s + SLACK_S)
        dripping.join()
    return f"{sum(refused(raw, 408, 0) == 408 for raw in said)} answered 408"


def silent(target: Target) -> str:
    """200 callers connect and say nothing."""
    socks = target.crowd(200)
    with all_closed(socks):
        assert set(closed(socks, target.header_s + SLACK_S)) == {b""}
    return "all closed without a word"


def half_requests(target: Target) -> str:
    """500 callers send half of their headers and stop."""
    return _half(target, GOOD[:50], target.header_s)


def half_bodies(target: Target) -> str:
    """500 callers send half of their body and stop."""
    return _half(target, GOOD[:-20], target.body_s + target.header_s)


def _half(target: Target, sent: bytes, within_s: float) -> str:
    socks = target.crowd(500)
    with all_closed(socks):
        for sock in socks:
            with contextlib.suppress(ConnectionError):
                sock.sendall(sent)
        said = closed(socks, within_s + SLACK_S)
    return f"{sum(1 for raw in said if raw)} answered, the others gave way"


def ten_thousand_headers(target: Target) -> str:
    """10,000 headers, at once and in packets."""
    lines = b"".join(b"X-%d: a\r\n" % n for n in range(10_000))
    raw = b"GET / HTTP/1.1\r\n" + HOST + lines
    refused(target.exchange(raw + b"\r\n"), 431)
    parts = [raw[at : at + 500] for at in range(0, len(raw), 500)]
    refused(target.exchange(*parts), 431)
    few = b"".join(b"a:\r\n" for _ in range(1000))
    refused(target.exchange(b"GET / HTTP/1.1\r\n" + HOST + few + b"\r\n"), 431)
    return "431"


def one_huge_header(target: Target) -> str:
    """A header of 16 MB."""
    head = b"GET / HTTP/1.1\r\n" + HOST + b"X: "
    return str(refused(target.exchange(head, *[b"a" * 65536] * 256), 431))


def huge_url(target: Target) -> str:
    """A path, then a query, of 4 MB."""
    refused(target.exchange(b"GET /", *[b"a" * 65536] * 64), 431)
    return str(refused(target.exchange(b"GET /?", *[b"a" * 65536] * 64), 431))


def big_body_announced(target: Target) -> str:
    """300 MB with a Content-Length, sent whatever the agent says."""
    head = post(INFER, b"Content-Length: 300000000") + b"\r\n"
    return str(refused(target.exchange(head, *[b"[" * 1_000_000] * 300), 413))


def big_body_chunked(target: Target) -> str:
    """300 MB in chunks, by eight callers at once."""
    chunk = b"%x\r\n%b\r\n" % (1_000_000, b"[" * 1_000_000)
    seen: list[int] = []

    def send() -> None:
        raw = target.exchange(CHUNKED, *[chunk] * 300)
        seen.append(refused(raw, 413, 429))

    together(send, 8)
    assert len(seen) == 8
    return str(sorted(seen))


def expect_continue(target: Target) -> str:
    """300 MB announced with Expect: refused before a byte of it is sent."""
    head = post(INFER, b"Content-Length: 300000000", b"Expect: 100-continue")
    raw = target.exchange(head + b"\r\n")
    assert b" 100 " not in raw
    return str(refused(raw, 413))


def chunk_sizes(target: Target) -> str:
    """Chunks of absurd sizes."""
    seen = []
    for size in (b"ffffffffffffffff", b"7fffffffffffffff", b"f" * 40, b"-1", b"0x10",
                 b"1 0", b"g"):  # fmt: skip
        raw = target.exchange(CHUNKED + size + b"\r\n{}\r\n", timeout_s=0.5)
        # A size that is a number is waited for, and never believed.
        seen.append(refused(raw, 400, 413, 0))
    return str(seen)


def one_byte_chunks(target: Target) -> str:
    """A body of 2 MB in chunks of one byte, by four callers."""
    seen: list[int] = []

    def send() -> None:
        raw = target.exchange(CHUNKED, *[b"1\r\n[\r\n" * 10_000] * 200)
        seen.append(refused(raw, 400, 413))

    together(send, 4)
    return str(seen)


def chunk_extensions(target: Target) -> str:
    """A chunk extension, then trailers, without end."""
    refused(target.exchange(CHUNKED + b"1;", *[b"e" * 65536] * 200), 400)
    refused(target.exchange(CHUNKED + b"0\r\nX: ", *[b"t" * 65536] * 200), 400)
    return str(refused(target.exchange(CHUNKED + b"0\r\n", *[b"X: t\r\n" * 9999] * 50),
                       400))  # fmt: skip


def half_close(target: Target) -> str:
    """Callers that end their side: before, in the middle of and after a request."""
    for cut in (0, 10, len(GOOD) - 5):
        with target.connect() as sock:
            sock.sendall(GOOD[:cut])
            sock.shutdown(socket.SHUT_WR)
            assert drained(sock) == b""
    with target.connect() as sock:
        sock.sendall(GOOD)
        sock.shutdown(socket.SHUT_WR)
        assert statuses(drained(sock)) == [200]
    return "answered when whole"


def resets(target: Target) -> str:
    """400 callers reset the connection in the middle of something."""
    for number in range(400):
        sock = target.connect()
        sock.sendall(GOOD[: (number * 7) % (len(GOOD) + 1)])
        reset(sock)
    return "400 resets"


def answers_not_waited_for(target: Target) -> str:
    """1,000 whole requests whose callers leave before the answer."""
    for _ in range(1000):
        sock = target.connect()
        sock.sendall(GOOD)
        reset(sock)
    return "1000 left"


def pipelined_unread(target: Target) -> str:
    """Ten callers pipeline 10,000 requests each and read nothing; then one reads."""
    socks = target.crowd(10)
    with all_closed(socks):
        for sock in socks:
            sock.settimeout(0.3)
            with contextlib.suppress(OSError):
                sock.sendall((HEALTH + GOOD) * 5000)
        time.sleep(0.5)
    with target.connect() as sock:
        sending = threading.Thread(target=sock.sendall, args=(GOOD * 10_000,))
        sending.start()
        count, tail = 0, b""
        while count < 10_000:
            part = sock.recv(1 << 16)
            assert part, f"closed after {count} answers"
            count += (tail + part).count(b"HTTP/1.1 200 OK")
            tail = (tail + part)[-14:]
        sending.join()
    return f"{count} answers to the one who reads"


def answers_unread(target: Target) -> str:
    """60 callers ask in 2 kB for answers of 2 MB each, and read nothing."""
    tensor = infer([128, 4], None, parameters={"binary_data_size": 128 * 16})
    tensor = tensor[:-1] + b',"parameters":{"binary_data_output":true}}'
    header = f"Inference-Header-Content-Length: {len(tensor)}"
    return _unread(target, request(WIDE, tensor + bytes(128 * 16), header), 60)


def json_unread(target: Target) -> str:
    """12 callers ask for answers of 5 MB of JSON each, and read nothing."""
    return _unread(target, request(WIDE, infer([128, 4], [0.123456] * 512)), 12)


def _unread(target: Target, asked: bytes, count: int) -> str:
    socks = []
    with all_closed(socks):
        for _ in range(count):
            sock = socket.socket()
            socks.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.settimeout(10)
            sock.connect(("127.0.0.1", target.port))
            with contextlib.suppress(ConnectionError):
                sock.sendall(asked)
        time.sleep(target.response_s + 1)
        got = [statuses(_peek(sock))[0] for sock in socks]
    return str({status: got.count(status) for status in set(got)})


def smuggling(target: Target) -> str:
    """Requests that two readers would end at different places."""
    length, chunks = b"Content-Length: 5", b"Transfer-Encoding: chunked"
    tail = b"\r\n0\r\n\r\n" + request("/v2/models/smuggled/infer", b"{}")
    heads = [
        (length, chunks), (chunks, length), (length, b"Content-Length: 6"),
        (length, length), (b"Content-Length: 5, 5",), (b"Content-Length: +5",),
        (b"Content-Length : 5",), (b"Content-Length: 5\nX: y",),
        (b"X: y\r\n Content-Length: 5", length), (b"Transfer-Encoding: xchunked",),
        (b"Transfer-Encoding: chunked, identity",), (chunks, b"Transfer-Encoding: x"),
        (b"Transfer-Encoding:\x0bchunked",), (b"Transfer-Encoding: gzip, chunked",),
        (b"\tContent-Length: 5",), (b"X: y\rContent-Length: 5",),
    ]  # fmt: skip
    for lines in heads:
        raw = target.exchange(post(INFER, *lines) + tail)
        assert len(statuses(raw)) == 1, f"{lines}: {raw!r}"
        refused(raw, 400, 501)
    refused(target.exchange(post(INFER, length).replace(b"\r\n", b"\n") + b"\n12345"),
            400)  # fmt: skip
    return f"{len(heads) + 1} refused"


def other_protocols(target: Target) -> str:
    """TLS, HTTP/2, WebSocket, CONNECT, TRACE, a proxy's first line, SSH."""
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2
    seen = [
        refused(target.exchange(raw), 400, 408, 501)
        for raw in (
            hello,
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n",
            b"TRACE / HTTP/1.1\r\n" + HOST + b"\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + HEALTH,
            b"SSH-2.0-OpenSSH_9.9\r\n",
        )
    ]
    upgrade = ("Connection: Upgrade, close", "Upgrade: websocket")
    raw = target.exchange(request("/v2/health/live", b"", *upgrade))
    return str([*seen, statuses(raw)[0]])


def garbage(target: Target) -> str:
    """200 callers send bytes drawn by lot."""
    draw = random.Random(0)
    seen = [
        refused(target.exchange(draw.randbytes(draw.randrange(1, 4000)) + b"\r\n\r\n",
                                timeout_s=0.2), 400, 431, 501, 0)
        for _ in range(200)
    ]  # fmt: skip
    return str({status: seen.count(status) for status in set(seen)})


def _peek(sock: socket.socket) -> bytes:
    sock.settimeout(0.05)
    try:
        return sock.recv(1000)
    except OSError:
        return b""
