import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.contract.envelope import (
    Envelope,
    Signature,
    pre_authentication,
    read_envelope,
)
from device_agent.contract.errors import MessageError

signatures = st.builds(Signature, st.text(max_size=20), st.binary(max_size=64))


def test_the_specifications_own_example() -> None:
    found = pre_authentication("http://example.com/HelloWorld", b"hello world")
    assert found == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


@given(st.binary(), st.text(), st.lists(signatures, min_size=1, max_size=8))
def test_what_is_written_is_read(
    payload: bytes, kind: str, by: list[Signature]
) -> None:
    envelope = Envelope(payload, kind, tuple(by))
    assert read_envelope(envelope.write(), 1 << 20) == envelope


def test_url_safe_base64_is_read() -> None:
    payload = b"\xfb\xff\xfe"
    raw = json.dumps(
        {
            "payload": base64.urlsafe_b64encode(payload).decode(),
            "payloadType": "t",
            "signatures": [{"sig": ""}],
        }
    )
    assert read_envelope(raw.encode(), 1000).payload == payload


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b'{"payload":1,"payloadType":"t","signatures":[{"sig":""}]}',
        b'{"payload":"?","payloadType":"t","signatures":[{"sig":""}]}',
        b'{"payload":"","payloadType":"t","signatures":[]}',
        b'{"payload":"","payloadType":"t","signatures":[1]}',
        b'{"payload":"","payloadType":"t","signatures":["x"]}',
        b'{"payload":"","payloadType":"t","signatures":' + b'[{"sig":""}' * 1,
        b'{"payload":"","payloadType":"t","signatures":['
        + b",".join([b'{"sig":""}'] * 9)
        + b"]}",
        b"[" * 5000,
    ],
)
def test_anything_else_is_refused(raw: bytes) -> None:
    with pytest.raises(MessageError):
        read_envelope(raw, 10_000)


def test_a_large_one_is_refused_unread() -> None:
    with pytest.raises(MessageError, match="at most 10"):
        read_envelope(b"{" * 11, 10)
