"""What a registry says now: read and verified before anything is built on it.

The rules it keeps:

1. The way in is a root that the publisher holds (``root.json`` of the key ring), not
   one that the registry offers; later roots are believed along the chain.
2. What is signed anew is what was verified: a registry that somebody tampered with is
   refused, not signed.
3. Expired is not refused: whoever publishes is about to sign it anew.
4. Where the online keys were stolen, snapshot and timestamp say nothing (``rebuild``):
   then the newest version of each role counts that its own keys have signed.
"""

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError
from tuf.api.serialization.json import JSONSerializer

from ..errors import InputError
from .storage import Storage

TIMESTAMP = "metadata/timestamp.json"
ROLE_PREFIX = "model-"
DIRECTOR = "director"
"""Field of the top-level targets metadata: key id → public key of the fleet."""
ISSUED = "issued"
"""Field of root and targets: when people signed it, seconds since 1970."""
Role = TypeVar("Role", Root, Timestamp, Snapshot, Targets)


@dataclass(frozen=True)
class Expiry:
    """How long signed metadata is good for."""

    root: timedelta = timedelta(days=365)
    targets: timedelta = timedelta(days=365)
    snapshot: timedelta = timedelta(days=21)
    timestamp: timedelta = timedelta(days=3)


@dataclass
class State:
    """All current metadata of a registry."""

    root: Metadata[Root]
    targets: Metadata[Targets]
    roles: dict[str, Metadata[Targets]]
    """Delegated roles by name (``model-NAME``)."""
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]
    seen: bytes | None
    """``timestamp.json`` as it was read; None: there is none yet."""
    problems: list[str] = field(default_factory=list)

    def role_of(self, model: str) -> DelegatedRole:
        """The delegation of a model.

        Raises:
            InputError: there is none.
        """
        delegations = self.targets.signed.delegations
        roles = (delegations.roles if delegations else None) or {}
        name = ROLE_PREFIX + model
        if name not in roles:
            known = [one.removeprefix(ROLE_PREFIX) for one in roles]
            raise InputError(
                f"model {model!r} has no team key in this registry "
                f"(models: {', '.join(known) or 'none'}); edgeml keys add NAME "
                f"--model {model} delegates it"
            )
        return roles[name]


def versioned(version: int, role: str) -> str:
    """Path of a version of a role's metadata."""
    return f"metadata/{version}.{role}.json"


def versions(storage: Storage, role: str) -> list[int]:
    """Versions of a role that lie in the registry, growing."""
    shape = re.compile(rf"metadata/([1-9]\d*)\.{re.escape(role)}\.json")
    found = map(shape.fullmatch, storage.names("metadata"))
    return sorted(int(one[1]) for one in found if one)


def load(storage: Storage, anchor: bytes, rebuild: bool = False) -> State:
    """The registry's metadata, verified.

    Args:
        storage: Where it is.
        anchor: A root that is believed.
        rebuild: Do not believe snapshot and timestamp.

    Raises:
        InputError: something is missing, or not signed by whom it must be.
    """
    root = load_root(storage, anchor)
    seen = storage.read(TIMESTAMP)
    if rebuild:
        return _rebuilt(storage, root, seen)
    if seen is None:
        raise InputError(f"{storage.url} holds no registry; edgeml keys init makes one")
    timestamp = _verified(seen, Timestamp, root.signed, "timestamp", TIMESTAMP)
    meta = timestamp.signed.snapshot_meta
    snapshot = _listed(storage, Snapshot, root.signed, "snapshot", meta)
    listed = snapshot.signed.meta
    targets = _listed(storage, Targets, root.signed, "targets", listed["targets.json"])
    roles = {}
    for name in delegated(targets.signed):
        if f"{name}.json" not in listed:
            raise InputError(f"{name} is delegated, but the snapshot does not list it")
        roles[name] = _listed(
            storage, Targets, targets.signed, name, listed[f"{name}.json"]
        )
    return State(root, targets, roles, snapshot, timestamp, seen)


def load_root(storage: Storage, anchor: bytes) -> Metadata[Root]:
    """The newest root that the anchor's chain leads to.

    Raises:
        InputError: the anchor or one of the chain is not what it must be.
    """
    root = parsed(anchor, Root, "the trusted root")
    _verify(root.signed, "root", root, "the trusted root")
    while True:
        path = versioned(root.signed.version + 1, "root")
        raw = storage.read(path)
        if raw is None:
            return root
        following = parsed(raw, Root, path)
        if following.signed.version != root.signed.version + 1:
            raise InputError(f"{path} says version {following.signed.version}")
        _verify(root.signed, "root", following, path)
        _verify(following.signed, "root", following, path)
        root = following


def delegated(targets: Targets) -> tuple[str, ...]:
    """Names of the roles that the targets metadata delegates to."""
    if targets.delegations is None:
        return ()
    return tuple(targets.delegations.roles or ())


def empty_targets(version: int, expires: datetime) -> Metadata[Targets]:
    """Targets metadata that lists and delegates nothing."""
    return Metadata(
        Targets(version=version, expires=expires, delegations=Delegations({}, {}))
    )


def parsed(raw: bytes, kind: type[Role], what: str) -> Metadata[Role]:
    """Metadata that nobody has verified.

    Raises:
        InputError: it is none of that kind.
    """
    try:
        found = Metadata[Role].from_bytes(raw)
    except DeserializationError as cause:
        raise InputError(f"{what} is not TUF metadata: {_root_cause(cause)}") from cause
    if found.signed.type != kind.type:
        raise InputError(f"{what} is {found.signed.type}; expected {kind.type}")
    return found


def is_signed(by: Root | Targets, role: str, metadata: Metadata[Any]) -> bool:
    """Whether enough of the role's keys have signed it."""
    try:
        by.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError):
        return False
    return True


def to_bytes(metadata: Metadata[Any]) -> bytes:
    """The metadata as it is stored."""
    return metadata.to_bytes(JSONSerializer(compact=True))


def _verify(by: Root | Targets, role: str, metadata: Metadata[Any], what: str) -> None:
    try:
        by.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError) as cause:
        raise InputError(f"{what} is not signed by whom it must be: {cause}") from cause


def _verified(
    raw: bytes, kind: type[Role], by: Root | Targets, role: str, what: str
) -> Metadata[Role]:
    found = parsed(raw, kind, what)
    _verify(by, role, found, what)
    return found


def _listed(
    storage: Storage, kind: type[Role], by: Root | Targets, role: str, meta: MetaFile
) -> Metadata[Role]:
    path = versioned(meta.version, role)
    raw = storage.read(path)
    if raw is None:
        raise InputError(f"{storage.url} has no {path}, which its metadata lists")
    try:
        meta.verify_length_and_hashes(raw)
    except RepositoryError as cause:
        raise InputError(f"{path} is not the file that is listed: {cause}") from cause
    found = _verified(raw, kind, by, role, path)
    if found.signed.version != meta.version:
        raise InputError(f"{path} says version {found.signed.version}")
    return found


def _newest(
    storage: Storage, by: Root | Targets, role: str, problems: list[str]
) -> tuple[Metadata[Targets], MetaFile]:
    for version in reversed(versions(storage, role)):
        path = versioned(version, role)
        raw = storage.read(path) or b""
        try:
            found = _verified(raw, Targets, by, role, path)
        except InputError as error:
            problems.append(str(error))
            continue
        if found.signed.version == version:
            return found, MetaFile.from_data(version, raw, ["sha256"])
    raise InputError(f"{storage.url} holds no {role} metadata that its keys signed")


def _rebuilt(storage: Storage, root: Metadata[Root], seen: bytes | None) -> State:
    problems: list[str] = []
    targets, listed = _newest(storage, root.signed, "targets", problems)
    meta = {"targets.json": listed}
    roles = {}
    for name in delegated(targets.signed):
        roles[name], meta[f"{name}.json"] = _newest(
            storage, targets.signed, name, problems
        )
    snapshot = max(versions(storage, "snapshot"), default=0)
    stamp = 0
    if seen is not None:
        try:
            stamp = parsed(seen, Timestamp, TIMESTAMP).signed.version
        except InputError as error:
            problems.append(str(error))
    return State(
        root, targets, roles,
        Metadata(Snapshot(version=max(snapshot, 1), meta=meta)),
        Metadata(Timestamp(version=max(stamp, 1))), seen, problems,
    )  # fmt: skip


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{error!r:.200}"
