"""A turn in the lane: requests of one model that are run together.

The rules it keeps:

1. Not run is what nobody waits for, and what came too late.
2. A batch that fails is run again one by one, so that one bad request does not fail
   its neighbours.
3. Every request that was claimed has outputs or an error when the turn is over.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ..contract.tensors import Feeds
from ..errors import DeadlineError, InferenceError, UnavailableError
from .batching import Outputs, Request, join, split
from .lane import Job


class Run(NamedTuple):
    """One run of the session."""

    rows: int
    took_ns: int
    ended_ns: int
    """Clock of ``perf_counter_ns``."""
    failed: bool
    trial: bool
    """One of its requests was let in to find out how long it takes."""


class Model(Protocol):
    """Whose requests they are."""

    @property
    def label(self) -> str:
        """Name and version, for messages."""

    @property
    def hung(self) -> int:
        """Calls of the session that were given up and have not come back."""

    def predict(self, feeds: Feeds) -> Outputs:
        """Run the session; raises :class:`InferenceError`."""

    def turn_over(self, turn: "Turn") -> None:
        """On the loop: the turn's thread is back."""

    def turn_given_up(self, turn: "Turn") -> None:
        """On the loop: the turn's thread hangs."""


class Turn(Job):
    """One or several requests in the lane."""

    __slots__ = (
        "_model", "_requests", "claimed", "dropped", "hung", "inseparable", "runs",
    )  # fmt: skip

    def __init__(self, model: Model, requests: Sequence[Request]) -> None:
        super().__init__()
        self.claimed: list[Request] = []
        """Requests whose turn came; the others were dropped before."""
        self.dropped: list[tuple[Request, str]] = []
        """Those of them that were not run, and the word for why."""
        self.runs: list[Run] = []
        self.inseparable = False
        """The outputs of a batch could not be split: nothing of it can be joined."""
        self.hung = False
        """It was given up."""
        self._model = model
        self._requests = requests

    @property
    def label(self) -> str:
        """Name and version of the model."""
        return self._model.label

    def work(self) -> None:
        """In the lane's thread: run what is still wanted."""
        self.claimed = [request for request in self._requests if request.claim()]
        live = [request for request in self.claimed if self._in_time(request)]
        if self._model.hung:
            for request in live:
                text = f"{self.label}: not run, an earlier call of its runtime hangs"
                self._drop(request, "hung", UnavailableError(text))
        elif len(live) == 1 or not self._together(live):
            for request in live:
                self._alone(request)

    def over(self, error: BaseException | None) -> None:
        """On the loop: every caller that still waits gets its answer."""
        self._model.turn_over(self)
        for request in self.claimed:
            if request.done.done():
                continue
            if request.outputs is not None:
                request.done.set_result(request.outputs)
            else:
                failure = request.error or error
                assert failure is not None, "rule 3"
                request.done.set_exception(failure)

    def given_up(self, error: Exception) -> None:
        """On the loop: every caller that still waits hears of it."""
        self.hung = True
        for request in self.claimed:
            if not request.done.done():
                # one exception for each: a traceback belongs to one task
                request.done.set_exception(request.error or InferenceError(str(error)))
        self._model.turn_given_up(self)

    def _in_time(self, request: Request) -> bool:
        if self.started_ns <= request.start_by_ns:
            self.expected_ns += request.cost_ns
            return True
        text = (
            f"{self.label}: its turn came too late for its deadline of "
            f"{request.allowed_s:.3f} s"
        )
        self._drop(request, "expired", DeadlineError(text))
        return False

    def _drop(self, request: Request, reason: str, error: Exception) -> None:
        request.error = error
        self.dropped.append((request, reason))

    def _together(self, live: list[Request]) -> bool:
        """Run all at once; False: each is to be run alone."""
        if not live:
            return False
        rows = sum(request.rows for request in live)
        began_ns = time.perf_counter_ns()
        try:
            outputs = self._model.predict(join(live))
        except (InferenceError, MemoryError):
            return False  # whose fault it is shows when each is run alone
        trial = any(request.trial for request in live)
        took_ns = self._ran(rows, began_ns, trial=trial)
        parts = split(outputs, live)
        if parts is None:
            self.inseparable = True
            return False
        for request, part in zip(live, parts, strict=True):
            request.outputs = part
            request.ran_ns = took_ns
        return True

    def _alone(self, request: Request) -> None:
        began_ns = time.perf_counter_ns()
        try:
            request.outputs = self._model.predict(request.feeds)
        except InferenceError as error:
            request.error = error
            self._ran(request.rows, began_ns, failed=True)
        else:
            request.ran_ns = self._ran(request.rows, began_ns, trial=request.trial)

    def _ran(
        self, rows: int, began_ns: int, *, failed: bool = False, trial: bool = False
    ) -> int:
        ended_ns = time.perf_counter_ns()
        self.runs.append(Run(rows, ended_ns - began_ns, ended_ns, failed, trial))
        return ended_ns - began_ns
