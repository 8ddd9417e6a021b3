"""Measurements that give chosen figures, where a test is about what follows of them."""

from collections.abc import Callable, Mapping

from edgeml.evaluation.measure import Measurements
from edgeml.outcome import Latency

FLOAT_MS = 1.0
MEMORY_BYTES = 8 << 20
LOAD_MS = 2.0


class Timings(Measurements):
    """Latency by artifact digest; the float artifact takes ``FLOAT_MS``.

    ``asked`` lists the digests that were timed, in order.
    """

    def __init__(
        self, by: Mapping[str, float] | None = None, otherwise: float = 0.5
    ) -> None:
        self.by = dict(by or {})
        self.otherwise = otherwise
        self.asked: list[str] = []

    def latency(
        self, what: Mapping[str, object], measure: Callable[[], Latency]
    ) -> Latency:
        digest = str(what["artifact"])
        self.asked.append(digest)
        is_float = digest == what["float"]
        p50 = self.by.get(digest, FLOAT_MS if is_float else self.otherwise)
        return Latency(p50, 2 * p50, FLOAT_MS, 1, "chosen by the test", 30)

    def memory(
        self, what: Mapping[str, object], measure: Callable[[], tuple[int, float]]
    ) -> tuple[int, float]:
        return MEMORY_BYTES, LOAD_MS
