"""What one version of a model has done: Triton's counters, and a latency histogram.

Written on the event loop only, so nothing is locked; read by the statistics extension
and by ``/metrics``.
"""

import time
from bisect import bisect_left
from dataclasses import dataclass, field

BUCKETS_US = (
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000,
    500_000, 1_000_000, 2_500_000,
)  # fmt: skip
"""Upper edges of the latency histogram; above the last is one more bucket."""
_BUCKETS_NS = tuple(1000 * edge for edge in BUCKETS_US)


@dataclass
class Duration:
    """How often something was done, and how long it took in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """One more."""
        self.count += 1
        self.ns += ns


@dataclass
class Statistics:
    """Counters since the version was loaded.

    ``refused`` counts requests that were never run, by reason: ``queue`` and
    ``deadline`` (not let in), ``expired`` (the deadline passed while it waited),
    ``cancelled`` (its caller left while it waited), ``hung`` (an earlier call of the
    runtime has not come back), ``breaker``. ``batches`` counts runs by their rows.
    """

    inferences: int = 0
    """Rows answered."""
    executions: int = 0
    """Runs of the session."""
    last_ms: int = 0
    """Wall clock of the last answer, milliseconds since 1970."""
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    infer: Duration = field(default_factory=Duration)
    refused: dict[str, int] = field(default_factory=dict)
    batches: dict[int, Duration] = field(default_factory=dict)
    histogram: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_US) + 1))

    def answered(self, rows: int, queue_ns: int, infer_ns: int, total_ns: int) -> None:
        """A request was answered; ``total_ns`` is from admission to outputs."""
        self.inferences += rows
        self.success.add(total_ns)
        self.queue.add(queue_ns)
        self.infer.add(infer_ns)
        self.last_ms = int(time.time() * 1000)
        self.histogram[bisect_left(_BUCKETS_NS, total_ns)] += 1

    def executed(self, rows: int, ns: int) -> None:
        """The session ran once, over ``rows`` rows."""
        self.executions += 1
        batch = self.batches.get(rows)
        if batch is None:
            batch = self.batches[rows] = Duration()
        batch.add(ns)

    def failed(self, total_ns: int) -> None:
        """A request that was run ended in an error."""
        self.fail.add(total_ns)

    def refuse(self, reason: str) -> None:
        """A request was turned away before it was run."""
        self.refused[reason] = self.refused.get(reason, 0) + 1
