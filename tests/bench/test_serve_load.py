"""The load client of the bench: every answer counted once, every wrong one found."""

import itertools
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

from serving import load, wire
from serving.load import Figures, Load, LoadError
from serving.wire import Address

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
ASK = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return load.compiled(tmp_path_factory.mktemp("load"))
    except LoadError as error:
        pytest.skip(str(error))


Answering = Callable[[socket.socket, int], bool]
"""Answers the request of that number; whether the connection stays."""


class Tiny:
    """A server whose every answer is said by the test; counts what it was asked."""

    def __init__(self, answer: Answering, size: int = len(ASK)) -> None:
        self._answer = answer
        self._size = size
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self.asked = 0
        self.connections = 0

    @contextmanager
    def listening(self, path: Path | None = None) -> Iterator[Address]:
        family = socket.AF_UNIX if path else socket.AF_INET
        with socket.socket(family) as listener:
            listener.bind(str(path) if path else ("127.0.0.1", 0))
            listener.listen(64)
            threading.Thread(target=self._accept, args=(listener,)).start()
            try:
                yield Address(0 if path else listener.getsockname()[1], path)
            finally:
                listener.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                link, _ = listener.accept()
                self.connections += 1
                threading.Thread(target=self._talk, args=(link,)).start()

    def _talk(self, link: socket.socket) -> None:
        with link, suppress(OSError):
            while self._whole(link):
                with self._lock:
                    self.asked += 1
                    number = next(self._numbers)
                if not self._answer(link, number):
                    return

    def _whole(self, link: socket.socket) -> bool:
        left = self._size
        while left:
            got = link.recv(left)
            if not got:
                return False
            left -= len(got)
        return True


def say(answer: bytes, stay: bool = True) -> Answering:
    def answering(link: socket.socket, number: int) -> bool:
        link.sendall(answer)
        return stay

    return answering


def at(odd_one: int, odd: Answering) -> Answering:
    good = say(GOOD)
    return lambda link, number: (odd if number == odd_one else good)(link, number)


def loaded(
    program: Path, folder: Path, request: bytes = ASK, expected: bytes = b"hello"
) -> Load:
    (folder / "ask").write_bytes(request)
    (folder / "answer").write_bytes(expected)
    return Load(program, folder / "ask", folder / "answer")


def fired(
    program: Path, folder: Path, tiny: Tiny, clients: int = 4, path: Path | None = None,
    request: bytes = ASK,
) -> Figures:  # fmt: skip
    one = loaded(program, folder, request)
    with tiny.listening(path) as address:
        return one.fire(address, clients, 0.05, lambda: 0.0)


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_every_answer_is_counted_once(
    program: Path, tmp_path: Path, unix: bool
) -> None:
    tiny = Tiny(say(GOOD))
    found = fired(program, tmp_path, tiny, 4, tmp_path / "s" if unix else None)
    warm_up = 4
    assert found.errors == 0 and found.note == ""
    assert found.requests == tiny.asked - warm_up > 0
    assert tiny.connections == 4, "connections are kept"
    assert found.p50_us <= found.p90_us <= found.p99_us <= found.max_us


@pytest.mark.parametrize(
    ("odd", "kind"),
    [
        (say(GOOD.replace(b"200 OK", b"503 No")), "1 wrong_status"),
        (say(GOOD.replace(b"hello", b"hallo")), "1 wrong_body"),
        (say(GOOD.replace(b"5", b"6").replace(b"hello", b"hello!")), "1 wrong_body"),
        (say(b"", stay=False), "1 closed"),
        (say(b"HTTP/1.1 200 OK\r\nConte", stay=False), "1 closed"),
        (say(GOOD[:-2], stay=False), "1 closed"),
    ],
    ids=["status", "body", "length", "hang-up", "in the head", "in the body"],
)
def test_a_wrong_answer_is_an_error_and_the_load_goes_on(
    program: Path, tmp_path: Path, odd: Answering, kind: str
) -> None:
    tiny = Tiny(at(4, odd))
    found = fired(program, tmp_path, tiny)
    assert found.errors == 1
    assert found.note.startswith(kind)
    lost = kind.endswith("closed")
    assert found.requests == tiny.asked - 4 - lost
    assert tiny.connections == (5 if lost else 4)


def test_a_polite_goodbye_is_no_error(program: Path, tmp_path: Path) -> None:
    close = GOOD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    tiny = Tiny(at(6, say(close, stay=False)))
    found = fired(program, tmp_path, tiny)
    assert found.errors == 0
    assert tiny.connections == 5


def test_an_answer_in_pieces_is_one_answer(program: Path, tmp_path: Path) -> None:
    def dribble(link: socket.socket, number: int) -> bool:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for letter in GOOD:
            link.sendall(bytes([letter]))
        return True

    tiny = Tiny(dribble)
    found = fired(program, tmp_path, tiny)
    assert (found.errors, found.requests) == (0, tiny.asked - 4)


def test_a_large_request_arrives_whole(program: Path, tmp_path: Path) -> None:
    request = ASK.replace(b"3", b"3000000") + b"d" * 2_999_997
    tiny = Tiny(say(GOOD), len(request))
    found = fired(program, tmp_path, tiny, request=request)
    assert (found.errors, found.requests) == (0, tiny.asked - 4)


def test_an_answer_before_the_end_of_the_request_ends_the_connection(
    program: Path, tmp_path: Path
) -> None:
    def refuse(link: socket.socket, number: int) -> bool:
        link.sendall(GOOD.replace(b"200 OK", b"413 No"))
        gone = select.poll()
        gone.register(link, select.POLLHUP)
        gone.poll()
        return False

    tiny = Tiny(refuse)
    one = loaded(program, tmp_path, ASK + b"d" * 8_000_000)
    with tiny.listening(tmp_path / "s") as address:
        found = one.fire(address, 1, 0.05, lambda: 0.0)
    assert found.errors == tiny.asked == found.requests + 1 > 1
    assert "wrong_status" in found.note and "closed" not in found.note


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "Length"),
        (b"SSH-2.0-OpenSSH_9\r\n\r\n", "not HTTP"),
        (GOOD + b"and more", "more bytes"),
        (GOOD[:17] + b"X: " + b"y" * 20_000, "16 KiB"),
    ],
    ids=["chunked", "another protocol", "too much", "endless head"],
)
def test_what_it_cannot_read_ends_the_run(
    program: Path, tmp_path: Path, answer: bytes, words: str
) -> None:
    with pytest.raises(LoadError, match=words):
        fired(program, tmp_path, Tiny(say(answer)))


def test_nobody_listens(program: Path, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="cannot connect"):
        loaded(program, tmp_path).fire(Address(wire.free_port()), 1, 0.05, lambda: 0.0)


def test_the_clock_is_read_around_the_load_and_not_the_warm_up(
    program: Path, tmp_path: Path
) -> None:
    tiny = Tiny(say(GOOD))
    seen: list[int] = []

    def clock() -> float:
        seen.append(tiny.asked)
        return 0.25 * len(seen)

    with tiny.listening() as address:
        found = loaded(program, tmp_path).fire(address, 4, 0.05, clock)
    assert seen == [4, 4 + found.requests]
    assert found.cpu_us == pytest.approx(0.25e6 / found.requests)


def test_the_client_is_compiled_once(program: Path) -> None:
    made = program.stat().st_mtime_ns
    assert load.compiled(program.parent) == program
    assert program.stat().st_mtime_ns == made
