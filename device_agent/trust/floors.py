"""Floors: what this device has seen, and goes below never again.

The rules it keeps:

1. They lie in two places that do not fall together: the database beside the metadata,
   and a file in another folder. What counts is the higher of both, field by field.
2. A place that is damaged is said to be, and written anew; it never counts as zero
   while the other one holds.
3. Versions count under the keys they were seen under: where the root names other online
   keys, versions begin anew (that is how a registry recovers from stolen ones that were
   used to jump ahead). So does the director's serial number with its keys. The root's
   version and the release counters never go down.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..contract.manifest import canonical_json


@dataclass(frozen=True)
class Committed:
    """The newest release of a model × target that was committed here."""

    counter: int
    digest: str


@dataclass(frozen=True)
class Floors:
    """Zero and empty: nothing was seen yet."""

    root: int = 0
    online: str = ""
    """Fingerprint of the keys of snapshot and timestamp."""
    versions: Mapping[str, int] = field(default_factory=dict)
    """Role → version, under these keys."""
    director: str = ""
    """Fingerprint of the director's keys."""
    serial: int = 0
    """Under these keys."""
    clock: float = 0.0
    """Seconds since 1970 that have certainly passed."""
    counters: Mapping[str, Committed] = field(default_factory=dict)
    """``MODEL/TARGET`` → what was committed."""
    enrolled: str = ""
    """Digest of the root of the enrolment that all this was seen under."""

    def version(self, role: str, online: str) -> int:
        """The lowest version of a role that is believed under these online keys."""
        return self.versions.get(role, 0) if online == self.online else 0

    def serial_of(self, director: str) -> int:
        """The lowest serial number that is believed under these keys."""
        return self.serial if director == self.director else 0

    def seen(self, root: int, online: str, versions: Mapping[str, int]) -> "Floors":
        """After metadata was verified."""
        other = Floors(root=root, online=online, versions=dict(versions))
        return merged(self, other)

    def heard(self, director: str, serial: int) -> "Floors":
        """After a word of the director was accepted."""
        kept = max(serial, self.serial_of(director))
        return replace(self, director=director, serial=kept)

    def committed(self, key: str, counter: int, digest: str) -> "Floors":
        """After a release was committed."""
        made = Floors(counters={key: Committed(counter, digest)})
        return merged(self, made)


def merged(one: Floors, other: Floors) -> Floors:
    """The higher of both, field by field; versions of the newer root's keys."""
    newer, older = (one, other) if one.root >= other.root else (other, one)
    if newer.online == "" and older.online != "":
        newer, older = older, newer
    versions = dict(newer.versions)
    if newer.online == older.online:
        for role, version in older.versions.items():
            versions[role] = max(version, versions.get(role, 0))
    counters = dict(one.counters)
    for key, found in other.counters.items():
        if key not in counters or counters[key].counter < found.counter:
            counters[key] = found
    director, serial = newer.director or older.director, newer.serial
    if newer.director in ("", older.director):
        serial = max(newer.serial, older.serial)
    return Floors(
        root=max(one.root, other.root), online=newer.online, versions=versions,
        director=director, serial=serial, clock=max(one.clock, other.clock),
        counters=counters, enrolled=one.enrolled or other.enrolled,
    )  # fmt: skip


def dump(floors: Floors) -> bytes:
    """The floors with their digest, as JSON."""
    value = asdict(floors)
    digest = hashlib.sha256(canonical_json(value)).hexdigest()
    return canonical_json({"floors": value, "sha256": digest})


def parse(raw: bytes) -> Floors:
    """What :func:`dump` wrote.

    Raises:
        ValueError: it did not, or it was damaged.
    """
    try:
        whole = json.loads(raw)
        value: dict[str, Any] = whole["floors"]
        if hashlib.sha256(canonical_json(value)).hexdigest() != whole["sha256"]:
            raise ValueError("the digest is not that of the content")
        counters = {key: Committed(**one) for key, one in value["counters"].items()}
        return Floors(**{**value, "counters": counters})
    except (KeyError, TypeError, AttributeError) as cause:
        raise ValueError(f"not floors: {cause!r}") from cause
