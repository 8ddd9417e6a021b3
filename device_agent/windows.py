"""What the models did in an interval, as records for the fleet.

::

    {"s": 300.0, "rss_bytes": 101711872, "cpu_s": 0.9, "models": [
      {"model": "digits", "version": "1.4.0", "requests": 120, "failures": 1,
       "refused": {"queue": 2}, "mean_ms": 2.41,
       "latency_us": {"2500": 80, "5000": 39}}]}

The rules it keeps:

1. A record says what was counted since the one before: sums of records are sums of
   requests. ``latency_us`` counts answers by the upper edge of their bucket (``inf``
   above the last one), so that histograms of many devices add up.
2. It is bounded: the busiest :data:`MODELS_MAX` models, each with so many buckets.
3. Counting is the serving part's; here nothing is on the way of a request.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from .contract.machine import memory_bytes
from .serving.served import Served
from .serving.statistics import BUCKETS_US, Statistics

MODELS_MAX: Final = 16
_EDGES: Final = (*map(str, BUCKETS_US), "inf")

Add = Callable[[str, dict[str, Any], float], None]
"""Keeps a record: its kind, its body, when; see :meth:`.spool.spool.Spool.add`."""


@dataclass(frozen=True)
class Counts:
    """What one version had done at a moment."""

    answered: int = 0
    answered_ns: int = 0
    failed: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    histogram: tuple[int, ...] = (0,) * len(_EDGES)

    @classmethod
    def of(cls, found: Statistics) -> "Counts":
        """A copy of counters that go on growing."""
        return cls(
            found.success.count, found.success.ns, found.fail.count,
            dict(found.refused), tuple(found.histogram),
        )  # fmt: skip

    def since(self, before: "Counts") -> dict[str, Any]:
        """What was done after ``before``; empty fields are left out."""
        answered = self.answered - before.answered
        refused = {
            why: count - before.refused.get(why, 0)
            for why, count in self.refused.items()
            if count > before.refused.get(why, 0)
        }
        latency = {
            edge: now - then
            for edge, now, then in zip(
                _EDGES, self.histogram, before.histogram, strict=True
            )
            if now > then
        }
        found: dict[str, Any] = {
            "requests": answered + self.failed - before.failed,
            "failures": self.failed - before.failed,
        }
        if refused:
            found["refused"] = refused
        if answered:
            mean_ms = (self.answered_ns - before.answered_ns) / answered / 1e6
            found["mean_ms"] = round(mean_ms, 4)
            found["latency_us"] = latency
        return found


class Windows:
    """Makes one record an interval; used on the event loop."""

    def __init__(self, served: Callable[[], Iterable[Served]], add: Add) -> None:
        """Count from now on.

        Args:
            served: what is loaded, asked at every interval.
            add: keeps a record; must not block.
        """
        self._served = served
        self._add = add
        self._before: dict[int, tuple[Statistics, Counts]] = {}
        """By identity: a version that was loaded again counts from nothing."""
        self._cpu_s = time.process_time()

    async def run(self, interval_s: float) -> None:
        """Go on until cancelled."""
        began_s = time.monotonic()
        while True:
            await asyncio.sleep(interval_s)
            now_s = time.monotonic()
            self._add("window", self.take(now_s - began_s), time.time())
            began_s = now_s

    def take(self, seconds: float) -> dict[str, Any]:
        """The body of the record of the ``seconds`` that have passed."""
        cpu_s = time.process_time()
        models, before = [], {}
        for one in self._served():
            counts = Counts.of(one.statistics)
            _, then = self._before.get(id(one.statistics), (None, Counts()))
            before[id(one.statistics)] = one.statistics, counts
            models.append(
                {
                    "model": one.name, "version": one.version,
                    **counts.since(then),
                }
            )  # fmt: skip
        models.sort(key=lambda one: -one["requests"])
        found = {
            "s": round(seconds, 3),
            "rss_bytes": memory_bytes("VmRSS"),
            "cpu_s": round(cpu_s - self._cpu_s, 4),
            "models": models[:MODELS_MAX],
        }
        self._before, self._cpu_s = before, cpu_s
        return found
