"""A lane: one thread that runs inferences, first in, first out.

Inference on the event loop starves the other connections; a thread pool lets late
requests overtake early ones. One FIFO thread keeps the order, and the loop free: p99
at 32 callers is 61 ms instead of 470 (docs/serving.md).

The rules it keeps:

1. One thread takes jobs from the queue at any time. Whoever first takes a job's
   ``verdict`` says how it ended: its thread, which then goes on; or the loop, which
   gives the job up and starts another thread, and the old one ends once it can.
2. The loop hears of every job that came back, given up or not, exactly once.
"""

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Generic, TypeVar

from ..errors import InferenceError

T = TypeVar("T")

LOST_MAX = 3
"""Threads that never came back; with so many the process should be replaced."""
_LOST_HANGS = 4
"""A call that has hung for this many times ``hang_s`` does not come back."""


class Job(ABC):
    """Work for a lane."""

    __slots__ = ("expected_ns", "started_ns", "verdict")

    def __init__(self) -> None:
        self.started_ns = 0
        self.expected_ns = 0
        """What it will take, known when it has started; see :meth:`Lane.wait_ns`."""
        self.verdict = threading.Lock()

    @property
    def label(self) -> str:
        """Whose work it is, for messages."""
        return "a call"

    @abstractmethod
    def work(self) -> None:
        """In the lane's thread: the work itself."""

    @abstractmethod
    def over(self, error: BaseException | None) -> None:
        """On the loop: ``work`` has returned, or has raised ``error``."""

    @abstractmethod
    def given_up(self, error: Exception) -> None:
        """On the loop: ``work`` hangs, nobody waits for it; ``over`` may come yet."""


class _Call(Job, Generic[T]):
    """A plain call; skipped when its future is cancelled before it starts."""

    __slots__ = ("_call", "_done", "_result")

    def __init__(self, call: Callable[[], T], done: "asyncio.Future[T]") -> None:
        super().__init__()
        self._call = call
        self._done = done
        self._result: list[T] = []

    def work(self) -> None:
        if not self._done.cancelled():
            self._result.append(self._call())

    def over(self, error: BaseException | None) -> None:
        if self._done.done():
            return
        if error is not None:
            self._done.set_exception(error)
        else:
            self._done.set_result(self._result[0])

    def given_up(self, error: Exception) -> None:
        self.over(error)


class Lane:
    """One inference thread, owned by the event loop that made it."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.get_running_loop()
        self.pending = 0
        """Jobs handed in and neither back nor given up."""
        self.pending_ns = 0
        """How long they are expected to take; kept by those who hand them in."""
        self.abandoned = 0
        """Jobs given up so far because they did not end."""
        self._lost: list[Job] = []
        self._name = name
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._current: Job | None = None
        self._start()

    @property
    def lost(self) -> int:
        """Threads that were given up and have not come back."""
        return len(self._lost)

    def put(self, job: Job) -> None:
        """Hand in a job."""
        self.pending += 1
        self._jobs.put(job)

    def run(self, work: Callable[[], T]) -> "asyncio.Future[T]":
        """Hand in a call; its result or exception comes with the future."""
        done: asyncio.Future[T] = self.loop.create_future()
        self.put(_Call(work, done))
        return done

    def wait_ns(self) -> int:
        """How long a job handed in now is expected to wait.

        A job that runs for longer than expected is taken to need as much again: so a
        lane that is stuck does not look free.
        """
        job = self._current
        if job is None:
            return self.pending_ns
        left_ns = job.expected_ns - (time.perf_counter_ns() - job.started_ns)
        return max(0, self.pending_ns - job.expected_ns) + abs(left_ns)

    def stuck_s(self) -> float:
        """How long the running job has been running, 0 when none is."""
        job = self._current
        return (time.perf_counter_ns() - job.started_ns) / 1e9 if job else 0.0

    def lost_s(self) -> float:
        """How long the oldest job given up has been running, 0 when none is lost."""
        now = time.perf_counter_ns()
        return max(((now - job.started_ns) / 1e9 for job in self._lost), default=0.0)

    def watch(self, hang_s: float) -> str | None:
        """Give up the running job when it hangs; to be called every second or so.

        Returns:
            What was given up and why, for the log; None: all is well.
        """
        job = self._current
        if job is None or self.stuck_s() <= hang_s:
            return None
        error = InferenceError(
            f"{job.label}: the runtime did not come back within {hang_s:g} s"
        )
        return str(error) if self.abandon(error) else None

    def abandon(self, error: Exception) -> bool:
        """Give up the running job: it fails with ``error``, a new thread goes on.

        The old thread cannot be ended; when its call does return, it ends itself.

        Returns:
            Whether there was a job to give up.
        """
        job = self._current
        if job is None or not job.verdict.acquire(blocking=False):
            return False
        self._current = None
        self._lost.append(job)
        self.abandoned += 1
        self.pending -= 1
        job.given_up(error)  # before the next one starts: it may be of the same model
        self._start()
        return True

    def close(self) -> None:
        """End the thread after what was handed in."""
        self._jobs.put(None)

    def _start(self) -> None:
        threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.started_ns = time.perf_counter_ns()
            self._current = job
            failure: BaseException | None = None
            try:
                job.work()
            except StopIteration as error:  # no future takes one
                failure = RuntimeError(f"{job.label} raised {error!r}")
            except BaseException as error:
                failure = error  # goes to whoever waits for the job
            kept = job.verdict.acquire(blocking=False)
            if kept:
                self._current = None
            try:
                self.loop.call_soon_threadsafe(self._over, job, failure, kept)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return
            del job, failure  # and what they hold: feeds, outputs, a traceback
            if not kept:  # another thread has taken over
                return

    def _over(self, job: Job, error: BaseException | None, kept: bool) -> None:
        if kept:
            self.pending -= 1
        else:
            self._lost.remove(job)
        job.over(error)


def beyond_help(lanes: Iterable[Lane], hang_s: float) -> str | None:
    """Why this process should end and be started anew by its supervisor, if it should.

    A thread that hangs in a runtime cannot be ended, and its model cannot be asked
    while it does: a few of them, or one for long, is what only a restart heals.
    """
    lanes = tuple(lanes)
    lost = sum(lane.lost for lane in lanes)
    longest_s = max((lane.lost_s() for lane in lanes), default=0.0)
    if lost >= LOST_MAX:
        return f"{lost} inference threads hang in their runtimes"
    if longest_s > _LOST_HANGS * hang_s:
        return f"an inference has been hanging for {longest_s:.0f} s"
    return None
