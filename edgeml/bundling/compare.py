"""How two bundles differ, and whether the second is worse than allowed.

The rules it keeps:

1. Both are verified before anything is said of them.
2. They are compared on the golden inputs of both, each run in a process of its own;
   what could not be compared is listed with the reason, never passed over.
3. Latencies are compared only where both were measured on one machine: as the manifests
   say, else as measured here and now.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from device_agent.contract import machine
from device_agent.contract.bundle import Bundle
from device_agent.contract.errors import MachineError
from device_agent.contract.golden import argmax_flips
from device_agent.contract.manifest import Manifest, Score
from device_agent.contract.tensors import Feeds
from device_agent.runtimes import runtime as runtime_named
from device_agent.runtimes.probe import ProbeResult

from ..errors import InputError, MachineLacks
from .bundle import opened
from .facts import Facts, operators, word
from .running import golden_inputs, run_bundle


@dataclass(frozen=True)
class Thresholds:
    """How much worse the second bundle may be; shares, 0.1 is 10 %."""

    max_accuracy_drop: float = 0.005
    max_flip_rate: float = 0.05
    max_size_growth: float = 0.1
    max_latency_growth: float = 0.2


@dataclass(frozen=True)
class DiffReport:
    """How the second bundle differs from the first.

    Pairs are (before, after). ``flip_rate`` is the share of golden inputs whose argmax
    changed; ``not_compared`` says what could not be told, and why.
    """

    before: str
    after: str
    accuracy: tuple[float, float] | None = None
    accuracy_drop: float | None = None
    flip_rate: float | None = None
    max_abs_diff: float | None = None
    compared_inputs: int = 0
    size_bytes: tuple[int, int] = (0, 0)
    latency_ms: tuple[float, float] | None = None
    latency_where: str = ""
    operators: dict[str, tuple[int, int]] = field(default_factory=dict)
    manifest: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    not_compared: tuple[str, ...] = ()
    regressions: tuple[str, ...] = ()

    @property
    def regressed(self) -> bool:
        """Whether a threshold was passed."""
        return bool(self.regressions)


def diff(before: Path, after: Path, thresholds: Thresholds | None = None) -> DiffReport:
    """How ``after`` differs from ``before``, and whether it is worse than allowed.

    Raises:
        InputError: one of them is not what it says.
    """
    limits = thresholds or Thresholds()
    old, new = opened(before), opened(after)
    report = DiffReport(
        before=f"{before.name} {old.sha256[:12]}",
        after=f"{after.name} {new.sha256[:12]}",
        size_bytes=(old.size_bytes, new.size_bytes),
        operators=_changed(operators(old), operators(new), 0),
        manifest=_manifest_changes(old.manifest, new.manifest),
    )
    report = _accuracy(report, old.manifest.metrics.accuracy, new.manifest)
    report = _latency(report, old.manifest, new.manifest)
    report = _answers(report, old, new)
    return replace(
        report, regressions=(*report.regressions, *_regressions(report, limits))
    )


def diff_values(report: DiffReport) -> Facts:
    """The report as a JSON object."""
    return {**asdict(report), "regressed": report.regressed}


def render_diff(report: DiffReport) -> list[str]:
    """The report as lines: what changed, what could not be told, what regressed."""
    rows: list[tuple[str, object, object]] = [
        ("bundle", report.before, report.after),
        ("size_bytes", *report.size_bytes),
    ]
    if report.accuracy is not None:
        rows.append(("accuracy", *report.accuracy))
    if report.latency_ms is not None:
        rows.append((f"latency_ms ({report.latency_where})", *report.latency_ms))
    rows += [(f"operator {name}", *pair) for name, pair in report.operators.items()]
    rows += [(name, *pair) for name, pair in report.manifest.items()]
    lines = [f"{name:<28} {word(a)} -> {word(b)}" for name, a, b in rows]
    if report.max_abs_diff is not None:
        lines.append(
            f"{'outputs':<28} max |diff| {report.max_abs_diff:.6g}, flips "
            f"{word(report.flip_rate)} over {report.compared_inputs} golden inputs"
        )
    lines += [f"not compared: {why}" for why in report.not_compared]
    lines += [f"regression: {why}" for why in report.regressions]
    return lines if report.regressed else [*lines, "no regression"]


def _accuracy(report: DiffReport, old: Score, manifest: Manifest) -> DiffReport:
    new = manifest.metrics.accuracy
    if (old.name, old.samples_digest) != (new.name, new.samples_digest):
        why = (
            f"accuracy: {old.name} on samples {old.samples_digest[:12]} and {new.name} "
            f"on {new.samples_digest[:12]} are different questions"
        )
        return replace(report, not_compared=(*report.not_compared, why))
    drop = old.value - new.value
    if new.better == "lower":
        drop = -drop
    return replace(report, accuracy=(old.value, new.value), accuracy_drop=drop)


def _latency(report: DiffReport, old: Manifest, new: Manifest) -> DiffReport:
    a, b = old.metrics.latency, new.metrics.latency
    if a is None or b is None:
        return report
    if (a.machine, a.threads) != (b.machine, b.threads):
        return report
    where = f"{a.machine}, {a.threads} threads"
    return replace(report, latency_ms=(a.p50_ms, b.p50_ms), latency_where=where)


def _answers(report: DiffReport, old: Bundle, new: Bundle) -> DiffReport:
    """Both artifacts on the golden inputs of both."""

    def untold(why: str) -> DiffReport:
        return replace(report, not_compared=(*report.not_compared, f"outputs: {why}"))

    a, b = old.manifest, new.manifest
    if (a.inputs, a.outputs, a.preprocess) != (b.inputs, b.outputs, b.preprocess):
        return untold("inputs, outputs or preprocessing are not the same")
    lack = _lack(a) or _lack(b)
    if lack:
        return untold(lack)
    feeds = _union(golden_inputs(old), golden_inputs(new))
    try:
        first = run_bundle(old, feeds, a.runtime.options, 0.5)
    except (InputError, MachineLacks) as error:
        return untold(f"the first does not run here: {error}")
    try:
        second = run_bundle(new, feeds, b.runtime.options, 0.5)
    except MachineLacks as error:
        return untold(f"the second does not run here: {error}")
    except InputError as error:
        return replace(report, regressions=(f"the second does not run: {error}",))
    report = _flips(report, a.outputs[0].name, first, second)
    if report.latency_ms is None:
        pair = tuple(float(np.median(one.latencies_ms)) for one in (first, second))
        report = replace(
            report, latency_ms=(pair[0], pair[1]), latency_where="measured here"
        )
    return report


def _lack(manifest: Manifest) -> str:
    isa, spec = manifest.isa, manifest.runtime
    if isa.arch != machine.arch():
        return f"{manifest.target} is for {isa.arch}; this machine is {machine.arch()}"
    lacking = machine.lacks(isa.requires, machine.features())
    if lacking:
        return f"this machine lacks {', '.join(lacking)}, which {manifest.target} needs"
    try:
        runtime_named(spec.name)
    except MachineError as error:
        return str(error)
    return ""


def _union(first: Sequence[Feeds], second: Sequence[Feeds]) -> list[Feeds]:
    seen: dict[tuple[tuple[str, bytes], ...], Feeds] = {}
    for run in (*first, *second):
        key = tuple((name, run[name].tobytes()) for name in sorted(run))
        seen.setdefault(key, run)
    return list(seen.values())


def _flips(
    report: DiffReport, output: str, first: ProbeResult, second: ProbeResult
) -> DiffReport:
    pairs = list(zip(first.outputs, second.outputs, strict=True))
    rows = sum(
        a[output].size // a[output].shape[-1]
        for a, _ in pairs
        if a[output].ndim and a[output].shape[-1] > 1
    )
    flips = sum(argmax_flips(a[output], b[output]) for a, b in pairs)
    apart = [
        np.abs(a[name].astype(np.float64) - b[name].astype(np.float64)).max(initial=0.0)
        for a, b in pairs
        for name in a
        if a[name].shape == b[name].shape
    ]
    return replace(
        report, compared_inputs=len(pairs), flip_rate=flips / rows if rows else None,
        max_abs_diff=float(max(apart, default=0.0)),
    )  # fmt: skip


def _regressions(report: DiffReport, limits: Thresholds) -> list[str]:
    before, after = report.size_bytes
    latency = report.latency_ms
    measured = [
        ("accuracy drop", report.accuracy_drop, limits.max_accuracy_drop),
        ("flip rate", report.flip_rate, limits.max_flip_rate),
        ("size growth", after / before - 1, limits.max_size_growth),
        (
            "latency growth",
            latency[1] / latency[0] - 1 if latency and latency[0] else None,
            limits.max_latency_growth,
        ),
    ]
    return [
        f"{name} {value:.4g}, at most {allowed:g} allowed"
        for name, value, allowed in measured
        if value is not None and not value <= allowed + 1e-12
    ]


def _manifest_changes(old: Manifest, new: Manifest) -> dict[str, tuple[Any, Any]]:
    left, right = old.model_dump(mode="json"), new.model_dump(mode="json")
    for side in (left, right):
        del side["members"], side["metrics"]
    return _changed(left, right, None)


def _changed(
    left: Mapping[str, Any], right: Mapping[str, Any], absent: Any
) -> dict[str, tuple[Any, Any]]:
    return {
        name: (left.get(name, absent), right.get(name, absent))
        for name in sorted({*left, *right})
        if left.get(name, absent) != right.get(name, absent)
    }
