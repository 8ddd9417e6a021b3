"""The director's half: a signed message to this very device.

The rules it keeps:

1. The signature is verified before anything of the payload is parsed.
2. No key, no message: an empty key ring refuses, it does not let pass.
"""

from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ..contract.codes import Reason
from ..contract.envelope import DESIRED_TYPE, Envelope, read_envelope
from ..contract.errors import MessageError
from ..contract.messages import DESIRED_BYTES_MAX, Desired, read
from ..errors import UpdateError
from .floors import Floors

KEYS_MAX = 16


def opened(raw: bytes) -> Envelope:
    """The envelope, not verified.

    Raises:
        UpdateError: it is none.
    """
    try:
        envelope = read_envelope(raw, DESIRED_BYTES_MAX)
    except MessageError as cause:
        raise UpdateError(Reason.DESIRED_MALFORMED, str(cause)) from cause
    if envelope.payload_type != DESIRED_TYPE:
        raise UpdateError(
            Reason.DESIRED_MALFORMED,
            f"the envelope holds {envelope.payload_type!r:.80}; expected "
            f"{DESIRED_TYPE!r}",
        )
    return envelope


def keys_of(named: Mapping[str, Any]) -> dict[str, Ed25519PublicKey]:
    """Key id → key; those that are not ed25519 are left out.

    Raises:
        UpdateError: none is left, or one cannot be read.
    """
    keys = {}
    for keyid, value in list(named.items())[:KEYS_MAX]:
        try:
            if value["keytype"] == "ed25519" and value["scheme"] == "ed25519":
                half = bytes.fromhex(value["keyval"]["public"])
                keys[keyid] = Ed25519PublicKey.from_public_bytes(half)
        except (KeyError, TypeError, ValueError) as cause:
            raise UpdateError(
                Reason.TRUST_UNAVAILABLE,
                f"the director's key {keyid[:16]!r} cannot be read: {cause!r}",
            ) from cause
    if not keys:
        raise UpdateError(
            Reason.TRUST_UNAVAILABLE,
            "this device knows no ed25519 key of its director, so nobody can tell it "
            "what to run; enroll it again",
        )
    return keys


def is_signed(envelope: Envelope, keys: Mapping[str, Ed25519PublicKey]) -> bool:
    """Whether one of the keys has signed it."""
    for one in envelope.signatures:
        # the key id is a hint; without it every key may be the one
        candidates = [keys[one.keyid]] if one.keyid in keys else []
        for key in candidates or (keys.values() if not one.keyid else ()):
            try:
                key.verify(one.sig, envelope.signed)
            except InvalidSignature:
                continue
            return True
    return False


def check(
    envelope: Envelope, facts_device: str, floors: Floors, director: str, now: float
) -> Desired:
    """What a verified envelope says, where it is for now and for this device.

    Args:
        envelope: Verified.
        facts_device: This device's id.
        floors: What it has heard.
        director: Fingerprint of the keys that have verified it.
        now: Seconds since 1970.

    Raises:
        UpdateError: it is for another device, a replay, or too old.
    """
    try:
        wanted = read(envelope.payload, Desired, DESIRED_BYTES_MAX)
    except MessageError as cause:
        raise UpdateError(Reason.DESIRED_MALFORMED, str(cause)) from cause
    if wanted.device != facts_device:
        raise UpdateError(
            Reason.DESIRED_DEVICE,
            f"the message is for device {wanted.device!r}; this is {facts_device!r}",
        )
    if wanted.serial < floors.serial_of(director):
        raise UpdateError(
            Reason.DESIRED_REPLAYED,
            f"the message has serial {wanted.serial}; this device has accepted "
            f"{floors.serial}: somebody repeats an old one",
            {"serial": wanted.serial, "floor": floors.serial},
        )
    if wanted.not_after.timestamp() <= now:
        raise UpdateError(
            Reason.DESIRED_EXPIRED,
            f"the message was good until {wanted.not_after.isoformat()}",
            {"now": now},
        )
    return wanted
