"""``report.html``: one file that works offline, on a phone and in print.

It holds no script and forbids any by its content security policy, so that a name
from a model or a data set cannot become one.
"""

import math
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from ..outcome import BuildOutcome
from . import sections, words
from .document import member_path
from .plots import Bounds, Curve, Point, candidates_plot, latency_plot
from .search import searched
from .sections import Row, View

SIZES = (("wide", 920, 400), ("narrow", 340, 330))
"""Plots are drawn twice, so that their text is readable on a phone."""

BARS_SHOWN = 24


def report_html(outcome: BuildOutcome) -> bytes:
    """The page, UTF-8."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("edgeml.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html.j2").render(_values(outcome))
    return page.encode()


def _values(outcome: BuildOutcome) -> Row:
    targets = [
        _target(sections.view(outcome, one), f"t{number}")
        for number, one in enumerate(outcome.targets)
    ]
    calibration = dict(outcome.calibration)
    covered = calibration.pop("coverage", None) or {}
    plain = {k: v for k, v in covered.items() if not isinstance(v, Mapping)}
    shipped = sum(one["ships"] for one in targets)
    return {
        "outcome": outcome,
        "targets": targets,
        "verdict": _verdict(shipped, len(targets)),
        "oracle": [
            {"name": name, "value": words.value_of(name, value)}
            for name, value in outcome.oracle.metrics.items()
        ],
        "model": facts(outcome.model_summary),
        "machine": facts(outcome.machine),
        "calibration": facts(calibration | plain),
        "coverage": coverage({k: v for k, v in covered.items() if k not in plain}),
        "export_error": f"{outcome.export_error:.2g}",
    }


def _target(one: View, ident: str) -> Row:
    target = one.target
    return {
        "ident": ident,
        "record": target,
        "ships": sections.ships(target),
        "subject": one.subject,
        "artifact_path": target.artifact_entry and member_path(target.artifact_entry),
        "tiles": sections.tiles(one),
        "certainty": sections.certainty(one),
        "validated": words.validated(target),
        "checked": words.checked(target.check),
        "plots": _candidate_plots(one, ident),
        "candidates": sections.candidate_rows(one),
        "budget": sections.budget_rows(one),
        "slices": sections.slice_tables(one),
        "confusion": sections.confusion(one),
        "flips": sections.flips(one),
        "layers": sections.layer_tables(one),
        "latency": _latency(one, ident),
        "metrics": _metrics(one),
        "search": searched(one, SIZES, ident),
    }


def _verdict(shipped: int, total: int) -> str:
    if total == 1:
        return "The target ships." if shipped else "The target does not ship."
    if shipped == total:
        return f"All {total} targets ship."
    return f"{shipped} of {total} targets ship." if shipped else "No target ships."


def _candidate_plots(one: View, ident: str) -> list[Row]:
    metric, outcome = one.outcome.metric, one.outcome
    points = [
        Point(
            number, c.name, c.status, c.latency.p50_ms,
            c.evaluation.metrics[metric], c.size_bytes,
        )
        for number, c in enumerate(one.target.candidates, 1)
        if c.latency and c.evaluation and metric in c.evaluation.metrics
    ]  # fmt: skip
    oracle = outcome.oracle.metrics.get(metric)
    if not points or oracle is None:
        return []
    allowed = outcome.budget.get("max_accuracy_drop")
    bounds = Bounds(
        oracle=oracle,
        worst_score=None if allowed is None else oracle - one.sign * allowed,
        max_latency_ms=outcome.budget.get("max_latency_ms"),
        better=outcome.better,
    )
    return [
        {
            "size": name,
            "svg": candidates_plot(
                points, bounds, lambda value: words.value_of(metric, value),
                ident=f"{ident}-{name}", width=width, height=height,
            ),
        }
        for name, width, height in SIZES
    ]  # fmt: skip


def _latency(one: View, ident: str) -> Row | None:
    subject = one.subject
    if subject is None or subject.latency is None:
        return None
    base = words.float_candidate(one.target)
    curves = []
    if len(subject.latency.histogram_ms) > 2:
        curves.append(Curve(subject.name, "now", subject.latency.histogram_ms))
    timed = base.latency if base and base is not subject else None
    if base and timed and len(timed.histogram_ms) > 2:
        curves.insert(0, Curve(base.name, "float", timed.histogram_ms))
    return {
        "record": subject.latency,
        "p50": words.milliseconds(subject.latency.p50_ms),
        "p99": words.milliseconds(subject.latency.p99_ms),
        "float": words.milliseconds(subject.latency.float_p50_ms),
        "load": words.milliseconds(subject.load_ms),
        "memory": words.size(subject.peak_memory_bytes),
        "curves": curves,
        "plots": _latency_plots(curves, ident),
    }


def _latency_plots(curves: list[Curve], ident: str) -> list[dict[str, Any]]:
    if not curves:
        return []
    return [
        {
            "size": name,
            "svg": latency_plot(
                curves, ident=f"{ident}-l-{name}", width=width, height=height
            ),
        }
        for name, width, height in (("wide", 920, 230), ("narrow", 340, 230))
    ]


def _metrics(one: View) -> list[Row]:
    if one.evaluation is None:
        return []
    oracle = one.outcome.oracle
    rows = []
    for name, value in one.evaluation.metrics.items():
        before = oracle.metrics.get(name)
        change = None if before is None else value - before
        rows.append({
            "name": name,
            "before": words.value_of(name, before),
            "after": words.value_of(name, value),
            "change": words.change_of(name, change),
        })  # fmt: skip
    if one.evaluation.ece is not None:
        before = oracle.ece
        change = None if before is None else one.evaluation.ece - before
        rows.append({
            "name": "calibration error (ECE)",
            "before": words.value_of("f1", before),
            "after": words.value_of("f1", one.evaluation.ece),
            "change": words.change_of("f1", change),
        })  # fmt: skip
    return rows


def facts(values: Mapping[str, Any]) -> list[Row]:
    """A mapping as rows of name and text; sizes in bytes get their unit."""
    return [
        {"name": _title(name), "value": _fact(name, value)}
        for name, value in values.items()
    ]


def coverage(values: Mapping[str, Any]) -> list[Row]:
    """What the calibration set covers: shares, counts per class, value ranges."""
    return [
        {"name": _title(name), "items": _bars(name, value)}
        if isinstance(value, Mapping)
        else {"name": _title(name), "value": _fact(name, value)}
        for name, value in values.items()
    ]


def _bars(name: str, values: Mapping[str, Any]) -> list[Row]:
    """One row per item; numbers get a bar, shares of one, counts of the largest."""
    numbers = [one for one in values.values() if isinstance(one, int | float)]
    if len(values) > BARS_SHOWN and len(numbers) == len(values):
        text = f"{min(numbers):,} to {max(numbers):,}"
        return [{"name": f"{len(values)} items", "value": text, "share": None}]
    top = 1.0 if name.endswith("share") else max(numbers, default=0)
    drawn = len(numbers) == len(values) and top > 0
    return [
        {
            "name": key,
            "value": _fact(name if name.endswith("share") else key, one),
            "share": min(1.0, max(0.0, one / top)) if drawn else None,
        }
        for key, one in values.items()
    ]


def _fact(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        if {"name", "datatype", "shape"} <= set(value):
            return f"{value['name']} {value['datatype']} {value['shape']}"
        return ", ".join(f"{key} {_fact(key, one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        if len(value) == 2 and all(isinstance(one, int | float) for one in value):
            return f"{value[0]:.6g} to {value[1]:.6g}".replace("-", words.MINUS)
        if any(isinstance(one, Mapping) for one in value):
            return Markup("<br>").join(_fact(name, one) for one in value)
        return ", ".join(map(str, value))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: words.NONE}[value]
    if isinstance(value, int | float) and not math.isfinite(value):
        return str(value)
    if name.endswith("bytes") and isinstance(value, int | float):
        return words.size(value)
    if name.endswith("share") and isinstance(value, int | float):
        return words.percent(value)
    if isinstance(value, int) and name != "seed":
        return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _title(name: str) -> str:
    return name.removesuffix("_bytes").replace("_", " ")
