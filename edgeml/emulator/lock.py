"""The lock: which packages the emulator is made of, by name, version and SHA-256.

``scripts/lock-emulator`` writes ``lock.toml``; this reads it.
"""

import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ..cache import digest_of

LAYOUT = 1
"""Raised whenever the same packages are unpacked another way."""
_LOCK = Path(__file__).with_name("lock.toml")


@dataclass(frozen=True)
class Package:
    """A Debian package; ``path`` is its place in an archive."""

    name: str
    version: str
    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Wheel:
    """A wheel of one platform."""

    name: str
    version: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Part:
    """A folder of the cache: QEMU for one host, or the system of one guest.

    ``python`` (``3.11``), ``triplet`` (Debian's name of the architecture) and
    ``platforms`` (wheel tags, the newest first) are of guests only.
    """

    name: str
    debs: tuple[Package, ...]
    wheels: tuple[Wheel, ...] = ()
    python: str = ""
    triplet: str = ""
    platforms: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """What it is called in the cache: another content is another folder."""
        return f"{self.name}-{digest_of([LAYOUT, self])[:16]}"

    @property
    def download_bytes(self) -> int:
        """What is fetched to make it."""
        return sum(one.size for one in self.debs) + sum(w.size for w in self.wheels)

    def version(self, name: str) -> str:
        """The version of one of its packages; "" when it is not in it."""
        versions = {one.name: one.version for one in self.wheels}
        versions |= {one.name: one.version for one in self.debs}
        return versions.get(name, "")


@dataclass(frozen=True)
class Lock:
    """Everything there is; ``snapshot`` is a moment when Debian had all of it."""

    snapshot: str
    qemu: dict[str, Part]
    """By the host's architecture."""
    guests: dict[str, Part]
    """By the guest's architecture."""
    counters: dict[str, Part] = field(default_factory=dict)
    """QEMUs that take plugins, with their libraries, by the host's architecture."""

    @property
    def parts(self) -> list[Part]:
        """All of them."""
        return [
            *self.qemu.values(), *self.guests.values(), *self.counters.values()
        ]  # fmt: skip


@cache
def lock() -> Lock:
    """The lock of this version."""
    return read_lock(_LOCK.read_text())


def read_lock(text: str) -> Lock:
    """The lock in the text of a ``lock.toml``."""
    raw = tomllib.loads(text)
    return Lock(
        snapshot=raw["snapshot"],
        qemu={arch: _part(f"qemu-{arch}", one) for arch, one in raw["qemu"].items()},
        guests={arch: _part(arch, one) for arch, one in raw["guest"].items()},
        counters={
            arch: _part(f"counter-{arch}", one) for arch, one in raw["counter"].items()
        },
    )


def _part(name: str, raw: dict[str, Any]) -> Part:
    return Part(
        name=name,
        debs=tuple(Package(**one) for one in raw["debs"]),
        wheels=tuple(Wheel(**one) for one in raw.get("wheels", ())),
        python=raw.get("python", ""),
        triplet=raw.get("triplet", ""),
        platforms=tuple(raw.get("platforms", ())),
    )
