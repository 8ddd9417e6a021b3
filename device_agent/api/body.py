"""Reading a request's body: counted as it comes, never trusted to be as announced.

Bodies of all connections share one budget, so that many callers with allowed bodies
cannot do what one with a forbidden body could not.
"""

import gzip
import zlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from ..errors import OverloadError, RequestError, TooLargeError
from ..serving.memory import LARGE_BYTES, Settling, apart

_APART_BYTES = 512 << 10
"""A longer body has a block of its own; it would leave a hole at every size it had."""

Receive = Callable[[], Awaitable[Any]]
Headers = Iterable[tuple[bytes, bytes]]


class Budget:
    """Bytes of bodies and answers that may be held at once.

    What many or large ones leave free in the heaps goes back to the system when the
    last of them is released.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._most_bytes = 0
        self._settling = Settling()

    def take(self, size_bytes: int) -> None:
        """Reserve bytes.

        Raises:
            OverloadError: all callers together hold too many.
        """
        if self.used_bytes + size_bytes > self.limit_bytes:
            raise OverloadError(
                f"requests under way hold {self.used_bytes} bytes already "
                f"(buffered_bytes = {self.limit_bytes})"
            )
        self.used_bytes += size_bytes
        self._most_bytes = max(self._most_bytes, self.used_bytes)

    def take_answer(self, size_bytes: int, held_bytes: int) -> int:
        """Reserve an answer before it is computed; how much was taken.

        Args:
            size_bytes: of the outputs and of all that is made of them.
            held_bytes: what the request holds already: alone it is always served.

        Raises:
            OverloadError: all callers together hold too many.
        """
        taken = min(size_bytes, max(self.limit_bytes - held_bytes, 0))
        self.take(taken)
        return taken

    def release(self, size_bytes: int) -> None:
        """Give back what was taken."""
        self.used_bytes -= size_bytes
        if not self.used_bytes and self._most_bytes > LARGE_BYTES:
            self._most_bytes = 0
            self._settling.soon()


async def read_body(
    receive: Receive, limit_bytes: int, budget: Budget
) -> bytes | bytearray:
    """The whole body; its length stays taken from the budget until released.

    The rest of a refused body is not read here: the server drops it as it comes.

    Raises:
        TooLargeError: more than ``limit_bytes`` came.
        OverloadError: the budget is used up.
        RequestError: the caller went away.
    """
    message = await receive()
    first: bytes = message.get("body", b"")
    if not message.get("more_body", False) and message["type"] == "http.request":
        _check(len(first), limit_bytes)
        budget.take(len(first))
        return first
    body = bytearray()  # grows in place: joined parts would need the memory twice
    taken = 0
    try:
        while True:
            if message["type"] != "http.request":
                raise RequestError("the caller went away before the body was complete")
            part = message.get("body", b"")
            _check(taken + len(part), limit_bytes)
            budget.take(len(part))
            taken += len(part)
            body += part
            if len(body) > _APART_BYTES >= len(body) - len(part):
                apart(body)
            if not message.get("more_body", False):
                return body
            message = await receive()
    except (RequestError, OverloadError):
        budget.release(taken)
        raise


def check_length(value: bytes, limit_bytes: int) -> None:
    """Refuse an announced length before a byte is read.

    Raises:
        TooLargeError: it is over the limit.
    """
    if value.isdigit() and len(value) < 20:
        _check(int(value), limit_bytes)


def decompress(
    body: bytes | bytearray, encoding: bytes, limit_bytes: int
) -> bytes | bytearray:
    """The body without its Content-Encoding.

    Raises:
        RequestError: another encoding than gzip or deflate, or damaged.
        TooLargeError: it would be larger than ``limit_bytes``.
    """
    word = encoding.strip().lower()
    if word in (b"", b"identity"):
        return body
    if word not in (b"gzip", b"x-gzip", b"deflate"):
        raise RequestError(
            f"Content-Encoding {encoding.decode('latin-1')!r}; "
            "expected gzip, deflate or none"
        )
    bits = 31 if b"gzip" in word else _deflate_bits(body)
    machine = zlib.decompressobj(wbits=bits)
    try:
        plain = machine.decompress(body, limit_bytes + 1)
    except zlib.error as error:
        raise RequestError(f"the body is not {word.decode()}: {error}") from error
    _check(len(plain), limit_bytes)
    if not machine.eof or machine.unused_data:
        raise RequestError(f"the {word.decode()} body is cut off or followed by more")
    return plain


def compress(body: bytes, accepted: bytes) -> tuple[bytes, bytes]:
    """Body and Content-Encoding, empty where the caller accepts none that we speak."""
    words = set()
    for part in accepted.lower().replace(b" ", b"").split(b","):
        word, _, weight = part.partition(b";")
        if weight.rstrip(b"0.") != b"q=":  # q=0: anything but this
            words.add(word)
    if b"gzip" in words:
        return gzip.compress(body, compresslevel=1, mtime=0), b"gzip"
    if b"deflate" in words:
        return zlib.compress(body, 1), b"deflate"
    return body, b""


def _deflate_bits(body: bytes | bytearray) -> int:
    """HTTP's deflate is zlib's; some clients send the raw kind."""
    head = int.from_bytes(body[:2], "big")
    return 15 if head >> 8 & 15 == 8 and head % 31 == 0 else -15


def _check(size_bytes: int, limit_bytes: int) -> None:
    if size_bytes > limit_bytes:
        raise TooLargeError(
            f"the body has more than the {limit_bytes} bytes that this model's inputs "
            "and this device's limits (body_bytes) allow"
        )
