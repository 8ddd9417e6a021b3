"""Figures in words: units, factors and changes as people read them."""

import math
import re
from collections.abc import Mapping
from typing import Any

from ..outcome import BuildOutcome, Candidate, SearchOutcome, TargetOutcome
from .document import SHARES, chosen_candidate

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
PERCENT_METRICS = SHARES | {"top5", "top_k", "f1", "auc", "precision", "recall"}
"""Metrics from 0 to 1 that people read in percent."""
SAME_SPEED = 0.03
"""Medians this close, relatively, are called as fast."""
LIMITS = {
    "max_accuracy_drop": "Loss of accuracy",
    "max_slice_drop": "Loss on the worst slice",
    "max_flip_rate": "Changed answers",
    "max_latency_ms": "Latency, median",
    "max_size_bytes": "Artifact size",
    "max_memory_bytes": "Peak memory",
    "max_fallback_share": "Operators run elsewhere",
}
_MARKS = re.compile(r"([\\`*_\[\]<>|#])")


def size(count: float | None) -> str:
    """Bytes with a binary unit: ``38.1 KiB``."""
    if count is None:
        return NONE
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def milliseconds(value: float | None) -> str:
    """Milliseconds with three digits, microseconds below a tenth: ``0.186 ms``."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value * 1000:.3g} µs" if value < 0.1 else f"{_digits(value, 3)} ms"


def percent(share: float | None) -> str:
    """A share in percent: ``91.3 %``; small ones with two digits: ``0.02 %``."""
    if share is None or not math.isfinite(share):
        return NONE
    return f"{share * 100:.{2 if 0 < abs(share) < 0.001 else 1}f} %"


def value_of(metric: str, value: float | None) -> str:
    """A metric's value: percent for shares, four digits otherwise."""
    if value is None or not math.isfinite(value):
        return NONE
    return percent(value) if metric in PERCENT_METRICS else _digits(value, 4)


def change_of(metric: str, change: float | None) -> str:
    """A metric's change: ``−1.2 points``, ``−0.23 points``."""
    if change is None or not math.isfinite(change):
        return NONE
    if metric in PERCENT_METRICS:
        return f"{signed(change * 100, point_digits(change))} points"
    return signed(change, 4)


def point_digits(change: float) -> int:
    """Decimals that a change in points is shown with: two below a point."""
    return 1 if abs(change) >= 0.01 or change == 0 else 2


def signed(value: float, digits: int) -> str:
    """A number with its sign; zero has none."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return (MINUS if value < 0 else "+") + text


def factor(before: float | None, after: float | None) -> float | None:
    """How many times smaller ``after`` is."""
    return before / after if before and after else None


def times(ratio: float | None) -> str:
    """A factor: ``2.21×``."""
    return NONE if ratio is None else f"{ratio:.2f}{TIMES}"


def compared(
    ratio: float | None,
    better: str,
    worse: str,
    *,
    same: str = "the same",
    slack: float = 0.005,
) -> str:
    """A factor in words: ``2.21× faster``, ``1.41× slower``, ``the same``."""
    if ratio is None:
        return NONE
    if 1 - slack < ratio < 1 + slack:
        return same
    return f"{times(ratio)} {better}" if ratio > 1 else f"{times(1 / ratio)} {worse}"


def speed(before_ms: float, after_ms: float) -> str:
    """How much faster, where differences within the machine's noise are none."""
    ratio = factor(before_ms, after_ms)
    return compared(ratio, "faster", "slower", same="as fast", slack=SAME_SPEED)


def limit_value(limit: str, value: float | None, metric: str) -> str:
    """A limit or its measured value in its own unit."""
    if value is None:
        return "not measured"
    if limit.endswith("_bytes"):
        return size(value)
    if limit.endswith("_ms"):
        return milliseconds(value)
    if limit in {"max_flip_rate", "max_fallback_share"}:
        return percent(value)
    if metric in PERCENT_METRICS:
        text = f"{value * 100:.{point_digits(value)}f} points"
        return text.replace("-", MINUS)
    return _digits(value, 4).replace("-", MINUS)


def answer(labels: tuple[str, ...], value: Any) -> str:
    """A label or an answer by its class name, where there is one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    return labels[value] if 0 <= value < len(labels) else str(value)


def markdown(text: object) -> str:
    """Text from elsewhere, so that Markdown shows it as it is, on one line."""
    return _MARKS.sub(r"\\\1", " ".join(str(text).split()))


def float_candidate(target: TargetOutcome) -> Candidate | None:
    """The target's own float32 artifact, which the others are compared with."""
    floats = [one for one in target.candidates if one.precision == "fp32"]
    return floats[0] if floats else None


def summary_lines(outcome: BuildOutcome) -> list[str]:
    """What a build gave, in plain lines for a terminal."""
    lines = []
    width = max((len(one.target) for one in outcome.targets), default=0)
    for target in outcome.targets:
        chosen = chosen_candidate(target)
        if chosen is None or target.bundle_file is None:
            lines += _why_not(target, width)
        else:
            lines.append(f"{target.target:<{width}}  {_shipped(outcome, target)}")
        if target.validated_on:
            lines.append(f"{'':<{width}}  {validated(target)}")
        if target.search is not None:
            lines.append(f"{'':<{width}}  {searched(target.search)}")
    return lines + [f"warning: {text}" for text in outcome.warnings]


def searched(search: SearchOutcome) -> str:
    """A search in a line: how many trials, what came of them, what ships."""
    front = sum(trial.front for trial in search.trials)
    text = (
        f"search: {len(search.trials)} of {search.points} points, {front} on the front"
    )
    chosen = [one for one in search.trials if one.number == search.chosen]
    return text + "".join(f", best {one.name}" for one in chosen)


def checked(report: Mapping[str, Any] | None) -> str:
    """What the device's own check of the bundle said, in a line; "" without one."""
    if report is None:
        return ""
    about, failure = report.get("emulation"), report.get("failure")
    where = f"{about['cpu']} of {about['engine']}" if about else "this machine"
    if failure:
        return f"check on {where}: {failure['step']}: {failure['reason']}"
    return (
        f"check on {where}: {report['golden_vectors']} golden vectors right, "
        f"{size(report['peak_memory_bytes'])} at its peak"
    )


def validated(target: TargetOutcome) -> str:
    """What the figures were taken on where that is not the target's device, else ""."""
    if not target.validated_on:
        return ""
    text = f"validated on {target.validated_on}, not on the target's own device"
    chosen = chosen_candidate(target)
    if chosen is not None:
        text += "; not timed" if chosen.latency is None else "; latency measured there"
    limits = [LIMITS.get(limit, limit).lower() for limit in target.unchecked]
    return text + (f"; not checked: {', '.join(limits)}" if limits else "")


def _shipped(outcome: BuildOutcome, target: TargetOutcome) -> str:
    chosen, base = chosen_candidate(target), float_candidate(target)
    assert chosen is not None, "only built targets are summed up"
    parts = [chosen.name]
    if chosen.evaluation:
        metric = outcome.metric
        before = outcome.oracle.metrics.get(metric)
        after = chosen.evaluation.metrics.get(metric)
        parts.append(f"{metric} {value_of(metric, before)} → {value_of(metric, after)}")
        if chosen.evaluation.flip_rate is not None:
            parts.append(f"{percent(chosen.evaluation.flip_rate)} flips")
    before_bytes = base.size_bytes if base else None
    parts.append(f"{size(before_bytes)} → {size(chosen.size_bytes)}")
    if chosen.latency:
        fast, slow = chosen.latency.p50_ms, chosen.latency.float_p50_ms
        ratio = speed(slow, fast)
        parts.append(f"{milliseconds(fast)} ({ratio})")
    parts.append(str(target.bundle_file))
    return " · ".join(parts)


def _why_not(target: TargetOutcome, width: int) -> list[str]:
    reasons = target.refusals or (target.choice_reason or "no candidate was made",)
    return [f"{target.target:<{width}}  no bundle: {reason}" for reason in reasons]


def _digits(value: float, digits: int) -> str:
    """Fixed notation with so many digits; no exponent for everyday values."""
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -4 or exponent > 8:
        return f"{value:.{digits}g}"
    return f"{value:.{max(0, digits - 1 - exponent)}f}"
