"""Which records to send now: a window of batches, driven by the fleet's own ack.

PUBACK says that the broker has a batch, not that the fleet's database has: it plays no
part here. Pure: no clock, no socket, no spool.

The rules it keeps:

1. At most ``flights_max`` batches are sent and not acknowledged. A session begins with
   one and gains one with every acknowledgement (slow start), so that a broker or a
   fleet that comes back is not flooded.
2. What is not acknowledged in time is sent again from the oldest on, one batch at a
   time, after a wait that doubles up to ``ack_max_s``: a silent fleet costs a batch now
   and then.
3. What the fleet names as missing is sent again at once, but a list of it is taken only
   every ``ack_s``: until then, what it names may be on its way.
"""

from collections import deque
from dataclasses import dataclass

from ..spool.rules import Mark
from .backoff import DOUBLINGS_MAX, Random

MISSING_MAX = 64
"""Ranges of one list; the fleet names the others again."""


@dataclass(frozen=True)
class Following:
    """To send: what comes in the stream after a record; None: from the oldest on."""

    after: Mark | None


@dataclass(frozen=True)
class Missing:
    """To send again: records of an epoch, both ends included."""

    epoch: str
    first: int
    last: int


@dataclass(frozen=True)
class _Flight:
    mark: Mark
    sent_s: float


class Flow:
    """The window over the stream of records."""

    def __init__(
        self, flights_max: int, ack_s: float, ack_max_s: float, random: Random
    ) -> None:
        self.acked: Mark | None = None
        """What was acknowledged last."""
        self._flights_max = flights_max
        self._ack_s = ack_s
        self._ack_max_s = ack_max_s
        self._random = random
        self._flights: deque[_Flight] = deque()
        self._missing: deque[Missing] = deque()
        self._listed_s = float("-inf")
        self._allowed = 1
        self._timeouts = 0
        self._not_before_s = float("-inf")
        self._sent: Mark | None = None

    @property
    def in_flight(self) -> int:
        """Batches that were sent and are not acknowledged."""
        return len(self._flights)

    @property
    def timeouts(self) -> int:
        """Waits for an acknowledgement that were in vain, since the last one came."""
        return self._timeouts

    def begin(self) -> None:
        """A session begins, or the records got another epoch: from the oldest on."""
        self._flights.clear()
        self._missing.clear()
        self._allowed = 1
        self._sent = None
        self._not_before_s = float("-inf")  # sessions are rare enough to try a batch
        self._listed_s = float("-inf")

    def due(self, now_s: float) -> Following | Missing | None:
        """What to send now, if there is such; None: nothing may be sent."""
        if self._flights and now_s - self._flights[0].sent_s >= self._ack_s:
            self._time_out(now_s)
        if self._missing:
            return self._missing.popleft()
        if len(self._flights) >= self._allowed or now_s < self._not_before_s:
            return None
        return Following(self._sent)

    def sent(self, mark: Mark, now_s: float) -> None:
        """The batch that was due went out; it ends there."""
        self._sent = mark
        self._flights.append(_Flight(mark, now_s))

    def again(self, missing: Missing) -> None:
        """Of what was missing, this is left to send."""
        self._missing.appendleft(missing)

    def acknowledged(self, mark: Mark) -> None:
        """The fleet has everything of the epoch up to that record."""
        known = self.acked
        news = known is None or known.epoch != mark.epoch or known.seq < mark.seq
        left = [one for one in self._flights if not _covers(mark, one.mark)]
        if news or len(left) < len(self._flights):
            self.acked = mark
            self._timeouts = 0
            self._not_before_s = float("-inf")
            self._allowed = min(self._allowed + 1, self._flights_max)
        self._flights = deque(left)

    def missing(
        self, epoch: str, ranges: tuple[tuple[int, int], ...], now_s: float
    ) -> None:
        """The fleet has later records of the epoch, and not these."""
        if not ranges or now_s - self._listed_s < self._ack_s:
            return
        self._listed_s = now_s
        self._missing = deque(
            Missing(epoch, first, last)
            for first, last in ranges[:MISSING_MAX]
            if first <= last
        )

    def wait_s(self, now_s: float) -> float | None:
        """Until when :meth:`due` says nothing else by itself; None: for ever."""
        if self._missing:
            return 0.0
        if now_s < self._not_before_s:
            return self._not_before_s - now_s
        if self._flights:
            return max(self._flights[0].sent_s + self._ack_s - now_s, 0.0)
        return None

    def _time_out(self, now_s: float) -> None:
        # The upper half of the doubled wait: not at once, nor all devices at one time.
        ceiling = min(
            self._ack_max_s, self._ack_s * 2.0 ** min(self._timeouts, DOUBLINGS_MAX)
        )
        self._not_before_s = now_s + ceiling * (1 + self._random()) / 2
        self._timeouts += 1
        self._flights.clear()
        self._allowed = 1
        self._sent = None


def _covers(acked: Mark, one: Mark) -> bool:
    return one.epoch == acked.epoch and one.seq <= acked.seq
