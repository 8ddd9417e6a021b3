"""Dynamic batching: requests that wait together are run together.

The rules it keeps:

1. A batch goes when it is full, when its first request has waited ``max_delay_s``, or
   when the next request does not fit; so requests go in the order in which they came.
2. Together are only requests whose datatypes and dimensions but the first agree, and
   never more rows than ``max_rows``; a request with more goes alone.
3. Which requests of a batch are run is decided when its turn comes (:mod:`.turn`):
   those whose caller has left or whose deadline has passed are not.
"""

import asyncio
import math
import threading
from collections.abc import Callable, Sequence

import numpy as np

from ..contract.tensors import Array, Feeds

Outputs = dict[str, Array]
Dispatch = Callable[[list["Request"]], None]
"""Takes requests that are to be run together."""


class Request:
    """One request on its way to the session.

    The loop makes it; the lane's thread runs it if it is the first to ``claim`` it. The
    loop claims it when nobody wants it any more. What the thread writes (``outputs``,
    ``error``, ``ran_ns``) the loop reads when the turn is over.
    """

    __slots__ = (
        "_claimed", "allowed_s", "cost_ns", "deadline_ns", "done", "error", "feeds",
        "outputs", "overrun_ns", "ran_ns", "rows", "start_by_ns", "trial",
    )  # fmt: skip

    def __init__(
        self, feeds: Feeds, rows: int, done: "asyncio.Future[Outputs]"
    ) -> None:
        self.feeds = feeds
        self.rows = rows
        self.done = done
        """What its caller waits for."""
        self.allowed_s = math.inf
        """Its deadline, from when it came."""
        self.deadline_ns: float = math.inf
        """When its caller gets an error instead (clock of ``perf_counter_ns``)."""
        self.start_by_ns: float = math.inf
        """Not run when its turn comes later."""
        self.overrun_ns = 0.0
        """How much longer it is waited for once it runs."""
        self.trial = False
        """Let in to find out how long it takes; see :mod:`.forecast`."""
        self.cost_ns = 0
        """Its part of the lane's ``pending_ns``."""
        self.outputs: Outputs | None = None
        self.error: Exception | None = None
        self.ran_ns = 0
        """What the run took that it was part of."""
        self._claimed = threading.Lock()

    def claim(self) -> bool:
        """Whether it is the caller's to run or to drop; True once and from one side."""
        return self._claimed.acquire(blocking=False)


class Batcher:
    """Gathers requests of one model on the event loop."""

    def __init__(self, dispatch: Dispatch, max_rows: int, max_delay_s: float) -> None:
        self.joins = True
        """Whether requests may be joined; see :func:`split`."""
        self.max_delay_s = max_delay_s
        self._dispatch = dispatch
        self._max_rows = max_rows
        self._gathered: list[Request] = []
        self._rows = 0
        self._kind: object = None
        self._timer: asyncio.TimerHandle | None = None

    def put(self, request: Request) -> None:
        """Gather a request; it is dispatched now or with those that come after it."""
        kind = _kind(request.feeds)
        if self._gathered and (
            not self.joins
            or kind != self._kind
            or self._rows + request.rows > self._max_rows
        ):
            self.flush()
        self._gathered.append(request)
        self._rows += request.rows
        self._kind = kind
        if not self.joins or self._rows >= self._max_rows:
            self.flush()
        elif self._timer is None:
            loop = request.done.get_loop()
            self._timer = loop.call_later(self.max_delay_s, self.flush)

    def flush(self) -> None:
        """Dispatch what waits, now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        gathered, self._gathered, self._rows = self._gathered, [], 0
        wanted = [request for request in gathered if not request.done.done()]
        if wanted:
            self._dispatch(wanted)


def join(requests: Sequence[Request]) -> Feeds:
    """One set of feeds: the rows of every request, one after the other."""
    return {
        name: np.concatenate([request.feeds[name] for request in requests])
        for name in requests[0].feeds
    }


def split(outputs: Outputs, requests: Sequence[Request]) -> list[Outputs] | None:
    """Each request's rows of the outputs of :func:`join`'s feeds, as views.

    None when the outputs do not have a row for each row of the feeds: the first
    dimension is not the batch (detections, for one), so that nothing can be joined.
    """
    rows = sum(request.rows for request in requests)
    if any(not array.ndim or len(array) != rows for array in outputs.values()):
        return None
    parts: list[Outputs] = []
    end = 0
    for request in requests:
        start, end = end, end + request.rows
        parts.append({name: array[start:end] for name, array in outputs.items()})
    return parts


def _kind(feeds: Feeds) -> object:
    return {name: (array.dtype, array.shape[1:]) for name, array in feeds.items()}
