"""One timer for the deadlines of all requests of a model.

A timer of its own costs a request 2 µs, a tenth of its way through the lane, and hardly
any is ever needed. This one is set for the earliest deadline that it knows of, and
looks at all that wait when it goes off.
"""

import asyncio
import time
from collections.abc import Callable

from .batching import Request

_LOOK_NS = 1_000_000
"""Between two looks at least: a loop's clock may stand still while it works."""


class Deadlines:
    """Requests by their ``deadline_ns``, on one event loop."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, expire: Callable[[Request], None]
    ) -> None:
        self._loop = loop
        self._expire = expire
        self._open: dict[Request, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0.0

    def add(self, request: Request) -> None:
        """Watch a request until it is removed; ``expire`` may set a new deadline."""
        self._open[request] = None
        if self._timer is None or request.deadline_ns < self._timer_ns:
            self._set(request.deadline_ns)

    def remove(self, request: Request) -> None:
        """Watch it no longer."""
        del self._open[request]

    def _set(self, at_ns: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_ns = at_ns
        delay_s = max(0.0, (at_ns - time.perf_counter_ns()) / 1e9)
        self._timer = self._loop.call_later(delay_s, self._look)

    def _look(self) -> None:
        self._timer = None
        now_ns = time.perf_counter_ns()
        for request in self._open:
            if request.deadline_ns <= now_ns:
                self._expire(request)
        if self._open:
            earliest_ns = min(request.deadline_ns for request in self._open)
            self._set(max(earliest_ns, now_ns + _LOOK_NS))
