"""An event loop on which waiting takes no time.

Whenever nothing is left to do but wait, the loop's clock jumps to the next timer. For
programs without threads: what another thread is doing would look like waiting.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from faultflows import FAILURES

T = TypeVar("T")


class _Jumping(selectors.DefaultSelector):
    """Does not wait, but says how long it would have."""

    skipped_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is not None and timeout > 0:
            self.skipped_s += timeout
        return super().select(0)


class Warped(asyncio.SelectorEventLoop):
    """Its time is the monotonic clock's and what was skipped."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return super().time() + self._jumping.skipped_s


class Inline:
    """A thread (``updating.ports.Thread``) that is none: it works when it is asked."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, work: Callable[[], T]) -> "asyncio.Future[T]":
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        try:
            done.set_result(work())
        except FAILURES as error:
            done.set_exception(error)
        return done

    def close(self) -> None:
        """Nothing to end."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a program to its end."""
    with asyncio.Runner(loop_factory=Warped) as runner:
        return runner.run(work)
