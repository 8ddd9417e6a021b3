"""What the spool holds, how much of it, and in which order it is given up."""

from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

PRIORITIES: Final = {
    "sample": 0,
    "window": 1,
    "drift": 2,
    "event": 3,
    "step": 4,
    "dropped": 5,
}
"""Kinds of records; what has the lowest number is given up first, ``dropped`` never."""
DROPPED: Final = "dropped"
RECORD_COST_BYTES: Final = 48
"""What a record takes beside its body: number, times, kind, place in the tree."""


@dataclass(frozen=True)
class SpoolLimits:
    """How much is kept, and how long."""

    bytes_max: int = 64 << 20
    """Of all records, on the disk."""
    age_s: float = 14 * 86_400.0
    """By the time that the agent ran, not by the clock of the wall."""
    record_bytes_max: int = 64 << 10
    waiting_bytes_max: int = 4 << 20
    """In memory, while the disk is full or slow."""
    group_s: float = 0.05
    """The longest that a record waits for others before its commit begins."""


class Mark(NamedTuple):
    """A place in the stream of records."""

    epoch: str
    seq: int


class Answer(Enum):
    """What became of an acknowledgement."""

    TAKEN = "taken"
    """What it covers is gone from the spool."""
    UNKNOWN = "unknown"
    """Nothing of that epoch is here; it changes nothing."""
    AHEAD = "ahead"
    """The fleet has more of the current epoch than was produced: someone else writes
    under it (a copy of this device). What is pending has another epoch now."""


@dataclass(frozen=True)
class Entry:
    """A record that has no number yet."""

    kind: str
    body: str
    """JSON."""
    at: float
    uptime: float
    """Seconds of the spool's own time, see :class:`.store.Store`."""
    count: int = 1
    """Records that it stands for; more than one only where they were dropped before
    they had numbers."""

    @property
    def cost(self) -> int:
        """Bytes that it is counted as."""
        return len(self.body) + RECORD_COST_BYTES


@dataclass(frozen=True)
class Standing:
    """How full the spool is, and where its current epoch stands."""

    epoch: str
    first: int
    """Number of the oldest pending record of the current epoch; ``next`` if none."""
    next: int
    records: int
    bytes: int
    epochs: int
    """Epochs of which something is pending."""
