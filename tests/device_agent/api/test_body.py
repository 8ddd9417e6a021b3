"""Bodies: counted as they come."""

import asyncio
import gzip
import random
import zlib
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.api.body import (
    Budget,
    check_length,
    compress,
    decompress,
    read_body,
)
from device_agent.errors import AgentError, OverloadError, RequestError, TooLargeError
from device_agent.serving import memory


def read(
    parts: Sequence[bytes], limit: int, budget: Budget, gone: bool = False
) -> bytes:
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": part, "more_body": True} for part in parts
    ]
    if gone:
        messages.append({"type": "http.disconnect"})
    else:
        messages[-1]["more_body"] = False
    waiting = iter(messages)

    async def receive() -> dict[str, Any]:
        return next(waiting)

    return asyncio.run(read_body(receive, limit, budget))


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=5), st.integers(0, 60))
def test_a_body_is_whole_or_refused_and_the_budget_adds_up(
    parts: list[bytes], limit: int
) -> None:
    budget = Budget(40)
    size = sum(map(len, parts))
    try:
        body = read(parts, limit, budget)
    except AgentError as error:
        assert budget.used_bytes == 0
        assert isinstance(error, TooLargeError | OverloadError)
        assert size > min(limit, 40)
    else:
        assert body == b"".join(parts)
        assert budget.used_bytes == size <= min(limit, 40)


def test_a_caller_who_goes_away_gives_the_budget_back() -> None:
    budget = Budget(100)
    with pytest.raises(RequestError, match="went away"):
        read([b"half"], 100, budget, gone=True)
    assert budget.used_bytes == 0


def test_all_callers_share_the_budget() -> None:
    budget = Budget(10)
    assert read([b"123456"], 100, budget) == b"123456"
    with pytest.raises(OverloadError, match="buffered_bytes = 10"):
        read([b"12345"], 100, budget)
    budget.release(6)
    assert read([b"12345"], 100, budget) == b"12345"


@given(st.lists(st.integers(1, 400_000), min_size=1, max_size=9))
def test_large_bodies_are_whole(sizes: list[int]) -> None:
    parts = [random.Random(size).randbytes(size) for size in sizes]
    assert read(parts, 4 << 20, Budget(4 << 20)) == b"".join(parts)


def test_memory_is_given_back_when_the_last_of_many_bodies_is_released(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given_back: list[bool] = []
    monkeypatch.setattr(memory, "give_back", lambda: given_back.append(True))

    async def hold(count: int) -> None:
        budget = Budget(10 << 20)
        for _ in range(count):
            budget.take(300_000)
        for _ in range(count):
            assert not given_back
            budget.release(300_000)
            await asyncio.sleep(0)
        await asyncio.sleep(2 * memory._PAUSE_S)

    asyncio.run(hold(3))
    assert not given_back
    asyncio.run(hold(4))
    assert given_back == [True]


def test_announced_lengths() -> None:
    check_length(b"", 10)
    check_length(b"10", 10)
    with pytest.raises(TooLargeError, match="more than the 10 bytes"):
        check_length(b"11", 10)
    for not_a_length in (b"-5", b"1e9", b"9" * 30):
        check_length(not_a_length, 10)  # the parser's business; bytes are counted


@given(st.binary(max_size=200))
def test_encodings_round_trip(body: bytes) -> None:
    for accepted, word in ((b"gzip, br", b"gzip"), (b"deflate;q=1", b"deflate")):
        packed, found = compress(body, accepted)
        assert found == word
        assert decompress(packed, found, 200) == body
    assert compress(body, b"br") == (body, b"")
    assert decompress(body, b"identity", 200) == body
    raw = zlib.compressobj(wbits=-15)
    assert decompress(raw.compress(body) + raw.flush(), b"deflate", 200) == body


def test_a_bomb_is_not_unpacked() -> None:
    bomb = gzip.compress(bytes(200 << 20), 9)
    with pytest.raises(TooLargeError):
        decompress(bomb, b"gzip", 1 << 20)


def test_damaged_encodings() -> None:
    noise = random.Random(0).randbytes(500)
    packed = gzip.compress(noise)
    for body, word, text in (
        (b"plain", b"gzip", "the body is not gzip"),
        (packed[:-4], b"gzip", "cut off"),
        (packed + b"more", b"gzip", "followed by more"),
        (b"plain", b"br", "expected gzip, deflate or none"),
        (noise, b"deflate", "deflate"),
    ):
        with pytest.raises(RequestError, match=text):
            decompress(body, word, 10_000)
