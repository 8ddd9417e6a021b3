"""What we promise, against what was measured."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .entrants import BARE, LITSERVE, OURS, WORKERS
from .load import Figures
from .results import Results, Scenario

CPU_US = 60.0
RATE = 14_000.0
TIMES_LESS = 15.0
BINARY_TO_BARE = 1.2
JSON_TO_BARE = 2.2
WAIT_RATIO = 1.3
CLIENTS, CROWD = 8, 32
RSS_BYTES = 110e6
START_S = 0.5

MLP = Scenario(OURS, "mlp", "JSON", "TCP", CLIENTS)
IMAGE = Scenario(OURS, "image", "binary", "TCP", CLIENTS)
IMAGE_JSON = IMAGE._replace(encoding="JSON")


@dataclass(frozen=True)
class Verdict:
    """One promise; ``found`` None: it was not measured, ``reason`` says why."""

    promise: str
    found: float | None
    limit: float
    unit: str
    at_least: bool = False
    note: str = ""

    @property
    def missed(self) -> bool:
        """Whether it was measured and is not kept."""
        if self.found is None:
            return False
        kept = self.found >= self.limit if self.at_least else self.found <= self.limit
        return not kept

    def __str__(self) -> str:
        bound = f"{'>=' if self.at_least else '<='} {number(self.limit)} {self.unit}"
        tail = f"; {self.note}" if self.note else ""
        if self.found is None:
            return f"-      {self.promise}: not measured (limit {bound}){tail}"
        word = "MISSED" if self.missed else "holds "
        found = f"{number(self.found)} {self.unit}"
        return f"{word} {self.promise}: {found} (limit {bound}){tail}"


def bare(scenario: Scenario) -> Scenario:
    """The bare session, measured beside that scenario."""
    return scenario._replace(who=BARE, transport="-")


def cpu(figures: Figures) -> float:
    """CPU µs per request."""
    return figures.cpu_us


def verdicts(results: Results) -> list[Verdict]:
    """Every promise, in the order of the issue; ours absent: all are missed."""
    if OURS in results.absent and not any(
        scenario.who == OURS for scenario in results.rounds
    ):
        return [Verdict(f"ours runs ({results.absent[OURS]})", 0, 1, "", at_least=True)]
    return [
        *_speed(results), *_image(results), *_waits(results), *_footprint(results),
        Verdict("wrong or lost answers of ours", results.errors(OURS), 0, "",
                note=results.absent.get(OURS, "")),
    ]  # fmt: skip


def _speed(results: Results) -> Iterator[Verdict]:
    told = f"MLP, JSON, TCP, {CLIENTS} clients"
    yield Verdict(f"{told}: CPU per request", results.median(MLP, cpu), CPU_US, "µs")
    for who in (WORKERS, LITSERVE):
        yield Verdict(
            f"{told}: CPU, times less than {who}",
            results.ratio(MLP._replace(who=who), MLP, cpu), TIMES_LESS, "x", True,
            note=results.absent.get(who, ""),
        )  # fmt: skip
    rate = results.median(MLP, lambda one: one.rate)
    yield Verdict(f"{told}: rate", rate, RATE, "requests/s", True)


def _image(results: Results) -> Iterator[Verdict]:
    limits = ((IMAGE, BINARY_TO_BARE), (IMAGE_JSON, JSON_TO_BARE))
    for scenario, limit in limits:
        yield Verdict(
            f"image, {scenario.encoding}, TCP, {CLIENTS} clients: CPU to bare session",
            results.ratio(scenario, bare(scenario), cpu), limit, "x",
        )  # fmt: skip


def _waits(results: Results) -> Iterator[Verdict]:
    ratio: Callable[[Figures], float] = lambda one: one.wait_ratio(CROWD)  # noqa: E731
    for scenario in (MLP, IMAGE):
        crowd = scenario._replace(clients=CROWD)
        p99 = results.median(crowd, lambda one: one.p99_us)
        yield Verdict(
            f"{scenario.model}, {scenario.encoding}, TCP, {CROWD} clients: "
            "p99 to clients/rate",
            results.median(crowd, ratio), WAIT_RATIO, "x",
            note="" if p99 is None else f"p99 {number(p99 / 1e3)} ms; "
            f"best round {number(min(map(ratio, results.rounds[crowd])))} x",
        )  # fmt: skip


def _footprint(results: Results) -> Iterator[Verdict]:
    memory = results.memory.get((OURS, "image"))
    yield Verdict(
        "memory (RSS) after serving the int8 image model",
        memory.rss_bytes / 1e6 if memory else None, RSS_BYTES / 1e6, "MB",
    )  # fmt: skip
    starts = [starts for (who, _), starts in results.starts.items() if who == OURS]
    firsts = ", ".join(number(one.first_s) for one in starts)
    yield Verdict(
        "start to first answer, later starts",
        max((one.later for one in starts), default=None), START_S, "s",
        note=f"first starts with a new bundle: {firsts} s" if firsts else "",
    )  # fmt: skip


def number(value: float) -> str:
    """Three digits that matter, no exponent.

    >>> number(14000.4), number(59.94), number(1.204), number(0.0123)
    ('14,000', '59.9', '1.20', '0.012')
    """
    if value == int(value) and value < 1000:
        return str(int(value))
    for least, digits in ((100, 0), (10, 1), (1, 2)):
        if abs(value) >= least:
            return f"{value:,.{digits}f}"
    return f"{value:.3f}"
