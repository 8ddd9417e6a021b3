"""What the updater needs of others; the composition root joins them.

Everything that is not ``async`` blocks and is called in a thread of the updater's own,
one call at a time. What goes wrong leaves as :class:`~device_agent.errors.UpdateError`
or :class:`~device_agent.errors.StorageError`, and as nothing else.
"""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..contract.messages import Attempt, Running
from .events import Evidence
from .facts import Goal, Held

T = TypeVar("T")


class Thread(Protocol):
    """Does what blocks, one call after another; owned by the event loop.

    The process does not wait for it when it ends: what it does may be interrupted at
    any point anyway, by a power cut.
    """

    def run(self, work: Callable[[], T]) -> "asyncio.Future[T]":
        """Do it after what was asked for before; its result comes with the future."""

    def close(self) -> None:
        """End the thread after what it was asked for."""


class Trust(Protocol):
    """Says whether director and registry agree."""

    def authorize(self, envelope: bytes) -> Goal:
        """What the envelope asks for, if both vouch for it now.

        Raises:
            UpdateError: they do not, or cannot be asked; ``desired`` says what the
                director wants where its signature is good.
        """

    def confirm(self, goal: Goal) -> None:
        """Whether they still vouch for it; asked right before the trial.

        Raises:
            UpdateError: they do not, or cannot be asked where that is needed.
        """

    def committed(self, held: Held) -> None:
        """Older releases of that model are refused from now on; again is harmless."""


class Fetch(Protocol):
    """Gets a bundle's file."""

    def fetch(self, goal: Goal, path: Path, stop: threading.Event) -> None:
        """The whole file at ``path``, synced; what is there already is gone on with.

        Args:
            goal: which digest, how many bytes, from where.
            path: where it grows.
            stop: set when nobody wants it any more; it then ends soon.

        Raises:
            UpdateError: it cannot be had; what came so far is kept where that helps.
        """


@dataclass(frozen=True)
class Vitals:
    """How the candidate is, counted since it was activated."""

    inferences: int
    """Answered, those of the gate not counted."""
    failures: int
    hung: int
    """Calls that have not come back."""
    breaker_open: bool
    rss_bytes: int
    """Of the whole agent."""
    run_ms: float | None
    """Mean of its runs; None: too few."""
    run_limit_ms: float | None
    """What it may be at most; None: not held against it here."""


class Models(Protocol):
    """What is served; all but ``probe`` on the event loop."""

    def probe(self, held: Held, path: Path, stop: threading.Event) -> Evidence:
        """Try the bundle in the sandbox; blocks.

        Raises:
            UpdateError: it is not taken.
        """

    async def serve(self, held: Held, path: Path) -> None:
        """Serve what is committed.

        Raises:
            UpdateError: ``STORAGE`` where the file is not that bundle any more.
        """

    async def activate(self, held: Held, path: Path) -> None:
        """Serve the candidate, keep what was served.

        Raises:
            UpdateError: it is not taken; what was served is.
        """

    async def commit(self) -> None:
        """The candidate stays, what was kept leaves; again is harmless."""

    async def rollback(self) -> None:
        """The candidate leaves, what was kept is served; again is harmless."""

    async def recheck(self) -> bool:
        """Ask the candidate some of its golden vectors; whether it could be asked.

        Raises:
            UpdateError: it is wrong, or has failed.
        """

    def vitals(self) -> Vitals | None:
        """How the candidate is; None: it is not served."""

    @property
    def running(self) -> Held | None:
        """What answers requests of what the updater has given to serve."""


class Outlet(Protocol):
    """Where the fleet hears of it."""

    def step(self, number: int, body: dict[str, Any], at: float) -> None:
        """Keep a record of kind ``step`` until the fleet has it; blocks until it is
        durable. ``number`` is in the body: the same one may come again.

        Raises:
            StorageError: it is not kept.
        """

    def report(self, running: Running | None, attempt: Attempt | None) -> None:
        """Say what runs and how the last attempt stands; must not block."""
