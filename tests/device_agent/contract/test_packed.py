"""Batches come back as they were; bombs and stumps do not come at all."""

import zlib

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from device_agent.contract import packed
from device_agent.contract.errors import MessageError
from device_agent.contract.messages import Batch, Record

RECORD = Record(seq=7, at=1e9, kind="event", body={"event": "started", "n": 1})


def batch(count: int) -> Batch:
    records = tuple(
        RECORD.model_copy(update={"seq": seq}) for seq in range(1, count + 1)
    )
    return Batch(epoch="e", first=1, records=records)


@given(
    count=st.integers(1, 100),
    content_type=st.sampled_from((None, *packed.CONTENT_TYPES)),
)
def test_round_trip(count: int, content_type: str | None) -> None:
    one = batch(count)
    assert packed.unpack(*packed.pack(one, content_type)) == one


def test_the_best_is_chosen() -> None:
    assert packed.pack(batch(1))[0] == packed.PLAIN
    kind, data = packed.pack(batch(60))
    assert kind == packed.ZSTD
    assert len(data) < 60 * 12


def test_without_zstd_it_is_zlib(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = packed.pack(batch(60), packed.ZSTD)
    monkeypatch.setattr(packed, "_zstd", lambda: None)
    kind, data = packed.pack(batch(60))
    assert kind == packed.ZLIB
    assert packed.unpack(kind, data) == batch(60)
    with pytest.raises(MessageError, match=r"install backports\.zstd"):
        packed.unpack(*raw)
    with pytest.raises(ValueError, match="cannot write"):
        packed.pack(batch(60), packed.ZSTD)


@pytest.mark.parametrize("kind", [packed.ZLIB, packed.ZSTD])
def test_what_is_not_whole_is_refused(kind: str) -> None:
    _, data = packed.pack(batch(60), kind)
    for bad in (data[:-1], data + b"x", b"", b"gossip", data[:5]):
        with pytest.raises(MessageError):
            packed.unpack(kind, bad)


@pytest.mark.parametrize(
    ("kind", "bomb"),
    [
        (packed.ZLIB, zlib.compress(bytes(64 << 20), 9)),
        (packed.ZSTD, zstd.compress(bytes(64 << 20), 19)),
    ],
)
def test_a_bomb_is_refused_before_it_is_whole(kind: str, bomb: bytes) -> None:
    assert len(bomb) < 256 << 10
    with pytest.raises(MessageError):
        packed.unpack(kind, bomb)


def test_unknown_content_types_are_refused() -> None:
    with pytest.raises(MessageError, match="expected application/json"):
        packed.unpack("application/cbor", b"")
    with pytest.raises(ValueError, match="cannot write"):
        packed.pack(batch(1), "application/cbor")
