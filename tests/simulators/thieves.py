"""What attackers have to work with: a registry's files, and keys that they stole.

A :class:`World` is a device that runs ``linear`` 1.0.0, and a web server that serves a
copy of the honest registry in which 2.0.0 was just published. Whatever an attack does
to that copy, the honest registry stays as it is and goes on to 3.0.0. Where online keys
were stolen, it goes on with others, as docs/trust.md says.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from liars import Liar, liar
from registries import House, release
from securesystemslib.signer import CryptoSigner, Signer
from trusting import Device
from tuf.api.metadata import Metadata, MetaFile, TargetFile

from edgeml.keys.director import sign_desired
from edgeml.registry import ceremony
from edgeml.registry.metadata import TIMESTAMP, to_bytes, versioned, versions
from edgeml.registry.publish import custom, stored
from edgeml.registry.storage import Folder

OLDER, OLD, NEW, NEXT = (
    ("0.9.0", 1), ("1.0.0", 2), ("2.0.0", 3), ("3.0.0", 4),
)  # fmt: skip
Edit = Callable[[Any], None]


@cache
def evil(name: str = "evil") -> CryptoSigner:
    """A key that nobody trusts."""
    return CryptoSigner.generate_ed25519()


@dataclass
class Thief:
    """Writes a registry's files; signs with whatever keys were stolen."""

    storage: Folder
    house: House
    """Whose keys ``signer`` steals."""
    stole: set[str] = field(default_factory=set)

    def signer(self, name: str) -> Signer:
        self.stole.add(name)
        return evil() if name.startswith("evil") else self.house.signer(name)

    def current(self, role: str) -> Metadata[Any]:
        """The newest of a role."""
        path = TIMESTAMP
        if role != "timestamp":
            path = versioned(versions(self.storage, role)[-1], role)
        return Metadata.from_bytes(self.storage.read(path) or b"")

    def write(
        self, role: str, metadata: Metadata[Any], raw: bytes | None = None
    ) -> None:
        path = versioned(metadata.signed.version, role)
        self.storage.write(
            TIMESTAMP if role == "timestamp" else path, raw or to_bytes(metadata)
        )

    def sign(
        self, role: str, *keys: str, edit: Edit | None = None, bump: int = 1
    ) -> Metadata[Any]:
        """The role's metadata, edited, of the next version, signed by these keys."""
        metadata = self.current(role)
        metadata.signed.version += bump
        if edit is not None:
            edit(metadata.signed)
        metadata.signatures.clear()
        for name in keys:
            metadata.sign(self.signer(name), append=True)
        self.write(role, metadata)
        return metadata

    def relist(
        self,
        *changed: str,
        snapshot: str = "snapshot",
        timestamp: str = "timestamp",
        edit: Edit | None = None,
        until: datetime | None = None,
    ) -> None:
        """New snapshot and timestamp that list what was changed."""

        def list_(signed: Any) -> None:
            for role in changed:
                signed.meta[f"{role}.json"] = self.meta(role)
            signed.expires = until or signed.expires
            if edit is not None:
                edit(signed)

        self.sign("snapshot", snapshot, edit=list_)
        self.stamp(timestamp, until=until)

    def stamp(
        self,
        key: str = "timestamp",
        edit: Edit | None = None,
        until: datetime | None = None,
    ) -> None:
        """A new timestamp of the newest snapshot."""

        def list_(signed: Any) -> None:
            signed.snapshot_meta = self.meta("snapshot")
            signed.expires = until or signed.expires
            if edit is not None:
                edit(signed)

        self.sign("timestamp", key, edit=list_)

    def meta(self, role: str) -> MetaFile:
        version = versions(self.storage, role)[-1]
        raw = self.storage.read(versioned(version, role)) or b""
        return MetaFile.from_data(version, raw, ["sha256"])

    def plant(
        self, raw: bytes, *keys: str, path: str = "linear/6.6.6/cpu-x86_64.edgeml",
        role: str = "model-linear",
        online: tuple[str, str] = ("snapshot", "timestamp"), **said: Any,
    ) -> None:  # fmt: skip
        """List bytes as a release in a role, signed by these keys; all is relisted."""
        from registries import bundles

        model, version, name = path.split("/")
        plain = custom(bundles.manifest(), "stable") | {
            "model": model, "version": version, "release_counter": 66,
            "target": name.removesuffix(".edgeml"),
        }  # fmt: skip
        digest = hashlib.sha256(raw).hexdigest()
        fields = {"custom": {**plain, **said}}
        file = TargetFile(len(raw), {"sha256": digest}, path, fields)
        self.sign(role, *keys, edit=lambda signed: signed.targets.update({path: file}))
        self.storage.write(stored(path, digest), raw)
        self.relist(role, snapshot=online[0], timestamp=online[1])


@dataclass
class World:
    """A device, the files that it is shown, and who is honest."""

    folder: Path
    device: Device
    server: Liar
    honest: House
    thief: Thief
    serial: int = 10
    healed: bool = False
    """Whether the attack has left the honest registry to be served already."""

    def wanted(self, which: tuple[str, int] = NEW, **changes: Any) -> bytes:
        """An envelope of the true director."""
        changes.setdefault("serial", self.serial)
        return self.honest.envelope(release(*which), **changes)

    def claimed(self, raw: bytes, **changes: Any) -> bytes:
        """An envelope of the true director for bytes that are no bundle."""
        plain = self.honest.desired(release(*NEW))
        plain = plain.model_copy(
            update={
                "digest": hashlib.sha256(raw).hexdigest(), "serial": self.serial,
                **changes,
            }
        )  # fmt: skip
        return sign_desired(plain, self.honest.signer("director"))

    def show(self, state: str) -> None:
        """Serve an earlier state of the honest registry."""
        self.server.folder = self.folder / state

    def heal(self) -> None:
        """The honest publisher is back, with what came next."""
        self.server.lies.clear()
        if self.thief.stole & {"snapshot", "timestamp"} and not self.healed:
            self.rotate()
        self.server.folder = self.folder / "next"

    def rotate(self) -> None:
        """Online keys that nobody has stolen; nothing is built on what they signed."""
        change = self.honest.change(rebuild=True)
        for role in ("snapshot", "timestamp"):
            old = change.holders(role)[0][0]
            spare = self.honest.ring.entry(f"spare-{role}").key
            ceremony.replace(change, role, old, spare)
        change.touch("snapshot")
        change.commit(self.honest.storage)


@dataclass
class Ground:
    """States that worlds are copied from; made once."""

    folder: Path
    honest: House = field(init=False)

    def __post_init__(self) -> None:
        self.honest = House(
            Folder(self.folder / "registry"), self.folder / "keys"
        ).begin("linear", "other")
        for name in ("spare-snapshot", "spare-timestamp", "spare"):
            self.honest.ring.make(name)
        self.honest.publish(release(*OLDER))
        self.keep("older")
        self.honest.publish(release(*OLD), release("1.0.0", 1, name="other"))
        self.keep("old")
        with liar(self.folder / "registry") as server:
            device = Device(self.folder / "device", self.honest, (server.url,))
            device.update(self.honest.envelope(release(*OLD), serial=2))
            device.client.close()
        self.honest.publish(release(*NEW))
        self.keep("new")
        self.honest.publish(release(*NEXT))
        self.keep("next")

    def keep(self, name: str) -> None:
        shutil.copytree(self.folder / "registry", self.folder / name)

    @contextmanager
    def world(self, folder: Path) -> Iterator[World]:
        """A device that runs 1.0.0, shown a registry with 2.0.0."""
        for name in ("older", "old", "new", "next", "device"):
            shutil.copytree(self.folder / name, folder / name)
        shutil.copytree(folder / "new", folder / "shown")
        honest = House(Folder(folder / "next"), self.honest.keys)
        honest.ring = self.honest.ring
        honest.now = self.honest.now + timedelta(seconds=10)
        with liar(folder / "shown") as server:
            device = Device(folder / "device", honest, (server.url,))
            device.now = honest.now.timestamp()
            thief = Thief(Folder(folder / "shown"), honest)
            yield World(folder, device, server, honest, thief)
            device.client.close()


def json_edited(raw: bytes, edit: Edit) -> bytes:
    """Metadata as JSON, edited without regard to its signature."""
    value = json.loads(raw)
    edit(value)
    return json.dumps(value).encode()
