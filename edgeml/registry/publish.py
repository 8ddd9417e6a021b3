"""Publishing bundles: what a team signs for.

The rules it keeps:

1. A bundle is read whole before it is published; what is said of it in the metadata is
   what its manifest says.
2. The release counter of a model × target only grows: devices take none below the one
   that they have committed.
3. The bundle's digest is in its path, so a release is never replaced: the same version
   may be published again only with the same bytes.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuf.api.metadata import TargetFile, Targets

from device_agent.contract.bundle import SUFFIX, Bundle
from device_agent.contract.manifest import Manifest

from ..errors import InputError
from .change import Change
from .storage import Storage

CUSTOM = "custom"
CHANNEL = "stable"
AGENT_MIN = "0.1.0"


@dataclass(frozen=True)
class Published:
    """A release for one target, as it went out."""

    path: str
    digest: str
    size_bytes: int
    counter: int

    def facts(self) -> dict[str, Any]:
        """As JSON says it."""
        return {
            "path": self.path, "digest": self.digest, "size_bytes": self.size_bytes,
            "release_counter": self.counter,
        }  # fmt: skip


def publish(
    change: Change,
    storage: Storage,
    bundles: Sequence[tuple[Bundle, bytes]],
    channel: str = CHANNEL,
) -> list[Published]:
    """Upload bundles and list them; ``change`` is to be committed afterwards.

    Raises:
        InputError: a release counter does not grow, a version is published already with
            other bytes, or nobody may sign for a model.
    """
    found = [_list(change, bundle, channel) for bundle, _ in bundles]
    for one, (_, raw) in zip(found, bundles, strict=True):
        path = stored(one.path, one.digest)
        there = storage.read(path)
        if there is None or hashlib.sha256(there).hexdigest() != one.digest:
            storage.write(path, raw)
    return found


def stored(path: str, digest: str) -> str:
    """Where the file of a TUF target path lies: its name begins with its digest."""
    folder, _, name = path.rpartition("/")
    return f"targets/{folder}/{digest}.{name}"


def target_path(manifest: Manifest) -> str:
    """The name of a release in the metadata: ``MODEL/VERSION/TARGET.edgeml``."""
    return f"{manifest.name}/{manifest.version}/{manifest.target}{SUFFIX}"


def counters(targets: Targets) -> dict[str, int]:
    """Target → highest release counter that is listed."""
    found: dict[str, int] = {}
    for file in targets.targets.values():
        custom = custom_of(file)
        target, counter = str(custom["target"]), int(custom["release_counter"])
        found[target] = max(counter, found.get(target, -1))
    return found


def custom_of(file: TargetFile) -> dict[str, Any]:
    """What the metadata says of a release.

    Raises:
        InputError: nothing, or not what a release must say.
    """
    custom = file.unrecognized_fields.get(CUSTOM)
    wanted = {"model", "version", "release_counter", "target", "compatible", "runtime"}
    if not isinstance(custom, dict) or wanted - custom.keys():
        raise InputError(f"{file.path}: its metadata is not that of a release")
    return custom


def custom(manifest: Manifest, channel: str) -> dict[str, Any]:
    """What the metadata has to say of a bundle."""
    return {
        "model": manifest.name,
        "version": manifest.version,
        "release_counter": manifest.release_counter,
        "target": manifest.target,
        "compatible": list(manifest.compatible),
        "runtime": {
            "name": manifest.runtime.name, "min_version": manifest.runtime.min_version,
        },
        "channel": channel,
        "agent_min": AGENT_MIN,
    }  # fmt: skip


def raw_of(path: Path) -> bytes:
    """The bytes of a file that somebody named.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as cause:
        raise InputError(f"{path} cannot be read: {cause.strerror}") from cause


def _list(change: Change, bundle: Bundle, channel: str) -> Published:
    manifest = bundle.manifest
    targets = change.targets_of(manifest.name)
    path = target_path(manifest)
    made = Published(path, bundle.sha256, bundle.size_bytes, manifest.release_counter)
    there = targets.targets.get(path)
    if there is not None:
        if there.hashes.get("sha256") == bundle.sha256:
            return made
        raise InputError(
            f"{path} is published with other bytes (SHA-256 "
            f"{there.hashes.get('sha256', '?')[:12]}…); a release is never replaced: "
            "give the model another version"
        )
    last = counters(targets).get(manifest.target, -1)
    if manifest.release_counter <= last:
        raise InputError(
            f"{path} has release counter {manifest.release_counter}, and "
            f"{last} is published for {manifest.target}: devices would take it for a "
            f"step back. Give --counter next (it becomes {last + 1}), or set "
            "release_counter in the recipe"
        )
    fields = {CUSTOM: custom(manifest, channel)}
    targets.targets[path] = TargetFile(
        bundle.size_bytes, {"sha256": bundle.sha256}, path, fields
    )
    return made
