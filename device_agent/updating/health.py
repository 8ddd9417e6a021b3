"""The gate of a trial: good, bad, or not yet to be said. Pure.

The rules it keeps:

1. Good is never said on missing data: the golden vectors have been asked on the served
   model, and either enough requests were answered or the whole time has passed.
2. Bad is said at once, with the figures that say so.
"""

from dataclasses import dataclass, replace
from typing import Final

from ..contract.codes import Reason
from ..contract.manifest import Option
from .events import Evidence
from .ports import Vitals

FAILURES_MIN: Final = 5
"""Fewer failures say nothing about a share."""


@dataclass(frozen=True)
class Trial:
    """When a candidate has passed."""

    inferences: int = 100
    """Answered requests that are enough, once ``least_s`` have passed."""
    least_s: float = 10.0
    most_s: float = 300.0
    """After so long without anything bad it has passed without requests, too."""
    recheck_s: float = 5.0
    """From one asking of golden vectors to the next."""
    recheck_late_s: float = 30.0
    """Golden vectors that are not answered by then: it hangs."""
    rechecks: int = 2
    """Askings that must have gone well."""
    failure_share: float = 0.05
    growth_bytes: int = 256 << 20
    """What the agent may grow while it is on trial."""
    look_s: float = 0.5
    """From one look at it to the next."""

    def asked(self, config: dict[str, Option]) -> "Trial":
        """With what the director wants otherwise, within what is sensible."""

        def within(name: str, now: float, low: float, high: float) -> float:
            found = config.get(name, now)
            number = isinstance(found, int | float) and not isinstance(found, bool)
            return min(high, max(low, float(found))) if number else now

        most_s = within("trial_s", self.most_s, 1.0, 7 * 86_400.0)
        return replace(
            self,
            most_s=most_s,
            least_s=min(self.least_s, most_s),
            inferences=int(within("trial_inferences", self.inferences, 1, 10**9)),
        )


@dataclass(frozen=True)
class Verdict:
    """What the gate says; ``reason`` NONE is good."""

    reason: Reason
    text: str
    evidence: Evidence


@dataclass
class Gate:
    """One trial, from its first second."""

    trial: Trial
    began: float
    """Seconds of a monotonic clock."""
    rss_bytes: int
    """Of the agent when the candidate was active and settled."""
    rechecks: int = 0
    """Askings of golden vectors that went well."""

    def judge(self, vitals: Vitals, now: float) -> Verdict | None:
        """What is to be said now; None: not yet."""
        evidence = self.evidence(vitals, now)
        bad = self._bad(vitals)
        if bad is not None:
            return Verdict(*bad, evidence)
        passed_s = now - self.began
        enough = vitals.inferences >= self.trial.inferences
        due = passed_s >= self.trial.most_s or (
            enough and passed_s >= self.trial.least_s
        )
        if due and self.rechecks >= self.trial.rechecks:
            return Verdict(Reason.NONE, "", evidence)
        return None

    def _bad(self, vitals: Vitals) -> tuple[Reason, str] | None:
        trial = self.trial
        if vitals.hung:
            return Reason.HUNG, f"{vitals.hung} of its calls do not come back"
        asked = vitals.inferences + vitals.failures
        if vitals.failures >= FAILURES_MIN and (
            vitals.breaker_open or vitals.failures > trial.failure_share * asked
        ):
            return (
                Reason.ERROR_RATE,
                f"{vitals.failures} of {asked} requests failed; at most "
                f"{trial.failure_share:g} of them may",
            )
        if vitals.breaker_open:
            return Reason.ERROR_RATE, "its breaker has opened"
        grown = vitals.rss_bytes - self.rss_bytes
        if grown > trial.growth_bytes:
            return (
                Reason.MEMORY_LIMIT,
                f"the agent has grown by {grown} bytes; at most {trial.growth_bytes}",
            )
        took, limit = vitals.run_ms, vitals.run_limit_ms
        if took is not None and limit is not None and took > limit:
            return (
                Reason.LATENCY_LIMIT,
                f"one inference takes {took:.3f} ms in the mean; at most {limit:g} ms",
            )
        return None

    def evidence(self, vitals: Vitals, now: float) -> Evidence:
        """The figures that a verdict rests on."""
        return {
            "trial_s": round(now - self.began, 3),
            "inferences": vitals.inferences,
            "failures": vitals.failures,
            "rechecks": self.rechecks,
            "run_ms": None if vitals.run_ms is None else round(vitals.run_ms, 4),
            "grown_bytes": vitals.rss_bytes - self.rss_bytes,
        }
