"""Who may sign: making, adding, replacing and taking away keys.

The rules it keeps:

1. Every change is one :class:`~.change.Change`: it is published whole or not at all.
2. Root keys are also those of the top-level targets metadata, which delegates each
   model to its team and names the fleet's director: both are for people at a table.
3. A key that is taken away is left out at the next signature; what it signed before is
   not believed any more, so it is signed again.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, Role, Root, Snapshot, Timestamp

from ..errors import UsageError
from ..keys.ring import Entry, Ring, public_keys
from .change import Change
from .metadata import DIRECTOR, TIMESTAMP, Expiry, State, empty_targets, to_bytes
from .storage import Storage

ANCHOR = "root.json"
"""In a key folder: the root that its publisher believes."""


def begin(
    ring: Ring,
    storage: Storage,
    now: datetime,
    *,
    roots: int = 3,
    threshold: int = 2,
    expiry: Expiry | None = None,
) -> list[str]:
    """Make a new registry and the keys of it; the paths that were written.

    Keys that are in the ring already (``root-1`` …) are used, so what was cut off is
    begun again.

    Raises:
        UsageError: there is a registry, or the threshold is above the number of keys.
    """
    if storage.read(TIMESTAMP) is not None:
        raise UsageError(f"{storage.url} holds a registry already")
    if not 1 <= threshold <= roots:
        raise UsageError(f"threshold {threshold} of {roots} root keys cannot be met")
    held = {one.name: one for one in ring.entries}

    def made(name: str) -> Entry:
        return held[name] if name in held else ring.make(name)

    names = [f"root-{number + 1}" for number in range(roots)]
    offline = [made(name).key for name in names]
    director = made("director")
    unsigned = Role([one.keyid for one in offline], threshold)
    roles = {
        "root": unsigned,
        "targets": Role(list(unsigned.keyids), threshold),
        **{name: Role([made(name).key.keyid], 1) for name in ("snapshot", "timestamp")},
    }
    keys = {one.keyid: one for one in offline}
    for name in ("snapshot", "timestamp"):
        key = ring.entry(name).key
        keys[key.keyid] = key
    targets = empty_targets(1, now)
    targets.signed.unrecognized_fields[DIRECTOR] = public_keys([director])
    state = State(
        Metadata(Root(version=1, expires=now, keys=keys, roles=roles)), targets, {},
        Metadata(Snapshot(version=1)), Metadata(Timestamp(version=1)), None,
    )  # fmt: skip
    change = Change(state, ring, now, expiry)
    change.touch("root")
    change.touch("targets")
    written = change.commit(storage)
    (ring.home / ANCHOR).write_bytes(to_bytes(state.root))
    return written


def add(change: Change, name: str, key: Key, threshold: int | None = None) -> None:
    """Let a key sign for a role or a model, too.

    Raises:
        UsageError: it may already, or the threshold does not fit.
    """
    keys, now = _held(change, name)
    if key.keyid in {one.keyid for one in keys}:
        raise UsageError(f"that key signs for {name} already")
    change.assign(name, [*keys, key], threshold or now)


def replace(change: Change, name: str, old: Key, new: Key) -> None:
    """Let one key sign in the place of another.

    Raises:
        UsageError: the old one did not sign for that role.
    """
    keys, threshold = _held(change, name)
    _check(name, keys, old)
    following = [new if one.keyid == old.keyid else one for one in keys]
    change.assign(name, following, threshold)


def revoke(change: Change, name: str, key: Key, threshold: int | None = None) -> None:
    """Take a key away from a role or a model.

    Raises:
        UsageError: it did not sign for that role, or too few would be left.
    """
    keys, now = _held(change, name)
    _check(name, keys, key)
    left = [one for one in keys if one.keyid != key.keyid]
    if not left:
        raise UsageError(
            f"it is the only key of {name}; edgeml keys rotate puts another there"
        )
    if (threshold or now) > len(left):
        raise UsageError(
            f"{name} needs {threshold or now} signatures and {len(left)} keys would be "
            "left: add a key first, or give --threshold"
        )
    change.assign(name, left, threshold or now)


def holds(change: Change, key: Key) -> tuple[str, ...]:
    """The roles and models that a key signs for."""
    return tuple(
        name
        for name in change.names()
        if key.keyid in {one.keyid for one in change.holders(name)[0]}
    )


def anchor_of(folders: Sequence[Path]) -> bytes:
    """The root that the publisher believes.

    Raises:
        UsageError: none of the folders has one.
    """
    for folder in folders:
        if (folder / ANCHOR).is_file():
            return (folder / ANCHOR).read_bytes()
    places = ", ".join(map(str, folders))
    raise UsageError(
        f"no {ANCHOR} in {places}: copy the one that edgeml keys init wrote there, or "
        "1.root.json of the registry if you have compared its digest"
    )


def _held(change: Change, name: str) -> tuple[list[Key], int]:
    if name not in change.names():
        return [], 1
    return change.holders(name)


def _check(name: str, keys: Sequence[Key], key: Key) -> None:
    if key.keyid not in {one.keyid for one in keys}:
        raise UsageError(f"key {key.keyid[:12]} does not sign for {name}")
