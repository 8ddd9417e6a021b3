"""What the link needs of the rest of the agent; the composition root joins them."""

from dataclasses import dataclass
from typing import Any, Protocol

from ..contract.messages import Attempt, Running


@dataclass(frozen=True)
class Description:
    """What a birth says of a device beside its session."""

    agent: str
    """Version of the agent."""
    compatible: tuple[str, ...]
    facts: dict[str, Any]
    slots: dict[str, str | None]


class Device(Protocol):
    """The agent, as the fleet sees it; called on the event loop, must not block."""

    def describe(self) -> Description:
        """Who it is."""

    def standing(self) -> tuple[Running | None, Attempt | None]:
        """What runs, and how the last attempt stands."""

    def desired(self, envelope: bytes) -> None:
        """The fleet's word on what should run, unverified; empty: nothing."""

    def diagnose(self) -> dict[str, Any]:
        """What a person far away would look at first."""

    def log_level(self, level: str) -> None:
        """Log from that level on.

        Raises:
            ValueError: there is no such level.
        """
