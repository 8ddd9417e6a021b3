"""Looking at a whole registry: is everything there, and what it says it is.

The rules it keeps:

1. Every root from the trusted one on, every role, every file: length, digest, and that
   the bundle can be read and is what the metadata says of it.
2. What has expired, or will before it is usually signed again, is a problem.
3. All problems are told, not the first.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from tuf.api.metadata import Metadata, TargetFile

from device_agent.contract.bundle import Bundle, read_bundle
from device_agent.contract.errors import BundleError

from ..errors import InputError
from .metadata import State, load
from .publish import custom, custom_of, stored, target_path
from .storage import Storage

SOON = {
    "root": timedelta(days=30), "targets": timedelta(days=30),
    "snapshot": timedelta(days=3), "timestamp": timedelta(hours=12),
}  # fmt: skip
"""How long before its end a role's metadata is to be signed again."""


@dataclass
class Found:
    """What a registry holds, and what is wrong with it."""

    roles: list[dict[str, Any]] = field(default_factory=list)
    releases: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """As JSON says it."""
        return {
            "roles": self.roles, "releases": self.releases, "problems": self.problems,
        }  # fmt: skip


def verify(storage: Storage, anchor: bytes, now: datetime) -> Found:
    """Read a whole registry, every bundle included.

    Raises:
        InputError: the metadata is not signed by whom it must be, so that nothing can
            be said of the rest.
    """
    found = listing(storage, anchor, now)
    for release in found.releases:
        found.problems += _file_problems(storage, release)
    return found


def listing(storage: Storage, anchor: bytes, now: datetime) -> Found:
    """What a registry's metadata says; bundles are not read.

    Raises:
        InputError: the metadata is not signed by whom it must be.
    """
    state = load(storage, anchor)
    found = Found()
    for name, metadata in _all(state):
        found.roles.append(_role(name, metadata))
        found.problems += _expiry_problems(name, metadata, now)
    for name, role in state.roles.items():
        for file in role.signed.targets.values():
            try:
                found.releases.append(_release(name, file))
            except InputError as error:
                found.problems.append(str(error))
    return found


def _all(state: State) -> Iterator[tuple[str, Metadata[Any]]]:
    yield "root", state.root
    yield "targets", state.targets
    yield from state.roles.items()
    yield "snapshot", state.snapshot
    yield "timestamp", state.timestamp


def _role(name: str, metadata: Metadata[Any]) -> dict[str, Any]:
    return {
        "role": name,
        "version": metadata.signed.version,
        "expires": metadata.signed.expires.isoformat(),
        "signatures": len(metadata.signatures),
    }


def _expiry_problems(
    name: str, metadata: Metadata[Any], now: datetime
) -> Iterator[str]:
    until = metadata.signed.expires
    kept = SOON.get(name, SOON["targets"])
    if until <= now:
        yield f"{name} has expired at {until.isoformat()}: devices take nothing new"
    elif until - kept <= now:
        yield f"{name} expires at {until.isoformat()}: sign it again"


def _release(role: str, file: TargetFile) -> dict[str, Any]:
    said = custom_of(file)
    if file.path.split("/")[0] != said["model"]:
        raise InputError(f"{file.path} says that it is model {said['model']}")
    return {
        "path": file.path, "digest": file.hashes.get("sha256", ""),
        "size_bytes": file.length, "role": role, **said,
    }  # fmt: skip


def _file_problems(storage: Storage, release: dict[str, Any]) -> Iterator[str]:
    where = stored(release["path"], release["digest"])
    raw = storage.read(where)
    if raw is None:
        yield f"{where} is listed and is not there"
        return
    if len(raw) != release["size_bytes"]:
        yield f"{where} has {len(raw)} bytes; {release['size_bytes']} are listed"
        return
    try:
        bundle = read_bundle(raw)
    except BundleError as error:
        yield f"{where}: {error}"
        return
    yield from _differences(bundle, release, where)


def _differences(bundle: Bundle, release: dict[str, Any], where: str) -> Iterator[str]:
    if bundle.sha256 != release["digest"]:
        yield f"{where} has SHA-256 {bundle.sha256}"
    if target_path(bundle.manifest) != release["path"]:
        yield f"{where} is {target_path(bundle.manifest)}"
    said = custom(bundle.manifest, str(release.get("channel", "")))
    for key, value in said.items():
        if key not in ("channel", "agent_min") and release.get(key) != value:
            yield f"{where}: {key} is {value!r}; listed as {release.get(key)!r}"
