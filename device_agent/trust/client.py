"""The agent's side of trust: asks a process that verifies, keeps what it has learned.

The rules it keeps:

1. Neither TUF nor cryptography is loaded here; a process does that, and ends.
2. What was verified is kept before anybody acts on it, also where the answer is no.
3. The floor of releases is raised when one is committed, not when it is fetched; the
   director's serial when its word is accepted; versions when they are verified.
4. A process that dies or hangs is a refusal that may be gone at the next attempt.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from ..contract.codes import Reason
from ..contract.messages import DESIRED_BYTES_MAX, Desired, read
from ..durable import REAL, Disk, told
from ..errors import UpdateError
from . import clock
from .floors import Floors
from .store import Store
from .wire import Answer, Facts, FetchLimits, Question

ROOT: Final = "root.json"
EXTRA_S: Final = 15.0
"""What the process may take beyond what it fetches."""
Ask = Callable[[bytes, float], bytes]
"""A question, and seconds; the answer."""
_HOME: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class TrustConfig:
    """Whom this device believes, and what it is."""

    root: Path
    """The root of its enrolment (``root.json``)."""
    director: Path
    """The director's keys of its enrolment (``director.json``)."""
    urls: tuple[str, ...]
    facts: Facts
    limits: FetchLimits = field(default_factory=FetchLimits)
    ca: Path | None = None
    enrolled: float = 0.0
    """When, in seconds since 1970."""
    built: float = clock.BUILT


@dataclass(frozen=True)
class Authorized:
    """Director and registry agree: this may be fetched and tried."""

    desired: Desired
    path: str
    """Of the target in the registry."""
    length: int
    """Bytes."""
    urls: tuple[str, ...]
    custom: dict[str, Any]
    """What the registry says of it."""
    versions: Mapping[str, int]
    """Of the metadata that says so."""
    valid_until: float
    """Seconds since 1970: ask again before it is activated later than this."""


class TrustClient:
    """Judges envelopes; one question at a time."""

    def __init__(
        self,
        config: TrustConfig,
        state: Path,
        floor_dir: Path,
        disk: Disk = REAL,
        ask: Ask | None = None,
    ) -> None:
        """Open what is known.

        Args:
            config: Whom to believe.
            state: The state directory.
            floor_dir: Another folder, for the second place of the floors.
            disk: The seam for durable effects.
            ask: Answers questions; None: a process of its own.

        Raises:
            StorageError: the disk failed.
        """
        self._config = config
        self._store = Store(state, floor_dir, disk, _digest(config.root))
        self._ask = ask or asked

    @property
    def floors(self) -> Floors:
        """What this device goes below never again."""
        return self._store.floors

    @property
    def notes(self) -> tuple[str, ...]:
        """What was lost or damaged when this was opened."""
        return tuple(self._store.notes)

    def close(self) -> None:
        """Give the store back."""
        self._store.close()

    def now(self, wall: float) -> float:
        """The time to judge expiry by: never before what is known to have been.

        Raises:
            UpdateError: the clock cannot be right.
        """
        config = self._config
        return clock.at_least(
            wall, max(config.built, config.enrolled, self.floors.clock)
        )

    def authorize(self, envelope: bytes, now: float) -> Authorized:
        """What an envelope wants, if it may be run here. Takes seconds; blocks.

        Args:
            envelope: DSSE, of a ``Desired``.
            now: What this device's clock says, in seconds since 1970.

        Raises:
            UpdateError: it may not, and why.
            StorageError: the disk failed; nothing was decided.
        """
        question = self._question(envelope, now)
        budget = question.limits.total_s + EXTRA_S
        answer = Answer.read(self._ask(question.write(), budget))
        wanted = None
        if answer.payload is not None and answer.director:
            wanted = _desired(answer.payload)
        self._keep(answer, wanted)
        if answer.refusal is not None:
            said = answer.refusal
            raise UpdateError(
                Reason(said.reason), said.text, said.evidence, desired=wanted
            )
        if answer.goal is None or wanted is None or answer.seen is None:
            raise UpdateError(
                Reason.TRUST_FAILED, "the verifying process answered neither yes nor no"
            )
        goal = answer.goal
        return Authorized(
            wanted, goal.path, goal.length, goal.urls, goal.custom,
            answer.seen.versions, goal.valid_until,
        )  # fmt: skip

    def still(self, authorized: Authorized, now: float) -> None:
        """Whether what was allowed is not too old to be activated now.

        Raises:
            UpdateError: it is; or the clock cannot be right.
        """
        if self.now(now) >= authorized.valid_until:
            late = self.now(now) >= authorized.desired.not_after.timestamp()
            raise UpdateError(
                Reason.DESIRED_EXPIRED if late else Reason.METADATA_EXPIRED,
                "what allowed this has expired meanwhile; it is asked for again",
                desired=authorized.desired,
            )

    def committed(self, authorized: Authorized) -> None:
        """Raise the floor of releases: nothing below this is taken any more.

        Raises:
            StorageError: the disk failed.
        """
        wanted = authorized.desired
        target = str(authorized.custom["target"])
        self.raised(wanted.release.model, target, wanted.counter, wanted.digest)

    def raised(self, model: str, target: str, counter: int, digest: str) -> None:
        """The same, said of a release that was committed before; again is harmless.

        Raises:
            StorageError: the disk failed.
        """
        floors = self.floors.committed(f"{model}/{target}", counter, digest)
        if floors != self.floors:
            self._store.save(floors)

    def _question(self, envelope: bytes, now: float) -> Question:
        config = self._config
        metadata = self._store.metadata()
        root = metadata.pop(ROOT, None)
        return Question(
            envelope=envelope[: DESIRED_BYTES_MAX + 1], now=self.now(now),
            root=root or _file(config.root), director=_keys(config.director),
            metadata=metadata, floors=self._store.basis, urls=config.urls,
            facts=config.facts, limits=config.limits,
            ca=None if config.ca is None else str(config.ca),
        )  # fmt: skip

    def _keep(self, answer: Answer, wanted: Desired | None) -> None:
        floors, seen = self.floors, answer.seen
        if seen is not None:
            floors = self._store.basis.seen(seen.root, seen.online, seen.versions)
            floors = replace(floors, clock=max(floors.clock, seen.clock))
        if answer.goal is not None and wanted is not None:
            floors = floors.heard(answer.director, wanted.serial)
        self._store.save(floors, None if seen is None else seen.metadata)


def asked(question: bytes, seconds: float) -> bytes:
    """The answer of a process of its own.

    Raises:
        UpdateError: it ended without one, or not in time.
    """
    start = (
        "import sys; sys.path.insert(0, sys.argv[1]); import device_agent; "
        "sys.path.pop(0); from device_agent.trust.__main__ import main; "
        "sys.exit(main())"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", start, str(_HOME)],
            input=question, capture_output=True, timeout=seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as cause:
        raise UpdateError(
            Reason.TRUST_FAILED, f"verification took longer than {seconds:.0f} s"
        ) from cause
    except OSError as cause:
        raise UpdateError(
            Reason.TRUST_FAILED, f"verification cannot be started: {cause}"
        ) from cause
    if done.returncode != 0 or not done.stdout:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise UpdateError(
            Reason.TRUST_FAILED,
            f"verification ended with code {done.returncode}: {''.join(last)[:300]}",
        )
    return done.stdout


def _desired(payload: bytes) -> Desired | None:
    from ..contract.errors import MessageError

    try:
        return read(payload, Desired, DESIRED_BYTES_MAX)
    except MessageError:
        return None


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None  # said when it is needed


def _file(path: Path) -> bytes:
    with told(f"read {path}"):
        try:
            return path.read_bytes()
        except FileNotFoundError as cause:
            raise UpdateError(
                Reason.TRUST_UNAVAILABLE,
                f"there is no trusted root {path}; enroll this device again",
            ) from cause


def _keys(path: Path) -> dict[str, Any]:
    with told(f"read {path}"):
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return {}  # the registry may name them
    try:
        value = json.loads(raw)
    except ValueError as cause:
        raise UpdateError(
            Reason.TRUST_UNAVAILABLE, f"{path} cannot be read: {cause}"
        ) from cause
    keys = value.get("keys", value) if isinstance(value, dict) else None
    if not isinstance(keys, dict):
        raise UpdateError(
            Reason.TRUST_UNAVAILABLE, f"{path}: expected keys by id, found no object"
        )
    return keys
