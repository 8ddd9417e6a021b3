"""What the updater knows, as one value that is written to disk as JSON.

The rules it keeps:

1. There is a job exactly where the phase is not ``IDLE``.
2. ``committed`` names the slot that was proven; only ``commit`` and the loss of a slot
   change it. ``active`` differs from it only on trial.
3. What a slot holds is recorded after its file is whole, and forgotten before its file
   is touched.
4. Times are seconds of a monotonic clock that starts anew with the process; what is
   loaded from disk is armed again by ``Started``.
"""

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pydantic import ConfigDict, TypeAdapter

from ..contract.codes import Phase
from ..contract.messages import Attempt, Desired, Release

Slot = Literal["a", "b"]
SLOTS: Final[tuple[Slot, Slot]] = ("a", "b")


def other(slot: Slot | None) -> Slot:
    """The slot that is not that one; ``a`` where there is none yet."""
    return "b" if slot == "a" else "a"


@dataclass(frozen=True)
class Held:
    """A bundle that lies in a slot, whole."""

    release: Release
    digest: str
    counter: int
    target: str = ""
    """The kind of device that it is for: counters are per model and target."""


@dataclass(frozen=True)
class Goal:
    """What should run: the director's word and the registry's, which agree."""

    __pydantic_config__ = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    envelope: bytes
    """The director's, as it came; it is judged again before the trial."""
    desired: Desired
    path: str
    """Of the target in the registry."""
    length: int
    """Bytes."""
    urls: tuple[str, ...]
    """Where to get it; the first that works is enough."""
    custom: dict[str, Any] = field(default_factory=dict)
    """What the registry says of it beside its digest."""
    valid_until: float = 0.0
    """Seconds since 1970; later both are asked again before it is activated."""

    @property
    def held(self) -> Held:
        """What a slot holds once it is there."""
        wanted = self.desired
        target = str(self.custom.get("target", ""))
        return Held(wanted.release, wanted.digest, wanted.counter, target)


@dataclass(frozen=True)
class Job:
    """A goal that is being worked for."""

    number: int
    """Of this device; what comes back from work of another job is not heard."""
    goal: Goal
    slot: Slot | None = None
    """Where it is installed; None: not yet decided."""
    probed: bool = False
    starts: int = 0
    """Starts of the agent in this phase that no orderly stop has ended."""
    tries: int = 0
    """Retryable failures so far."""
    retry_at: float | None = None
    deadline: float | None = None
    """Of the phase."""


@dataclass(frozen=True)
class Inbox:
    """The newest word of a director, not yet judged."""

    __pydantic_config__ = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    number: int
    envelope: bytes
    tries: int = 0
    retry_at: float | None = None
    signed: bool = False
    """Whether it waits only for its time, as its signature is good."""
    before: "Inbox | None" = None
    """The signed word that this one displaced; it is back if this one is a lie."""


@dataclass(frozen=True)
class Note:
    """Why the last word of a director was not followed."""

    reason: str
    text: str


@dataclass(frozen=True)
class State:
    """All that must survive."""

    phase: Phase = Phase.IDLE
    job: Job | None = None
    inbox: Inbox | None = None
    a: Held | None = None
    b: Held | None = None
    active: Slot | None = None
    committed: Slot | None = None
    attempt: Attempt | None = None
    """The last one, under way or ended."""
    note: Note | None = None
    count: int = 0
    """Numbers given so far to jobs and words."""

    def slot(self, name: Slot | None) -> Held | None:
        """What a slot holds."""
        return None if name is None else self.a if name == "a" else self.b

    @property
    def fallback(self) -> Slot | None:
        """The slot that still holds what was committed before."""
        if self.committed is None:
            return None
        there = other(self.committed)
        mine = self.job is not None and self.job.slot == there
        return None if mine or self.slot(there) is None else there


_ADAPTER = TypeAdapter(State)


def dump(state: State) -> bytes:
    """The state as JSON."""
    return _ADAPTER.dump_json(state)


def parse(raw: bytes) -> State:
    """The state that :func:`dump` wrote.

    Raises:
        ValueError: it is none.
    """
    return _ADAPTER.validate_json(raw)
