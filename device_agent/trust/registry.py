"""The registry's half: TUF metadata, by python-tuf's client.

The rules it keeps:

1. ngclient does the workflow of the specification. It works in a folder that is thrown
   away; what it has verified is read back and kept by the agent.
2. What it lacks is added here: time comes in as an argument, floors hold where all
   local metadata is lost, and one key counts once, whatever ids it is listed under.
3. Whatever goes wrong is an :class:`UpdateError` with a reason of the contract.
4. What was verified before something went wrong is kept, so that a replay of what came
   before is refused even then.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tuf.api import exceptions as tuf
from tuf.api.metadata import Metadata, Root, TargetFile, Targets
from tuf.api.serialization import DeserializationError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from ..contract.codes import Reason
from ..contract.manifest import canonical_json
from ..errors import UpdateError
from .floors import Floors
from .wire import FetchLimits, Seen

ROOT: Final = "root.json"
TOP: Final = ("timestamp", "snapshot", "targets")
ROLE_PREFIX: Final = "model-"
DIRECTOR: Final = "director"
ISSUED: Final = "issued"

_REASONS: tuple[tuple[type[Exception], Reason, str], ...] = (
    (tuf.ExpiredMetadataError, Reason.METADATA_EXPIRED,
     "the registry's metadata has expired: it is held back, or nobody signs it"),
    (tuf.UnsignedMetadataError, Reason.METADATA_SIGNATURE,
     "metadata is not signed by enough of those who may"),
    (tuf.LengthOrHashMismatchError, Reason.METADATA_SIGNATURE,
     "metadata is not the file that was signed for"),
    (tuf.BadVersionNumberError, Reason.METADATA_ROLLBACK,
     "metadata is older than what this device has seen, or than what lists it"),
    (DeserializationError, Reason.METADATA_MALFORMED,
     "metadata cannot be read"),
    (tuf.RepositoryError, Reason.METADATA_MALFORMED,
     "metadata contradicts itself"),
    (tuf.DownloadLengthMismatchError, Reason.METADATA_TOO_LARGE,
     "metadata is larger than allowed"),
    (tuf.SlowRetrievalError, Reason.METADATA_UNREACHABLE,
     "metadata comes too slowly"),
    (tuf.DownloadError, Reason.METADATA_UNREACHABLE,
     "metadata cannot be fetched"),
)  # fmt: skip
"""The first that fits; what it is called to people."""


class Registry:
    """One look at a registry, in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        url: str,
        fetcher: FetcherInterface,
        *,
        root: bytes,
        metadata: Mapping[str, bytes],
        now: float,
        limits: FetchLimits,
    ) -> None:
        """Begin with what is believed already; nothing is fetched yet.

        Args:
            folder: Empty; thrown away afterwards.
            url: Of the registry; ``metadata/`` is below it.
            fetcher: The network.
            root: Trusted.
            metadata: Verified earlier: file name → bytes.
            now: Seconds since 1970, for expiry.
            limits: How much may be fetched.

        Raises:
            UpdateError: the root cannot be used.
        """
        self._folder = folder
        self._known = metadata
        self._sound = True
        for name, raw in metadata.items():
            if name != ROOT:
                (folder / name).write_bytes(raw)
        try:
            self._updater = Updater(
                str(folder),
                url,
                fetcher=fetcher,
                bootstrap=root,
                config=_config(limits),
            )
        except (tuf.RepositoryError, DeserializationError, ValueError) as cause:
            raise UpdateError(
                Reason.TRUST_UNAVAILABLE,
                f"the root that this device trusts cannot be used: {_deepest(cause)}",
            ) from cause
        # ngclient takes the time from the system; here it is judged before
        self._updater._trusted_set.reference_time = datetime.fromtimestamp(now, UTC)

    def refresh(self) -> None:
        """Fetch and verify root, timestamp, snapshot and top-level targets.

        Raises:
            UpdateError: why it cannot be believed.
        """
        with _explained():
            self._updater.refresh()
        delegations = self.targets().signed.delegations
        self._sound = False
        _check_keys(self.root().signed.roles, self.root().signed.keys, "root")
        if delegations is not None:
            _check_keys(delegations.roles or {}, delegations.keys, "targets")
        self._sound = True

    @property
    def updater(self) -> Updater:
        """ngclient's own, for targets that are no releases (``scripts/tuf-client``)."""
        return self._updater

    def find(self, model: str, version: str, digest: str) -> TargetFile:
        """The release of that digest.

        Raises:
            UpdateError: nobody who may has signed for it.
        """
        role = f"{ROLE_PREFIX}{model}"
        with _explained():
            # loads the role; which of its targets is meant, the digest tells
            self._updater.get_targetinfo(f"{model}/{version}/")
        if role not in self._updater._trusted_set:
            raise UpdateError(
                Reason.TARGET_UNKNOWN, f"the registry knows no model {model!r}"
            )
        listed = self._load(role, Targets).signed.targets
        mine = [one for one in listed if one.startswith(f"{model}/{version}/")]
        for path in mine:
            with _explained():
                found = self._updater.get_targetinfo(path)
            if found is not None and found.hashes.get("sha256") == digest:
                return found
        if mine:
            raise UpdateError(
                Reason.TARGET_MISMATCH,
                f"the registry lists {model} {version}, but not with SHA-256 "
                f"{digest[:16]}…, which the director wants",
                {"listed": sorted(mine)[:8]},
            )
        raise UpdateError(
            Reason.TARGET_UNKNOWN, f"the registry lists no {model} {version}"
        )

    def root(self) -> Metadata[Root]:
        """The newest root that is believed."""
        return self._load("root", Root)

    def targets(self) -> Metadata[Targets]:
        """The top-level targets, after :meth:`refresh`."""
        return self._load("targets", Targets)

    def director(self) -> dict[str, Any]:
        """The director's keys as the registry names them; empty: it names none."""
        if not (self._folder / "targets.json").exists():
            return {}
        named = self.targets().signed.unrecognized_fields.get(DIRECTOR, {})
        return dict(named) if isinstance(named, dict) else {}

    def valid_until(self, model: str) -> float:
        """When the first of the metadata behind a release expires."""
        names = ("root", *TOP, f"{ROLE_PREFIX}{model}")
        return min(float(self._value(name)["signed_expires"]) for name in names)

    def seen(self, floors: Floors) -> Seen | None:
        """What was verified, to be kept; None: its keys are not what they seem.

        Raises:
            UpdateError: it is below the floors.
        """
        if not self._sound:
            return None
        root = self.root()
        online = _online(root.signed)
        if root.signed.version < floors.root:
            raise _undercut("root", root.signed.version, floors.root)
        metadata = {ROOT: (self._folder / ROOT).read_bytes()}
        versions = {}
        for path in sorted(self._folder.glob("*.json")):
            role = path.stem
            if role == "root" or not self._is_current(role, root.signed):
                if role not in ("root", *TOP) and path.name in self._known:
                    metadata[path.name] = self._known[path.name]  # not asked for now
                continue
            version = int(self._value(role)["version"])
            if version < floors.version(role, online):
                raise _undercut(role, version, floors.version(role, online))
            versions[role] = version
            metadata[path.name] = path.read_bytes()
        return Seen(root.signed.version, online, versions, metadata, self._clock())

    def _clock(self) -> float:
        """It is at least that late; metadata that is all good says so."""
        trusted = self._updater._trusted_set
        if "targets" not in trusted:
            return 0.0
        reference: float = trusted.reference_time.timestamp()
        # a stolen online key shall not move our clock: only what people at a table sign
        issued = (float(self._value(role)["issued"]) for role in ("root", "targets"))
        return max(reference, *issued)

    def _is_current(self, role: str, root: Root) -> bool:
        """Whether a file is verified by these keys, not a leftover of former ones."""
        if role not in TOP:
            return role in self._updater._trusted_set
        try:
            metadata = Metadata[Any].from_file(str(self._folder / f"{role}.json"))
            root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        except (tuf.RepositoryError, DeserializationError):
            return False
        return True

    def _load(self, role: str, kind: Any) -> Metadata[Any]:
        return Metadata[kind].from_file(str(self._folder / f"{role}.json"))

    def _value(self, role: str) -> dict[str, Any]:
        signed = self._load(role, Any).signed
        issued = signed.unrecognized_fields.get(ISSUED, 0)
        return {
            "version": signed.version,
            "signed_expires": signed.expires.timestamp(),
            "issued": float(issued) if isinstance(issued, int) else 0.0,
        }


@contextmanager
def working_folder() -> Iterator[Path]:
    """A folder for one look, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="edgeml-trust-") as folder:
        yield Path(folder)


def fingerprint(keys: Mapping[str, Any]) -> str:
    """Of a set of keys: the same for the same keys."""
    return hashlib.sha256(canonical_json(dict(keys))).hexdigest()


def _online(root: Root) -> str:
    roles = {name: root.roles[name] for name in ("snapshot", "timestamp")}
    return fingerprint(
        {
            name: {
                "threshold": role.threshold,
                "keys": sorted(
                    json.dumps(root.keys[one].to_dict())
                    for one in role.keyids
                    if one in root.keys
                ),
            }
            for name, role in roles.items()
        }
    )


def _check_keys(roles: Mapping[str, Any], keys: Mapping[str, Any], what: str) -> None:
    """A key that is listed under two ids would sign twice."""
    for name, role in roles.items():
        halves = {
            json.dumps(keys[one].keyval, sort_keys=True)
            for one in role.keyids
            if one in keys
        }
        if len(halves) < role.threshold:
            raise UpdateError(
                Reason.METADATA_SIGNATURE,
                f"{what} gives {name} {len(role.keyids)} key ids but {len(halves)} "
                f"keys; {role.threshold} have to sign",
            )


def _undercut(role: str, found: int, floor: int) -> UpdateError:
    return UpdateError(
        Reason.METADATA_ROLLBACK,
        f"{role} has version {found}; this device has seen {floor}: somebody shows it "
        "an older state",
        {"role": role, "found": found, "floor": floor},
    )


def _config(limits: FetchLimits) -> UpdaterConfig:
    return UpdaterConfig(
        max_root_rotations=limits.rotations,
        max_delegations=limits.delegations,
        root_max_length=limits.root_bytes,
        timestamp_max_length=limits.timestamp_bytes,
        snapshot_max_length=limits.snapshot_bytes,
        targets_max_length=limits.targets_bytes,
    )


@contextmanager
def _explained() -> Iterator[None]:
    """Whatever the client raises becomes a reason of the contract."""
    try:
        yield
    except UpdateError:
        raise
    except (
        tuf.RepositoryError, tuf.DownloadError, DeserializationError, ValueError,
        TypeError, KeyError,
    ) as cause:  # fmt: skip
        for kind, reason, text in _REASONS:
            if isinstance(cause, kind):
                raise UpdateError(reason, f"{text}: {_deepest(cause)}") from cause
        raise UpdateError(
            Reason.METADATA_MALFORMED, f"metadata cannot be read: {_deepest(cause)}"
        ) from cause


def _deepest(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{error}".split())[:300] or type(error).__name__
