"""Prometheus metrics: the counters as they stand when somebody asks.

The rules it keeps:

1. Nothing is counted here: every number is read from where it is kept already.
2. Triton's names where Triton has one. They are counters without ``_total``, which
   the exposition formats do not allow a counter to be, so their type is untyped.
3. Ours begin with ``edgeml_`` and end with their unit.
"""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    UnknownMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from ..serving.breaker import State
from ..serving.repository import Repository
from ..serving.served import Served
from ..serving.statistics import BUCKETS_US, Statistics
from .about import About
from .body import Budget

_BREAKER = {State.CLOSED: 0, State.HALF_OPEN: 1, State.OPEN: 2}
_MODEL = ("model", "version")

_TRITON: tuple[tuple[str, str, Callable[[Statistics], float]], ...] = (
    ("nv_inference_request_success", "Requests answered", lambda s: s.success.count),
    ("nv_inference_count", "Rows answered", lambda s: s.inferences),
    ("nv_inference_exec_count", "Runs of the session", lambda s: s.executions),
    (
        "nv_inference_request_duration_us", "From admission to outputs, in all",
        lambda s: (s.success.ns + s.fail.ns) / 1000,
    ),
    (
        "nv_inference_queue_duration_us", "Waiting for the model, in all",
        lambda s: s.queue.ns / 1000,
    ),
    (
        "nv_inference_compute_infer_duration_us", "In the runtime, in all",
        lambda s: s.infer.ns / 1000,
    ),
)  # fmt: skip


class Exposition:
    """Writes the metrics of this agent; asked on the event loop only."""

    def __init__(self, repository: Repository, about: About, budget: Budget) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Models(repository))
        self._registry.register(_Agent(about, budget))
        ProcessCollector(registry=self._registry)

    def write(self, accept: str) -> tuple[bytes, str]:
        """The metrics, and their Content-Type, in a format of the Accept header."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _Models(Collector):
    """Every version that is loaded."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def describe(self) -> list[Metric]:
        """Nothing: names are not looked up before there is a loop to be asked on."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metrics of all versions."""
        served = self._repository.served()
        for name, text, number in _TRITON:
            family = UnknownMetricFamily(name, text, labels=_MODEL)
            for one in served:
                family.add_metric(_labels(one), number(one.statistics))
            yield family
        yield from _refusals(served)
        yield from _states(served)
        yield _latency(served)
        yield self._index()

    def _index(self) -> Metric:
        family = GaugeMetricFamily(
            "edgeml_model_state", "1 for the state a version is in",
            labels=(*_MODEL, "state"),
        )  # fmt: skip
        for entry in self._repository.index():
            family.add_metric((entry.name, entry.version, entry.state), 1)
        return family


def _labels(served: Served) -> tuple[str, str]:
    return served.name, served.version


def _refusals(served: tuple[Served, ...]) -> Iterator[Metric]:
    failures = UnknownMetricFamily(
        "nv_inference_request_failure",
        "Requests not answered; BACKEND: the runtime failed, REJECTED: never run, "
        "CANCELED: their caller left before",
        labels=(*_MODEL, "reason"),
    )
    refused = CounterMetricFamily(
        "edgeml_requests_refused", "Requests never run, by the limit that they hit",
        labels=(*_MODEL, "reason"),
    )  # fmt: skip
    for one in served:
        numbers = one.statistics
        canceled = numbers.refused.get("cancelled", 0)
        for reason, count in (
            ("BACKEND", numbers.fail.count),
            ("CANCELED", canceled),
            ("REJECTED", sum(numbers.refused.values()) - canceled),
        ):
            failures.add_metric((*_labels(one), reason), count)
        for reason, count in sorted(numbers.refused.items()):
            refused.add_metric((*_labels(one), reason), count)
    yield failures
    yield refused


def _states(served: tuple[Served, ...]) -> Iterator[Metric]:
    pending = GaugeMetricFamily(
        "nv_inference_pending_request_count", "Requests waiting now", labels=_MODEL
    )
    breaker = GaugeMetricFamily(
        "edgeml_breaker_state", "0: closed, 1: half open, 2: open", labels=_MODEL
    )
    expected = GaugeMetricFamily(
        "edgeml_inference_expected_seconds", "What one row takes, smoothed",
        labels=_MODEL,
    )  # fmt: skip
    hung = GaugeMetricFamily(
        "edgeml_inferences_hung", "Given up and not come back", labels=_MODEL
    )
    info = InfoMetricFamily("edgeml_model", "What is loaded", labels=_MODEL)
    for one in served:
        pending.add_metric(_labels(one), one.waiting)
        breaker.add_metric(_labels(one), _BREAKER[one.breaker.state])
        expected.add_metric(_labels(one), one.expected_ns / 1e9)
        hung.add_metric(_labels(one), one.hung)
        info.add_metric(
            _labels(one),
            {
                "sha256": one.loaded.sha256,
                "target": one.manifest.target,
                "precision": one.manifest.precision,
                "runtime": one.manifest.runtime.name,
            },
        )
    yield from (pending, breaker, expected, hung, info)


def _latency(served: tuple[Served, ...]) -> Metric:
    family = HistogramMetricFamily(
        "edgeml_inference_latency_seconds",
        "From admission to outputs, of requests answered",
        labels=_MODEL,
    )
    edges = [*(str(edge / 1e6) for edge in BUCKETS_US), "+Inf"]
    for one in served:
        total = 0
        buckets = []
        for edge, count in zip(edges, one.statistics.histogram, strict=True):
            total += count
            buckets.append((edge, float(total)))
        family.add_metric(_labels(one), buckets, one.statistics.success.ns / 1e9)
    return family


class _Agent(Collector):
    """The agent itself: its lanes, connections and buffers."""

    def __init__(self, about: About, budget: Budget) -> None:
        self._about = about
        self._budget = budget

    def describe(self) -> list[Metric]:
        """Nothing, as above."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metrics of the agent."""
        info = InfoMetricFamily("edgeml_agent", "The agent")
        info.add_metric((), {"version": self._about.version})
        yield info
        yield GaugeMetricFamily(
            "edgeml_start_time_seconds", "When it started, since 1970",
            value=self._about.started_wall,
        )  # fmt: skip
        yield GaugeMetricFamily(
            "edgeml_buffered_bytes", "Request bodies held now",
            value=self._budget.used_bytes,
        )  # fmt: skip
        pending = GaugeMetricFamily(
            "edgeml_lane_pending", "Inferences handed in, not finished",
            labels=("lane",),
        )  # fmt: skip
        abandoned = CounterMetricFamily(
            "edgeml_lane_abandoned", "Threads given up because an inference hung",
            labels=("lane",),
        )  # fmt: skip
        for number, lane in enumerate(self._about.lanes):
            pending.add_metric((str(number),), lane.pending)
            abandoned.add_metric((str(number),), lane.abandoned)
        yield from (pending, abandoned)
        yield from self._connections()

    def _connections(self) -> Iterator[Metric]:
        counts = self._about.connections
        now = GaugeMetricFamily(
            "edgeml_connections",
            "Open now; reserve: answered health and metrics only",
            labels=("place",),
        )
        now.add_metric(("served",), counts.open)
        now.add_metric(("reserve",), counts.reserved)
        yield now
        yield CounterMetricFamily(
            "edgeml_connections_accepted", "Taken", value=counts.accepted
        )
        evicted = CounterMetricFamily(
            "edgeml_connections_evicted", "Closed without an answer",
            labels=("reason",),
        )  # fmt: skip
        for reason, count in sorted(counts.evicted.items()):
            evicted.add_metric((reason,), count)
        yield evicted
        refused = CounterMetricFamily(
            "edgeml_http_refused", "Requests answered with an error by the HTTP layer",
            labels=("reason",),
        )  # fmt: skip
        for reason, count in sorted(counts.refused.items()):
            refused.add_metric((reason,), count)
        yield refused
