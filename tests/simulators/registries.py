"""Registries made by the publisher's own code, in folders, with all keys at hand.

``House`` is an honest publisher with a clock of its own; what an attacker does to the
files is for the test to do.
"""

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import bundles
from securesystemslib.signer import Signer

from device_agent.contract.bundle import read_bundle
from device_agent.contract.messages import Desired, Release
from edgeml.keys.director import sign_desired
from edgeml.keys.ring import Ring
from edgeml.registry import ceremony
from edgeml.registry.change import Change
from edgeml.registry.housekeeping import due
from edgeml.registry.metadata import Expiry, load
from edgeml.registry.publish import Published, publish, stored
from edgeml.registry.storage import Folder, Storage

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
SECRET = "correct horse"
TEAM = "team-linear"


@cache
def release(version: str, counter: int, name: str = "linear", **changes: Any) -> bytes:
    """A small real bundle."""
    return bundles.bundle(
        name=name, version=version, release_counter=counter, **changes
    )


@dataclass
class House:
    """A publisher: folder of the registry, folder of the keys, what time it is."""

    storage: Storage
    keys: Path
    now: datetime = NOW
    expiry: Expiry = field(default_factory=Expiry)
    ring: Ring = field(init=False)

    def __post_init__(self) -> None:
        self.keys.mkdir(parents=True, exist_ok=True)
        self.ring = self.ring_of(self.keys)

    @staticmethod
    def ring_of(*folders: Path) -> Ring:
        return Ring(folders, lambda _: SECRET)

    @property
    def anchor(self) -> bytes:
        return ceremony.anchor_of([self.keys])

    def begin(self, *models: str, roots: int = 3, threshold: int = 2) -> "House":
        """A new registry, with a team key for each model."""
        ceremony.begin(
            self.ring, self.storage, self.now, roots=roots, threshold=threshold,
            expiry=self.expiry,
        )  # fmt: skip
        for model in models:
            self.delegate(model, f"team-{model}")
        return self

    def change(self, rebuild: bool = False) -> Change:
        state = load(self.storage, self.anchor, rebuild)
        return Change(state, self.ring, self.now, self.expiry)

    def delegate(self, model: str, name: str) -> None:
        change = self.change()
        ceremony.add(change, model, self.ring.make(name).key)
        change.commit(self.storage)

    def publish(self, *raw: bytes) -> list[Published]:
        """As ``edgeml publish``; a second passes on the publisher's clock."""
        self.now += timedelta(seconds=1)
        change = self.change()
        found = publish(change, self.storage, [(read_bundle(one), one) for one in raw])
        change.commit(self.storage)
        return found

    def refresh(self, rebuild: bool = False) -> list[str]:
        return due(self.change(rebuild), self.now, rebuild).commit(self.storage)

    def signer(self, name: str) -> Signer:
        return self.ring.signer(self.ring.entry(name))

    def desired(self, raw: bytes, serial: int = 1, **changes: Any) -> Desired:
        """What an honest fleet wants of ``device-1``: that bundle."""
        manifest = read_bundle(raw).manifest
        plain = Desired(
            device="device-1", serial=serial,
            release=Release(model=manifest.name, version=manifest.version),
            digest=hashlib.sha256(raw).hexdigest(), counter=manifest.release_counter,
            not_after=self.now + timedelta(days=1), rollout="r-1",
        )  # fmt: skip
        return plain.model_copy(update=changes)

    def envelope(self, raw: bytes, serial: int = 1, **changes: Any) -> bytes:
        return sign_desired(
            self.desired(raw, serial, **changes), self.signer("director")
        )


def house(folder: Path, *models: str, **options: Any) -> House:
    """A new registry in ``folder/registry``, keys in ``folder/keys``."""
    return House(Folder(folder / "registry"), folder / "keys", **options).begin(*models)


def file_of(one: Published) -> str:
    """Where its bundle lies in the registry."""
    return stored(one.path, one.digest)
