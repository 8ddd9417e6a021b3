"""Circuit breaker: stop asking a model that only fails, and try it again later.

::

    CLOSED → (k failures in a row, a hang) → OPEN → (open_s) → HALF_OPEN → CLOSED | OPEN

The rules it keeps:

1. Pure: time comes in as an argument (seconds of a monotonic clock).
2. Half open lets one request through at a time, the probe. One that never reports
   back blocks the next for ``open_s`` and no longer.
3. What was asked before it opened may still report: while it is open that changes
   nothing, half open it is as good a witness as the probe.
"""

import math
from enum import Enum
from typing import NamedTuple


class State(Enum):
    """Who is let through."""

    CLOSED = "closed"
    """Everybody."""
    OPEN = "open"
    """Nobody."""
    HALF_OPEN = "half-open"
    """One at a time."""


class Event(Enum):
    """What can happen."""

    SUCCESS = "a request was answered"
    FAILURE = "a request failed, not yet k in a row"
    LIMIT = "a request failed, the k-th in a row or a later one"
    HANG = "a request was given up"
    EARLY = "a request asks, open_s have not passed since the clock was started"
    DUE = "a request asks, open_s have passed"


class Step(NamedTuple):
    """What follows of an event."""

    state: State
    clock: bool = False
    """Whether the clock of ``open_s`` is started anew."""
    allow: bool = False
    """Whether the request that asks is let through."""


_CLOSED, _OPEN, _HALF = State.CLOSED, State.OPEN, State.HALF_OPEN
TABLE: dict[tuple[State, Event], Step] = {
    # state    event                 next      clock  allow
    (_CLOSED, Event.SUCCESS): Step(_CLOSED, False, False),
    (_CLOSED, Event.FAILURE): Step(_CLOSED, False, False),
    (_CLOSED, Event.LIMIT):   Step(_OPEN,   True,  False),
    (_CLOSED, Event.HANG):    Step(_OPEN,   True,  False),
    (_CLOSED, Event.EARLY):   Step(_CLOSED, False, True),
    (_CLOSED, Event.DUE):     Step(_CLOSED, False, True),

    (_OPEN,   Event.SUCCESS): Step(_OPEN,   False, False),
    (_OPEN,   Event.FAILURE): Step(_OPEN,   False, False),
    (_OPEN,   Event.LIMIT):   Step(_OPEN,   False, False),
    (_OPEN,   Event.HANG):    Step(_OPEN,   True,  False),
    (_OPEN,   Event.EARLY):   Step(_OPEN,   False, False),
    (_OPEN,   Event.DUE):     Step(_HALF,   True,  True),

    (_HALF,   Event.SUCCESS): Step(_CLOSED, False, False),
    (_HALF,   Event.FAILURE): Step(_OPEN,   True,  False),
    (_HALF,   Event.LIMIT):   Step(_OPEN,   True,  False),
    (_HALF,   Event.HANG):    Step(_OPEN,   True,  False),
    (_HALF,   Event.EARLY):   Step(_HALF,   False, False),
    (_HALF,   Event.DUE):     Step(_HALF,   True,  True),
}  # fmt: skip


class Breaker:
    """The breaker of one model: a place in ``TABLE``, a count and a clock."""

    closed: bool
    """True in the usual case: ask without further thought (read on the hot path)."""
    streak: int
    """Failures since the last success, 0 in the usual case: only while it is not does
    a success have to be reported (read on the hot path)."""

    def __init__(self, failures: int, open_s: float) -> None:
        self.state = State.CLOSED
        self.closed = True
        self.streak = 0
        self._limit = failures
        self._open_s = open_s
        self._clock = -math.inf

    def allow(self, now: float) -> bool:
        """Whether a request may go through; half open lets one through at a time."""
        due = now - self._clock >= self._open_s
        return self._step(Event.DUE if due else Event.EARLY, now).allow

    def success(self) -> None:
        """A request was answered."""
        self._step(Event.SUCCESS, self._clock)
        if self.closed:
            self.streak = 0

    def failure(self, now: float) -> None:
        """A request failed in the runtime."""
        self.streak += 1
        limit = self.streak >= self._limit
        self._step(Event.LIMIT if limit else Event.FAILURE, now)

    def hang(self, now: float) -> None:
        """A request was given up because the runtime did not come back."""
        self.streak += 1
        self._step(Event.HANG, now)

    def retry_after_s(self, now: float) -> int:
        """Whole seconds until the next request is let through, at least 1."""
        if self.closed:
            return 1
        return max(1, math.ceil(self._clock + self._open_s - now))

    def _step(self, event: Event, now: float) -> Step:
        step = TABLE[self.state, event]
        if step.clock:
            self._clock = now
        self.state = step.state
        self.closed = step.state is State.CLOSED
        return step
