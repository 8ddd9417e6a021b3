"""What the API tells of the agent itself."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ..serving.lane import Lane


class Connections(Protocol):
    """How many there are and were; the network layer counts them."""

    open: int
    """Served now."""
    reserved: int
    """Open now, for health and metrics only."""
    accepted: int
    evicted: Counter[str]
    """Closed without an answer, by reason."""
    refused: Counter[str]
    """Answered with an error before the application saw them, by reason."""


@dataclass(frozen=True)
class About:
    """The agent, as its metrics and its metadata show it."""

    version: str
    started: float
    """Seconds of the monotonic clock."""
    started_wall: float
    """Seconds since 1970."""
    connections: Connections
    lanes: tuple[Lane, ...]
    device: Callable[[], dict[str, Any]]
    """The device in its fleet: slots, attempt, floors, spool, link; may block."""


def alone() -> dict[str, Any]:
    """What a device says that no fleet has ever given anything."""
    return {"enrolled": False}
