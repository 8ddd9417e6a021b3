"""What the agent asks the process that verifies, and what that answers, as JSON."""

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .floors import Committed, Floors


@dataclass(frozen=True)
class FetchLimits:
    """What a registry may do to us, at most."""

    total_s: float = 60.0
    """For everything that is fetched for one question."""
    wait_s: float = 15.0
    """For a connection, and for the next byte."""
    bytes_per_s: float = 500.0
    """Fewer, after ``grace_s``, is slow retrieval."""
    grace_s: float = 10.0
    root_bytes: int = 128 << 10
    timestamp_bytes: int = 16 << 10
    snapshot_bytes: int = 1 << 20
    targets_bytes: int = 4 << 20
    rotations: int = 256
    """Roots in one walk."""
    delegations: int = 8
    bundle_bytes: int = 2 << 30


@dataclass(frozen=True)
class Facts:
    """What this device is."""

    device: str
    compatible: tuple[str, ...]
    agent: str
    runtimes: Mapping[str, str] = field(default_factory=dict)
    """Name → version, empty: not installed; one that is not named is not judged."""


@dataclass(frozen=True)
class Question:
    """May this be run, and where is it?"""

    envelope: bytes
    now: float
    """By which expiry is judged: the clock and its floor are in it."""
    root: bytes
    """Trusted: the newest that was verified, else the one of the enrolment."""
    director: Mapping[str, Any]
    """Key id → public key, of the enrolment; the registry's, where it names some."""
    metadata: Mapping[str, bytes]
    floors: Floors
    urls: tuple[str, ...]
    facts: Facts
    limits: FetchLimits = FetchLimits()
    ca: str | None = None
    """File of certificates that the registry's web server is trusted by."""

    def write(self) -> bytes:
        """As JSON."""
        value = {**asdict(self), "envelope": _text(self.envelope)}
        value["root"] = _text(self.root)
        value["metadata"] = {name: _text(raw) for name, raw in self.metadata.items()}
        return json.dumps(value).encode()

    @classmethod
    def read(cls, raw: bytes) -> "Question":
        """What :meth:`write` wrote."""
        value = json.loads(raw)
        floors = value["floors"]
        counters = {key: Committed(**one) for key, one in floors["counters"].items()}
        facts = value["facts"]
        return cls(
            **{
                **value,
                "envelope": _bytes(value["envelope"]),
                "root": _bytes(value["root"]),
                "metadata": {name: _bytes(t) for name, t in value["metadata"].items()},
                "floors": Floors(**{**floors, "counters": counters}),
                "urls": tuple(value["urls"]),
                "facts": Facts(**{**facts, "compatible": tuple(facts["compatible"])}),
                "limits": FetchLimits(**value["limits"]),
            }
        )


@dataclass(frozen=True)
class Goal:
    """Yes: what to fetch."""

    path: str
    length: int
    urls: tuple[str, ...]
    custom: dict[str, Any]
    valid_until: float
    """Seconds since 1970; not to be activated after it without asking again."""


@dataclass(frozen=True)
class Refusal:
    """No, and why."""

    reason: str
    text: str
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """Metadata that was verified on the way, whatever the answer."""

    root: int
    online: str
    versions: dict[str, int]
    metadata: dict[str, bytes]
    """All of it, with the newest root."""
    clock: float = 0.0
    """It was at least that late; 0: not said."""


@dataclass(frozen=True)
class Answer:
    """Either a goal or a refusal; and what was learned."""

    goal: Goal | None = None
    refusal: Refusal | None = None
    payload: bytes | None = None
    """What the director said, if it was the director."""
    director: str = ""
    """Fingerprint of the keys that it was verified by."""
    seen: Seen | None = None

    def write(self) -> bytes:
        """As JSON."""
        value = asdict(self)
        value["payload"] = None if self.payload is None else _text(self.payload)
        if self.seen is not None:
            value["seen"]["metadata"] = {
                name: _text(raw) for name, raw in self.seen.metadata.items()
            }
        return json.dumps(value).encode()

    @classmethod
    def read(cls, raw: bytes) -> "Answer":
        """What :meth:`write` wrote."""
        value = json.loads(raw)
        goal, refusal, seen = value["goal"], value["refusal"], value["seen"]
        if goal is not None:
            goal = Goal(**{**goal, "urls": tuple(goal["urls"])})
        if seen is not None:
            metadata = {name: _bytes(t) for name, t in seen["metadata"].items()}
            seen = Seen(**{**seen, "metadata": metadata})
        payload = value["payload"]
        return cls(
            goal, None if refusal is None else Refusal(**refusal),
            None if payload is None else _bytes(payload), value["director"], seen,
        )  # fmt: skip


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
