"""One version of a model in memory, and all that stands before its session.

1. Who is let in: a bounded queue, and only what can be answered within its deadline.
2. Where it runs: fast models on the event loop, all others, and those on trial, in
   the lane, in order.
3. Sessions are asked by one thread at a time: inline only while the lane holds nothing
   of this model, and nobody while a call that was given up has not come back.
4. Between :meth:`Served.held` and its end the session is not closed, nor while it runs,
   whether its caller still waits or not.
5. What is counted is counted once, when the turn is over: a caller that leaves changes
   neither what is pending nor what the breaker hears.
"""

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from ..config import ModelConfig
from ..contract.errors import ArtifactError
from ..contract.tensors import Array, Feeds
from ..errors import DeadlineError, InferenceError, OverloadError, UnavailableError
from .batching import Batcher, Request
from .breaker import Breaker
from .deadlines import Deadlines
from .forecast import Forecast
from .lane import Lane
from .loading import Loaded
from .signature import Signature
from .statistics import Statistics
from .turn import Turn

State = Literal["ready", "draining", "closed"]
_DEADLINE_RUNS = 3
"""A model slower than its deadline is still asked: at least this many runs fit in."""
_OVERRUN = 10
"""A run that began within the configured deadline is waited for this many deadlines:
some inputs take longer than others. A caller's own deadline is kept to the letter."""
_MARGIN = 1.25
"""Waiting is taken to last this much longer than expected: who is let in should not
wait in vain."""


class Served:
    """A loaded version; made and asked on the event loop only."""

    def __init__(self, loaded: Loaded, lane: Lane, config: ModelConfig) -> None:
        self.loaded = loaded
        self.manifest = loaded.manifest
        self.name = loaded.manifest.name
        self.version = loaded.manifest.version
        self.label = f"{self.name} {self.version}"
        self.inputs = loaded.session.inputs
        self.outputs = loaded.session.outputs
        self.config = config
        self.statistics = Statistics()
        self.breaker = Breaker(config.breaker_failures, config.breaker_open_s)
        self.state: State = "ready"
        self.batches = all(
            spec.shape and spec.shape[0] == -1 for spec in (*self.inputs, *self.outputs)
        )
        """Whether the first dimension is a variable batch."""
        self.signature = Signature(
            self.inputs, self.outputs, self.batches, config.max_rows
        )
        self.waiting = 0
        """Requests in the lane or on their way to it, the running ones included."""
        self.hung = 0
        """Calls of the session that were given up and have not come back."""
        self._forecast = Forecast(loaded.latency_ns)
        self._deadlines = Deadlines(lane.loop, self._expire)
        self._lane = lane
        self._inline_ns = config.inline_us * 1000
        self._users = 0
        self._idle = asyncio.Event()
        self._batcher = (
            Batcher(self._dispatch, config.max_batch, config.max_delay_ms / 1000)
            if self.batches and config.max_batch > 1
            else None
        )

    @property
    def expected_ns(self) -> float:
        """What a run of one row takes, smoothed over the latest runs."""
        return self._forecast.row_ns

    def allow_inline(self, allowed: bool) -> None:
        """Whether it may run on the event loop where it is fast enough.

        One on trial may not: a call that hangs there stops everybody, and nobody is
        left to roll it back.
        """
        self._inline_ns = self.config.inline_us * 1000 if allowed else -1.0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the session open for a while.

        Raises:
            UnavailableError: the version is on its way out.
        """
        self._check_ready()
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            self._check_idle()

    async def infer(
        self, feeds: Feeds, rows: int = 1, timeout_s: float | None = None
    ) -> dict[str, Array]:
        """The outputs for feeds that fit ``inputs``.

        Args:
            feeds: every input, of the datatype and shape that ``inputs`` declare.
            rows: first dimension where the batch is variable, else 1.
            timeout_s: the caller's deadline; it can only shorten the configured one.

        Raises:
            OverloadError: it cannot be answered in time; nothing was started.
            DeadlineError: its deadline passed before it was answered.
            InferenceError: the runtime failed or hangs.
            UnavailableError: the version is on its way out, or a call hangs in it.
        """
        if self.state != "ready":
            self._check_ready()
        forecast = self._forecast
        if self.waiting or self._inline_ns < (
            forecast.row_ns if rows == 1 else forecast.expected_ns(rows)
        ):
            return await self._wait(feeds, rows, timeout_s)
        began = time.perf_counter_ns()
        try:
            outputs = self.loaded.session.predict(feeds)
        except Exception as error:
            self.statistics.failed(time.perf_counter_ns() - began)
            self.breaker.failure(time.monotonic())
            raise self._failure(error) from error
        ended = time.perf_counter_ns()
        spent = ended - began
        if rows == 1:
            forecast.ran_one(spent)
        else:
            forecast.ran(rows, spent, ended)
        self.statistics.executed(rows, spent)
        self.statistics.answered(rows, 0, spent, spent)
        if self.breaker.streak:
            self.breaker.success()
        return outputs

    async def drain(self, timeout_s: float) -> bool:
        """Let nobody in, wait for those inside; whether all have left in time.

        False also while a call hangs: the session cannot be closed under it.
        """
        self.state = "draining"
        if self._batcher is not None:
            self._batcher.flush()
        if self._users or self.waiting:
            try:
                await asyncio.wait_for(self._idle.wait(), timeout_s)
            except TimeoutError:
                return False
        self.state = "closed"
        return True

    def admit(self, rows: int = 1, timeout_s: float | None = None) -> float:
        """Refuse what could not be answered in time; the time allowed, seconds.

        Cheap, so that a request can be refused before its body is even parsed.

        Raises:
            OverloadError: so.
            UnavailableError: an earlier call hangs.
        """
        if self.hung:
            self.statistics.refuse("hung")
            now = time.monotonic()
            self.breaker.hang(now)  # no probe before it is back
            raise UnavailableError(
                f"{self.label}: a call of its runtime hangs",
                self.breaker.retry_after_s(now),
            )
        wait_s = self._lane.wait_ns() / 1e9
        if self.waiting >= self.config.queue_depth:
            self.statistics.refuse("queue")
            raise OverloadError(
                f"{self.name}: {self.waiting} requests wait already "
                f"(queue_depth = {self.config.queue_depth})",
                _whole_seconds(wait_s),
            )
        expected_s = self._forecast.expected_ns(rows) / 1e9
        allowed_s = max(self.config.deadline_ms / 1000, _DEADLINE_RUNS * expected_s)
        if timeout_s is not None and timeout_s < allowed_s:
            allowed_s = timeout_s
        trusted_s = 0.0
        if expected_s > allowed_s:
            trusted_s = self._forecast.trusted_ns(rows, time.perf_counter_ns()) / 1e9
            if not trusted_s:  # nobody knows whether it still takes so long
                expected_s = 0.0
        over_s = _MARGIN * wait_s + expected_s - allowed_s
        if over_s > 0:
            self.statistics.refuse("deadline")
            raise OverloadError(
                f"{self.name}: the answer would take {wait_s + expected_s:.3f} s, "
                f"the deadline is {allowed_s:.3f} s",
                _whole_seconds(max(over_s, trusted_s)),
            )
        return allowed_s

    def predict(self, feeds: Feeds) -> dict[str, Array]:
        """Run the session in this thread; for the turn that holds the lane.

        Raises:
            InferenceError: the runtime failed.
        """
        try:
            return self.loaded.session.predict(feeds)
        except Exception as error:
            raise self._failure(error) from error

    def turn_over(self, turn: Turn) -> None:
        """The thread of a turn is back: count what it has done."""
        self._settle(turn)
        self.waiting -= len(turn.claimed)
        if turn.hung:
            self.hung -= 1
        for request, reason in turn.dropped:
            # one that expired since then has been answered and counted
            if not request.done.done() or request.done.cancelled():
                self.statistics.refuse(reason)
        for run in turn.runs:
            if not run.failed:
                self._forecast.ran(run.rows, run.took_ns, run.ended_ns, trial=run.trial)
                self.statistics.executed(run.rows, run.took_ns)
                if self.breaker.streak and not turn.hung:
                    self.breaker.success()
            elif not turn.hung:
                self.breaker.failure(time.monotonic())
        if turn.inseparable and self._batcher is not None:
            self._batcher.joins = False
        self._check_idle()

    def turn_given_up(self, turn: Turn) -> None:
        """The thread of a turn hangs: nobody asks the session until it is back."""
        self._settle(turn)
        self.hung += 1
        self.breaker.hang(time.monotonic())

    async def _wait(
        self, feeds: Feeds, rows: int, timeout_s: float | None
    ) -> dict[str, Array]:
        allowed_s = self.admit(rows, timeout_s)
        began = time.perf_counter_ns()
        request = self._request(feeds, rows, allowed_s, began)
        if timeout_s is None or timeout_s > allowed_s:
            request.overrun_ns = (_OVERRUN - 1) * allowed_s * 1e9
        self._deadlines.add(request)
        if self._batcher is not None:
            self._batcher.put(request)
        else:
            self._dispatch([request])
        try:
            outputs = await request.done
        except asyncio.CancelledError:
            self._withdraw(request, "cancelled")
            raise
        except InferenceError:
            self.statistics.failed(time.perf_counter_ns() - began)
            raise
        finally:
            self._deadlines.remove(request)
        total = time.perf_counter_ns() - began
        ran = request.ran_ns
        self.statistics.answered(rows, max(total - ran, 0), ran, total)
        return outputs

    def _request(
        self, feeds: Feeds, rows: int, allowed_s: float, began_ns: int
    ) -> Request:
        """A request that is let in; from here on it is waiting and pending."""
        forecast = self._forecast
        expected_ns = forecast.expected_ns(rows)
        allowed_ns = allowed_s * 1e9
        request = Request(feeds, rows, self._lane.loop.create_future())
        request.allowed_s = allowed_s
        request.deadline_ns = began_ns + allowed_ns
        if expected_ns > allowed_ns:  # see admit: nobody knows what it takes
            request.trial = True
            request.start_by_ns = request.deadline_ns
            request.cost_ns = int(allowed_ns)
        else:
            request.start_by_ns = request.deadline_ns - expected_ns
            request.cost_ns = int(
                expected_ns if self._batcher is None else forecast.mean_ns * rows
            )
        self.waiting += 1
        self._lane.pending_ns += request.cost_ns
        return request

    def _dispatch(self, requests: list[Request]) -> None:
        self._lane.put(Turn(self, requests))

    def _expire(self, request: Request) -> None:
        """The deadline of a request has passed."""
        if request.done.done():
            return
        if self._withdraw(request, "expired"):
            what = "its turn did not come"
        elif request.overrun_ns:
            request.deadline_ns += request.overrun_ns
            request.overrun_ns = 0.0
            return
        else:
            what = "its run did not end"
            self.statistics.failed(int(request.allowed_s * 1e9))
        request.done.set_exception(
            DeadlineError(
                f"{self.label}: {what} within its deadline of {request.allowed_s:.3f} s"
            )
        )

    def _withdraw(self, request: Request, reason: str) -> bool:
        """Drop a request whose turn has not come; whether it was so."""
        if not request.claim():
            return False
        request.feeds = {}  # as large as the body that it came in
        self._lane.pending_ns -= request.cost_ns
        self.waiting -= 1
        self.statistics.refuse(reason)
        self._check_idle()
        return True

    def _settle(self, turn: Turn) -> None:
        """What the turn has taken is no longer pending."""
        for request in turn.claimed:
            self._lane.pending_ns -= request.cost_ns
            request.cost_ns = 0

    def _failure(self, error: Exception) -> InferenceError:
        """Sessions promise ArtifactError; what else comes out is named by its type."""
        known = isinstance(error, ArtifactError)
        what = str(error) if known else f"{type(error).__name__}: {error}"
        return InferenceError(f"{self.label}: {what}")

    def _check_ready(self) -> None:
        if self.state != "ready":
            raise UnavailableError(f"{self.label} is being unloaded", 1)

    def _check_idle(self) -> None:
        if self.state != "ready" and not self._users and not self.waiting:
            self._idle.set()


def _whole_seconds(wait_s: float) -> int:
    return max(1, math.ceil(wait_s))
