"""A change of a registry: in memory until it is committed, then published in an order
that leaves the registry valid wherever it is cut off.

The rules it keeps:

1. Files that others list come before those that list them; ``timestamp.json``, the only
   file that is replaced, makes the change visible. What was cut off before lies there
   unlisted, and nobody sees it.
2. A new root comes last, and what it changes the keys of is signed by the old ones,
   too: both roots find a valid registry. Only where the old keys are lost, the root
   comes first, since nothing else can be done.
3. Two publishers: the second is refused by the lock, by a version that is there already
   or by a timestamp that is not the one it began with. Nothing is overwritten.
4. A version that was used, even by what was cut off, is not used again.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from securesystemslib.signer import Key
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import DelegatedRole, Metadata, MetaFile, Root, Targets

from ..errors import InputError, UsageError
from ..keys.ring import Ring
from .metadata import (
    DIRECTOR,
    ISSUED,
    ROLE_PREFIX,
    TIMESTAMP,
    Expiry,
    State,
    empty_targets,
    is_signed,
    to_bytes,
    versioned,
    versions,
)
from .storage import Storage

LOCK = "metadata/publishing.lock"
ONLINE = ("snapshot", "timestamp")


class Change:
    """What is to become of a registry."""

    def __init__(
        self, state: State, ring: Ring, now: datetime, expiry: Expiry | None = None
    ) -> None:
        self.state = state
        self._ring = ring
        self._now = now
        self.expiry = expiry or Expiry()
        self._before = state.root
        self._holders_before = {
            name: self.holders(name)[0] for name in self.names() if name != DIRECTOR
        }
        self._dirty: set[str] = set()

    def names(self) -> tuple[str, ...]:
        """Who holds keys: ``root``, ``snapshot`` …, ``director``, and the models."""
        models = (one.removeprefix(ROLE_PREFIX) for one in self.state.roles)
        return ("root", *ONLINE, DIRECTOR, *models)

    def holders(self, name: str) -> tuple[list[Key], int]:
        """Keys and threshold of a role.

        Raises:
            InputError: no such model.
        """
        root, targets = self.state.root.signed, self.state.targets.signed
        if name in ("root", *ONLINE):
            role = root.roles[name]
            return [root.keys[one] for one in role.keyids], role.threshold
        if name == DIRECTOR:
            found = targets.unrecognized_fields.get(DIRECTOR, {})
            return [Key.from_dict(one, dict(key)) for one, key in found.items()], 1
        given = self.state.role_of(name)
        assert targets.delegations is not None, "role_of has found one"
        return [targets.delegations.keys[one] for one in given.keyids], given.threshold

    def assign(self, name: str, keys: Sequence[Key], threshold: int) -> None:
        """Give a role these keys; a model that is new is delegated.

        Raises:
            UsageError: the threshold cannot be reached by them.
        """
        unique = {one.keyid: one for one in keys}
        if not 1 <= threshold <= len(unique):
            raise UsageError(
                f"{name}: a threshold of {threshold} with {len(unique)} keys; expected "
                "1 up to as many as there are keys"
            )
        if name in ("root", *ONLINE):
            self._assign_root(name, unique, threshold)
        elif name == DIRECTOR:
            if threshold != 1:
                raise UsageError("one key of the director signs; its threshold is 1")
            others = [one.keytype for one in keys if one.keytype != "ed25519"]
            if others:
                raise UsageError(
                    f"devices take a director's word by ed25519 keys only; this one is "
                    f"{others[0]}"
                )
            field = {one: key.to_dict() for one, key in unique.items()}
            self.state.targets.signed.unrecognized_fields[DIRECTOR] = field
            self._dirty.add("targets")
        else:
            self._assign_model(name, unique, threshold)

    def touch(self, role: str) -> None:
        """Sign a role's metadata anew even if it says what it said."""
        self._dirty.add(role)

    def targets_of(self, model: str) -> Targets:
        """The releases of a model, to be changed.

        Raises:
            InputError: nobody may sign for that model.
        """
        name = self.state.role_of(model).name
        self._dirty.add(name)
        return self.state.roles[name].signed

    def commit(self, storage: Storage, take_over: bool = False) -> list[str]:
        """Sign and publish; the paths that were written, in their order.

        Raises:
            InputError: a key is missing, or somebody else publishes.
        """
        with_lock(storage, self._now, take_over)
        try:
            return self._commit(storage)
        finally:
            storage.remove(LOCK)

    def _commit(self, storage: Storage) -> list[str]:
        files = self._files(storage)
        fresh = self.state.seen is None
        written = []
        for path, raw in files:
            if path == TIMESTAMP:
                if storage.read(TIMESTAMP) != self.state.seen:
                    raise InputError(
                        f"somebody else has published to {storage.url} meanwhile; "
                        "nothing of this is visible: do it again"
                    )
                storage.write(path, raw)
            elif fresh:
                storage.write(path, raw)
            else:
                _create(storage, path, raw)
            written.append(path)
        return written

    def _files(self, storage: Storage) -> list[tuple[str, bytes]]:
        """What is to be written, signed, in order."""
        state = self.state
        files: list[tuple[str, bytes]] = []
        fresh = state.seen is None
        root: list[tuple[str, bytes]] = []
        if "root" in self._dirty:
            if not fresh:
                state.root.signed.version += 1
            state.root.signed.expires = self._until("root")
            self._date(state.root)
            self._sign(state.root, "root")
            root = [
                (versioned(state.root.signed.version, "root"), to_bytes(state.root))
            ]
        for name in [*state.roles, "targets"]:
            if name not in self._dirty:
                continue
            metadata = state.targets if name == "targets" else state.roles[name]
            metadata.signed.version = self._next(storage, name, metadata)
            metadata.signed.expires = self._until("targets")
            if name == "targets":
                self._date(metadata)
            self._sign(metadata, name)
            path = versioned(metadata.signed.version, name)
            files.append((path, to_bytes(metadata)))
            state.snapshot.signed.meta[f"{name}.json"] = _meta(metadata)
        if files or "snapshot" in self._dirty:
            listed = ["targets", *state.roles]
            state.snapshot.signed.meta = {
                f"{name}.json": state.snapshot.signed.meta[f"{name}.json"]
                for name in listed
            }
            snapshot = state.snapshot
            snapshot.signed.version = self._next(storage, "snapshot", snapshot)
            snapshot.signed.expires = self._until("snapshot")
            self._sign(snapshot, "snapshot")
            path = versioned(snapshot.signed.version, "snapshot")
            files.append((path, to_bytes(snapshot)))
            state.timestamp.signed.snapshot_meta = _meta(snapshot)
        timestamp = state.timestamp
        if not fresh:
            timestamp.signed.version += 1
        timestamp.signed.expires = self._until("timestamp")
        self._sign(timestamp, "timestamp")
        stamp = [(TIMESTAMP, to_bytes(timestamp))]
        return [*files, *stamp, *root] if self._bridged() else [*files, *root, *stamp]

    def _bridged(self) -> bool:
        """Whether those who still have the old root find all this valid."""
        state, before = self.state, self._before.signed
        if state.seen is None:
            return False
        return all(
            is_signed(before, role, metadata)
            for role, metadata in (
                ("targets", state.targets),
                ("snapshot", state.snapshot),
                ("timestamp", state.timestamp),
            )
        )

    def _sign(self, metadata: Metadata[Any], role: str) -> None:
        """By all of the role's keys that are here, the former ones included."""
        name = "root" if role == "targets" else role.removeprefix(ROLE_PREFIX)
        keys, threshold = self.holders(name)
        signers = self._ring.signers([one.keyid for one in keys])
        if len(signers) < threshold:
            here = ", ".join(one.name for one in self._ring.entries) or "none"
            raise InputError(
                f"{name} needs {threshold} of {len(keys)} keys to sign; the key "
                f"folders hold {len(signers)} of them (keys: {here}): add --keys FOLDER"
            )
        present = {one.keyid for one in keys}
        former = [
            one.keyid
            for one in self._holders_before.get(name, ())
            if one.keyid not in present
        ]
        metadata.signatures.clear()
        for signer in [*signers, *self._ring.signers(former)]:
            try:
                metadata.sign(signer, append=True)
            except UnsignedMetadataError as cause:
                entry = self._ring.of(signer.public_key.keyid)
                why = str(cause.__cause__) or type(cause.__cause__).__name__
                raise InputError(
                    f"key {entry.name if entry else '?'} does not sign for {name}: "
                    f"{why}; nothing was published"
                ) from cause
        if name == "root" and role == "root" and not is_signed(
            self._before.signed, "root", metadata
        ):  # fmt: skip
            raise InputError(
                "the new root must be signed by enough keys of the old one, or no "
                "device will follow: add their folders with --keys FOLDER"
            )

    def _assign_root(self, name: str, keys: dict[str, Key], threshold: int) -> None:
        self._leave_root()
        root = self.state.root.signed
        for role in (name, "targets") if name == "root" else (name,):
            root.roles[role].keyids = list(keys)
            root.roles[role].threshold = threshold
        root.keys.update(keys)
        used = {keyid for role in root.roles.values() for keyid in role.keyids}
        root.keys = {one: key for one, key in root.keys.items() if one in used}
        self._dirty |= {"root"}
        if name == "root":
            self._dirty.add("targets")
        if name == "snapshot":
            self._dirty.add("snapshot")

    def _leave_root(self) -> None:
        """Keep the root that devices have apart from the one that is changed."""
        if self.state.root is self._before and self.state.seen is not None:
            copy: Metadata[Root] = Metadata.from_bytes(to_bytes(self._before))
            self.state.root = copy

    def _assign_model(self, model: str, keys: dict[str, Key], threshold: int) -> None:
        name = ROLE_PREFIX + model
        delegations = self.state.targets.signed.delegations
        assert delegations is not None and delegations.roles is not None
        delegations.roles[name] = DelegatedRole(
            name, list(keys), threshold, terminating=True, paths=[f"{model}/*/*"]
        )
        delegations.keys.update(keys)
        used = {one for role in delegations.roles.values() for one in role.keyids}
        delegations.keys = {
            one: key for one, key in delegations.keys.items() if one in used
        }
        if name not in self.state.roles:
            made = empty_targets(1, self._now)
            made.signed.version, made.signed.delegations = 0, None
            self.state.roles[name] = made
        self._dirty |= {"targets", name}

    def _next(self, storage: Storage, role: str, metadata: Metadata[Any]) -> int:
        if self.state.seen is None:
            return 1
        return int(max([metadata.signed.version, *versions(storage, role)]) + 1)

    def _date(self, metadata: Metadata[Any]) -> None:
        """Devices without a clock learn from it how late it is at least."""
        metadata.signed.unrecognized_fields[ISSUED] = int(self._now.timestamp())

    def _until(self, role: str) -> datetime:
        span = getattr(self.expiry, role)
        return (self._now + span).replace(microsecond=0)  # type: ignore[no-any-return]


def with_lock(storage: Storage, now: datetime, take_over: bool) -> None:
    """Take the lock; the caller removes it.

    Raises:
        InputError: somebody has it.
    """
    if take_over:
        storage.remove(LOCK)
    mine = json.dumps({"at": now.isoformat()}).encode()
    try:
        storage.create(LOCK, mine)
    except FileExistsError as cause:
        raise InputError(
            f"somebody publishes to {storage.url}: {LOCK} says "
            f"{(storage.read(LOCK) or b'').decode(errors='replace')}. If that was cut "
            "off, give --take-over"
        ) from cause


def _create(storage: Storage, path: str, raw: bytes) -> None:
    try:
        storage.create(path, raw)
    except FileExistsError as cause:
        raise InputError(
            f"{path} is there already: somebody else publishes at the same time; "
            "nothing of this is visible: do it again"
        ) from cause


def _meta(metadata: Metadata[Any]) -> MetaFile:
    raw = to_bytes(metadata)
    return MetaFile.from_data(metadata.signed.version, raw, ["sha256"])
