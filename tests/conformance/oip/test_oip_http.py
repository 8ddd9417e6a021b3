"""HTTP below the protocol: connections, framing, headers."""

import http.client
import json
import threading

import pytest

from .protocol import answered
from .wire import chunked, read_answer, read_answers


@pytest.fixture
def path(model):
    return f"{model.path}/infer"


@pytest.fixture
def body(model):
    return json.dumps(model.body(id="wire")).encode()


@pytest.mark.parametrize(
    "kind", [None, "application/json", "application/json; charset=utf-8", "text/plain",
             "application/octet-stream", "application/x-www-form-urlencoded", "x"],
)  # fmt: skip
def test_any_content_type_and_none(infer, model, ours, kind):
    # curl -d says x-www-form-urlencoded, tritonclient says nothing
    answer = infer(model.body(), {"Content-Type": kind})
    if ours or kind == "application/json":
        answered(answer)


def test_two_requests_on_one_connection(server, model, path):
    connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
    for number in range(2):
        text = json.dumps(model.body(id=str(number))).encode()
        assert server.ask(connection, "POST", path, text).json["id"] == str(number)
        first = connection.sock if number == 0 else first  # noqa: F821
    assert connection.sock is first is not None
    connection.close()


def test_an_error_keeps_the_connection(server, path, body):
    connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
    assert server.ask(connection, "POST", path, b"{").status >= 400
    assert server.ask(connection, "GET", "/v2/models/no_such_model").status >= 400
    answered(server.ask(connection, "POST", path, body))
    connection.close()


def test_connection_close_closes(server, path, body):
    head = server.head(
        "POST", path, f"Content-Length: {len(body)}", "Connection: close"
    )
    with server.connect() as peer:
        peer.sendall(head + body)
        with peer.makefile("rb") as stream:
            assert read_answer(stream).json["id"] == "wire"
            assert stream.read() == b""


def test_http_1_0(server, path, body):
    head = server.head("POST", path, f"Content-Length: {len(body)}", version="HTTP/1.0")
    with server.connect() as peer:
        peer.sendall(head + body)
        with peer.makefile("rb") as stream:
            answer = read_answer(stream)
            assert answered(answer).document["id"] == "wire"
            assert "transfer-encoding" not in answer.headers
            assert stream.read() == b""  # it does not keep the connection


def test_http_1_0_health(server):
    [answer] = server.exchange(
        server.head("GET", "/v2/health/live", version="HTTP/1.0"), methods=["GET"]
    )
    assert answer.status == 200


def test_expect_100_continue(server, path, body):
    head = server.head(
        "POST", path, f"Content-Length: {len(body)}", "Expect: 100-continue"
    )
    with server.connect() as peer, peer.makefile("rb") as stream:
        peer.sendall(head)
        assert read_answer(stream).status == 100
        peer.sendall(body)
        assert answered(read_answer(stream)).document["id"] == "wire"


@pytest.mark.ours
def test_a_body_too_large_is_refused_before_it_is_sent(server, path, refuses):
    lines = [f"Content-Length: {17 << 20}", "Expect: 100-continue"]
    [answer] = server.exchange(server.head("POST", path, *lines))
    refuses(answer, 413)


@pytest.mark.ours
def test_a_body_too_large_is_refused_though_it_does_not_say_so(server, path, refuses):
    part = b" " * (1 << 20)
    head = server.head("POST", path, "Transfer-Encoding: chunked")
    with server.connect() as peer, peer.makefile("rb") as stream:
        peer.sendall(head)
        try:
            for _ in range(18):
                peer.sendall(b"%x\r\n%s\r\n" % (len(part), part))
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has said enough
        answer = read_answer(stream)
    # a server that closes while we send may lose its answer to the reset
    if answer is not None:
        refuses(answer, 413)


def test_two_requests_in_one_packet(server, model, path):
    texts = [json.dumps(model.body(id=str(n))).encode() for n in range(3)]
    sent = b"".join(
        server.head("POST", path, f"Content-Length: {len(text)}") + text
        for text in texts
    )
    answers = server.exchange(sent, methods=["POST"] * 3)
    assert [one.json["id"] for one in answers] == ["0", "1", "2"]


def test_pipelined_requests_are_answered_in_order(server, path, body):
    head = server.head("POST", path, f"Content-Length: {len(body)}")
    sent = (
        server.head("GET", "/v2/health/live")
        + head + body
        + server.head("GET", "/v2/models/no_such_model")
        + server.head("GET", "/v2/health/ready")
    )  # fmt: skip
    answers = server.exchange(sent, methods=["GET", "POST", "GET", "GET"])
    assert [one.status for one in answers][:2] == [200, 200]
    assert answers[2].status >= 400 and answers[3].status == 200


@pytest.mark.parametrize("size", [1, 7, 4096], ids=str)
def test_a_chunked_request(server, path, body, size):
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    [answer] = server.exchange(
        server.head("POST", path, "Transfer-Encoding: chunked") + chunked(*parts)
    )
    assert answered(answer).document["id"] == "wire"


def test_chunks_with_extensions_and_trailers(server, path, body):
    sent = b'%x;name="value"\r\n%s\r\n0\r\nX-Sum: 1\r\n\r\n' % (len(body), body)
    [answer] = server.exchange(
        server.head("POST", path, "Transfer-Encoding: chunked") + sent
    )
    assert answered(answer).document["id"] == "wire"


def test_a_request_byte_by_byte(server, path, body):
    head = server.head("POST", path, f"Content-Length: {len(body)}")
    with server.connect() as peer, peer.makefile("rb") as stream:
        for place in range(len(head)):
            peer.sendall(head[place : place + 1])
        for place in range(len(body)):
            peer.sendall(body[place : place + 1])
        assert answered(read_answer(stream)).document["id"] == "wire"


def test_header_names_in_any_case(server, path, body):
    head = server.head("POST", path, f"Content-Length: {len(body)}").decode()
    first, *lines = head.split("\r\n")
    turned = [
        name.swapcase() + colon + value
        for name, colon, value in (line.partition(":") for line in lines)
    ]
    [answer] = server.exchange("\r\n".join([first, *turned]).encode() + body)
    assert answered(answer).document["id"] == "wire"


@pytest.mark.parametrize(
    "lines",
    [("Transfer-Encoding: chunked", "Content-Length: 5"),
     ("Content-Length: 5", "Transfer-Encoding: chunked"),
     ("Transfer-Encoding: chunked, identity",)],
    ids=["both", "both_turned", "unknown_last"],
)  # fmt: skip
def test_ambiguous_framing_is_never_two_requests(server, path, lines):
    """What one proxy takes for a body another may take for a request."""
    smuggled = server.head("GET", "/v2/health/live")
    sent = server.head("POST", path, *lines) + b"0\r\n\r\n" + smuggled
    with server.connect() as peer, peer.makefile("rb") as stream:
        peer.sendall(sent)
        peer.shutdown(1)
        answers = read_answers(stream, ["POST", "GET"])
    assert answers and 400 <= answers[0].status < 600
    # either it closes, or it goes by the chunks, as RFC 9112 has it
    assert len(answers) == 1 or answers[1].status == 200


@pytest.mark.parametrize(
    "lines",
    [("Content-Length: -1",), ("Content-Length: x",), ("Content-Length: 1_0",),
     ("Content-Length: 5", "Content-Length: 6"), ("Content-Length: +5",),
     ("Content-Length: 99999999999999999999999",), ("Content-Length: 5, 6",)],
    ids=["negative", "word", "underscore", "two", "plus", "huge", "list"],
)  # fmt: skip
def test_a_wrong_content_length(server, path, lines, refuses):
    [answer] = server.exchange(server.head("POST", path, *lines) + b"12345")
    refuses(answer, 400, 413)


@pytest.mark.parametrize(
    "sent", [b"x\r\n", b"-5\r\nabc", b"ffffffffffffffffff\r\n", b"5\r\nabcdefgh\r\n"],
    ids=["word", "negative", "huge", "too_short"],
)  # fmt: skip
def test_wrong_chunks(server, path, sent, refuses):
    head = server.head("POST", path, "Transfer-Encoding: chunked")
    with server.connect() as peer, peer.makefile("rb") as stream:
        peer.sendall(head + sent)
        peer.shutdown(1)
        answer = read_answer(stream)
    if answer is not None:  # it may close without a word
        refuses(answer, 400, 413)


@pytest.mark.parametrize(
    "line",
    [b"GET\r\n\r\n", b"GET /v2/health/live\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00",
     b"GET /v2/health/live HTTP/9.9\r\n\r\n", b"G\x00T / HTTP/1.1\r\n\r\n",
     b"GET /v2/health/live HTTP/1.1\r\nno colon\r\n\r\n",
     b"GET /v2/health/live HTTP/1.1\r\nA: b\r\n folded\r\nBad name: c\r\n\r\n"],
    ids=["short", "http_0_9", "tls", "http_9_9", "nul", "no_colon", "space_in_name"],
)  # fmt: skip
def test_what_is_no_request(server, line, refuses, ours):
    with server.connect() as peer, peer.makefile("rb") as stream:
        peer.sendall(line)
        peer.shutdown(1)
        answer = read_answer(stream, "GET")
    if answer is None:  # it may close without a word
        return
    if answer.status == 200 and (b"HTTP" not in line or not ours):
        pytest.skip("the server's parser is generous")  # HTTP/0.9 had no version
    refuses(answer, 400, 505)


@pytest.mark.ours
def test_errors_of_the_parser_are_json_too(server, refuses):
    [answer] = server.exchange(b"NOT HTTP AT ALL\r\n\r\n")
    refuses(answer, 400)


@pytest.mark.ours
@pytest.mark.parametrize(
    "lines", [["X-Long: " + "a" * 70_000], [f"X-{n}: {n}" for n in range(1000)]],
    ids=["one", "many"],
)  # fmt: skip
def test_too_much_of_headers(server, refuses, lines):
    [answer] = server.exchange(server.head("GET", "/v2/health/live", *lines))
    refuses(answer, 431, 400)


@pytest.mark.ours
def test_a_path_too_long(server, refuses):
    [answer] = server.exchange(server.head("GET", "/v2/" + "a" * 70_000))
    refuses(answer, 414, 431, 400)


def test_no_host(server):
    answers = server.exchange(
        f"GET {server.prefix}/v2/health/live HTTP/1.1\r\n\r\n".encode(), methods=["GET"]
    )
    assert answers[0].status in (200, 400)


@pytest.mark.ours
def test_the_whole_url_in_the_request_line(server):
    host = f"{server.host}:{server.port}"
    head = f"GET http://{host}/v2/health/live HTTP/1.1\r\nHost: {host}\r\n\r\n"
    [answer] = server.exchange(head.encode(), methods=["GET"])
    assert answer.status in (200, 404)


@pytest.mark.ours
@pytest.mark.parametrize("path", ["/v2", "/v2/models/linear/infer"])
def test_another_host_is_refused(server, refuses, path):
    """A page that has its name point to loopback must not reach us from a browser."""
    head = f"POST {path} HTTP/1.1\r\nHost: elsewhere.example\r\nContent-Length: 2\r\n"
    [answer] = server.exchange(f"{head}\r\n{{}}".encode())
    refuses(answer, 403)


def test_http_2_is_not_spoken(server):
    with server.connect() as peer, peer.makefile("rb") as stream:
        peer.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
        peer.shutdown(1)
        stream.read()  # it says something, or closes; it does not hang
    assert server.get("/v2/health/live").status == 200


def test_a_body_that_never_ends_with_the_connection(server, path, body):
    head = server.head("POST", path, f"Content-Length: {len(body) + 10}")
    with server.connect() as peer:
        peer.sendall(head + body)
    assert server.get("/v2/health/live").status == 200


def test_a_half_closed_connection_is_answered(server, path, body):
    head = server.head("POST", path, f"Content-Length: {len(body)}")
    with server.connect() as peer, peer.makefile("rb") as stream:
        peer.sendall(head + body)
        peer.shutdown(1)
        answer = read_answer(stream)
    assert answer is None or answer.json["id"] == "wire"


def test_the_length_is_said(infer, model):
    answer = infer(model.body())
    assert int(answer.headers["content-length"]) == len(answer.body)


@pytest.mark.ours
@pytest.mark.parametrize("path", ["/v2/health/live", "/v2", "/v2/models/linear"])
def test_a_trailing_query_is_no_matter(server, path):
    assert server.get(path + "?" + "a=b&" * 100).status == 200


def test_many_callers_get_their_own_answer(server, model, path):
    wrong = []

    def call(caller):
        connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
        for number in range(10):
            name = f"{caller}-{number}"
            text = json.dumps(model.body(id=name)).encode()
            if server.ask(connection, "POST", path, text).json.get("id") != name:
                wrong.append(name)
        connection.close()

    callers = [threading.Thread(target=call, args=(n,)) for n in range(8)]
    for one in callers:
        one.start()
    for one in callers:
        one.join()
    assert not wrong
