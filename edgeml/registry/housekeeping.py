"""Keeping a registry in order: signing again before it expires, and taking away what
nobody can need any more.

The rules it keeps:

1. Roots are kept for ever: a device that was away for years walks along them.
2. A device may be in the midst of an update: the newest ``keep`` versions of every role
   stay, and every bundle that one of them lists.
"""

import re
from datetime import datetime
from typing import Any

from tuf.api.metadata import Targets

from ..errors import InputError
from .change import LOCK, Change
from .metadata import load, parsed, versioned
from .publish import stored
from .storage import Storage

_VERSIONED = re.compile(r"metadata/([1-9]\d*)\.(.+)\.json")


def due(change: Change, now: datetime, rebuild: bool = False) -> Change:
    """Sign the timestamp again, and the snapshot where half its time is over.

    The change is returned, to be committed.
    """
    until = change.state.snapshot.signed.expires
    if rebuild or until - change.expiry.snapshot / 2 <= now:
        change.touch("snapshot")
    return change


def collect(
    storage: Storage, anchor: bytes, keep: int, remove: bool
) -> list[dict[str, Any]]:
    """What nobody can need any more; removed if ``remove``.

    Raises:
        InputError: the registry is not what it must be, or somebody publishes.
    """
    if storage.read(LOCK) is not None:
        raise InputError(f"somebody publishes to {storage.url} ({LOCK}); try later")
    state = load(storage, anchor)
    current = {
        versioned(state.snapshot.signed.version, "snapshot"),
        versioned(state.targets.signed.version, "targets"),
        *(versioned(one.signed.version, name) for name, one in state.roles.items()),
    }
    old, kept = _metadata(storage, keep, current)
    needed = {path for one in kept for path in _listed(storage, one)}
    bundles = [one for one in storage.names("targets") if one not in needed]
    found = []
    for path in [*old, *bundles]:
        found.append({"path": path, "size_bytes": len(storage.read(path) or b"")})
        if remove:
            storage.remove(path)
    return found


def _metadata(
    storage: Storage, keep: int, current: set[str]
) -> tuple[list[str], list[str]]:
    """Paths of versions to remove, and of versions to keep."""
    versions: dict[str, list[tuple[int, str]]] = {}
    for path in storage.names("metadata"):
        matched = _VERSIONED.fullmatch(path)
        if matched and matched[2] != "root":
            versions.setdefault(matched[2], []).append((int(matched[1]), path))
    old: list[str] = []
    kept: list[str] = []
    for found in versions.values():
        for rank, (_, path) in enumerate(sorted(found, reverse=True)):
            (kept if rank < keep or path in current else old).append(path)
    return sorted(old), kept


def _listed(storage: Storage, path: str) -> list[str]:
    if path.endswith(".snapshot.json"):
        return []
    metadata = parsed(storage.read(path) or b"", Targets, path)
    return [
        stored(file.path, file.hashes.get("sha256", ""))
        for file in metadata.signed.targets.values()
    ]
