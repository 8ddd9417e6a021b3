"""Signed messages: DSSE envelopes, v1.0.2 of the specification, as JSON.

What is signed is the pre-authentication encoding of type and payload, so nothing is
parsed before its signature was verified. Keys and algorithms are the business of who
signs (``edgeml.keys``) and of who verifies (``device_agent.trust``).
"""

import base64
import binascii
import json
from dataclasses import dataclass

from .errors import MessageError

DESIRED_TYPE = "application/vnd.edgeml.desired+json"
SIGNATURES_MAX = 8


@dataclass(frozen=True)
class Signature:
    """One signature, not verified."""

    keyid: str
    sig: bytes


@dataclass(frozen=True)
class Envelope:
    """Payload, its type, and who claims to have signed both."""

    payload: bytes
    payload_type: str
    signatures: tuple[Signature, ...]

    @property
    def signed(self) -> bytes:
        """The bytes that signatures are of."""
        return pre_authentication(self.payload_type, self.payload)

    def write(self) -> bytes:
        """The envelope as JSON."""
        value = {
            "payload": _text(self.payload),
            "payloadType": self.payload_type,
            "signatures": [
                {"keyid": one.keyid, "sig": _text(one.sig)} for one in self.signatures
            ],
        }
        return json.dumps(value, separators=(",", ":")).encode()


def pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """PAE of the specification.

    >>> pre_authentication("http://example.com/HelloWorld", b"hello world")
    b'DSSEv1 29 http://example.com/HelloWorld 11 hello world'
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def read_envelope(raw: bytes, bytes_max: int) -> Envelope:
    """An envelope whose signatures nobody has verified yet.

    Raises:
        MessageError: too large, or not an envelope.
    """
    if len(raw) > bytes_max:
        raise MessageError(f"envelope has {len(raw)} bytes; at most {bytes_max}")
    try:
        value = json.loads(raw)
        signatures = tuple(
            Signature(str(one.get("keyid", "")), _bytes(one["sig"]))
            for one in value["signatures"]
        )
        found = Envelope(
            _bytes(value["payload"]), _string(value["payloadType"]), signatures
        )
    except (
        ValueError, KeyError, TypeError, AttributeError, RecursionError,
    ) as cause:  # fmt: skip
        raise MessageError(f"not a DSSE envelope: {cause!r:.200}") from cause
    if not 1 <= len(signatures) <= SIGNATURES_MAX:
        raise MessageError(
            f"envelope has {len(signatures)} signatures; expected 1 to {SIGNATURES_MAX}"
        )
    return found


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: object) -> bytes:
    """Standard or URL-safe base64: the specification wants both to be read."""
    plain = _string(text).replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(plain, validate=True)
    except binascii.Error as cause:
        raise ValueError(f"not base64: {cause}") from cause


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, found {type(value).__name__}")
    return value
