"""``report.json``: from the records of a build to bytes, and back with checks."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from datetime import date
from decimal import Decimal
from pathlib import PurePath
from typing import Any

import numpy as np

from device_agent.contract.document import read_document

from ..errors import InputError
from ..outcome import BuildOutcome, Candidate, Evaluation, TargetOutcome
from .interval import Change, bounded_change, paired_change
from .schema import SCHEMA, Report

REPORT_BYTES_MAX = 64 << 20
SHARES = frozenset({"accuracy", "agreement", "top1"})
"""Metrics that are right answers divided by samples."""


def report_json(outcome: BuildOutcome) -> bytes:
    """``report.json``: sorted, indented, ends in a newline.

    Raises:
        InputError: the outcome holds a value that JSON has no form for.
    """
    values = report_values(outcome)
    text = json.dumps(
        values, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False
    )
    return text.encode() + b"\n"


def report_values(outcome: BuildOutcome) -> dict[str, Any]:
    """What ``report.json`` holds, as plain dicts, lists, numbers and strings.

    A number that is not finite becomes null.

    Raises:
        InputError: the outcome holds a value that JSON has no form for.
    """
    values = {
        "schema": SCHEMA,
        "name": outcome.name,
        "version": outcome.version,
        "recipe_sha256": outcome.recipe_sha256,
        "model": outcome.model_summary,
        "metric": outcome.metric,
        "better": outcome.better,
        "oracle": outcome.oracle,
        "export_error": outcome.export_error,
        "calibration": outcome.calibration,
        "budget": outcome.budget,
        "tools": outcome.tools,
        "machine": outcome.machine,
        "labels": outcome.labels,
        "reproduce": outcome.reproduce,
        "warnings": outcome.warnings,
        "targets": [_target(outcome, one) for one in outcome.targets],
    }
    plain = _plain(values, "report")
    assert isinstance(plain, dict), "a mapping stays a mapping"
    return plain


def read_report(raw: bytes) -> dict[str, Any]:
    """Read a ``report.json`` that nobody vouches for yet.

    Raises:
        InputError: too large, not JSON, an unknown schema, or a field is wrong; the
            text names the first wrong fields.
    """
    read_document(
        raw, Report, what="report.json", version=("schema", SCHEMA),
        bytes_max=REPORT_BYTES_MAX, error=InputError,
    )  # fmt: skip
    value: dict[str, Any] = json.loads(raw)
    return value


def member_path(entry: str) -> str:
    """Where a bundle holds the artifact's entry file."""
    return f"artifact/{entry}"


def chosen_candidate(target: TargetOutcome) -> Candidate | None:
    """The candidate that ships for a target."""
    return next((c for c in target.candidates if c.name == target.chosen), None)


def metric_change(
    outcome: BuildOutcome, evaluation: Evaluation, metric: str
) -> Change | None:
    """Change of a metric against float with its interval, where it is a share.

    Exact when every flip is among the examples, else the widest that the flip rate
    allows; None for metrics that are no share of right answers.
    """
    samples, oracle = evaluation.samples, outcome.oracle
    before, after = oracle.metrics.get(metric), evaluation.metrics.get(metric)
    if metric not in SHARES or before is None or after is None or not samples:
        return None
    if evaluation.flip_rate is None or oracle.samples != samples:
        return None
    flipped = round(evaluation.flip_rate * samples)
    rights = round(before * samples), round(after * samples)
    whole = max(
        abs(share * samples - count)
        for share, count in zip((before, after), rights, strict=True)
    )
    if whole > 1e-3 or abs(rights[1] - rights[0]) > flipped:
        return None
    if flipped == len(evaluation.flips):
        lost = sum(bool(f.label == f.before) for f in evaluation.flips)
        gained = sum(bool(f.label == f.after) for f in evaluation.flips)
        if gained - lost == rights[1] - rights[0]:
            return paired_change(gained, lost, samples)
    return bounded_change(*rights, flipped, samples)


def _target(outcome: BuildOutcome, target: TargetOutcome) -> dict[str, Any]:
    chosen = chosen_candidate(target)
    evaluation = chosen.evaluation if chosen else None
    return {
        "target": target.target,
        "runtime": target.runtime,
        "threads": target.threads,
        "validated_on": target.validated_on,
        "unchecked": target.unchecked,
        "chosen": target.chosen,
        "choice_reason": target.choice_reason,
        "refusals": target.refusals,
        "bundle": target.bundle_file
        and {
            "file": target.bundle_file,
            "sha256": target.bundle_sha256,
            "size_bytes": target.bundle_bytes,
        },
        "check": target.check,
        "artifact": chosen
        and target.artifact_entry
        and {
            "file": member_path(target.artifact_entry),
            "sha256": chosen.artifact_sha256,
            "precision": chosen.precision,
        },
        "metrics": _metrics(outcome, evaluation) if evaluation else {},
        "slices": evaluation.slices if evaluation else {},
        "flip_rate": evaluation and evaluation.flip_rate,
        "flips": evaluation.flips if evaluation else [],
        "latency": chosen and chosen.latency,
        "memory_bytes": chosen and chosen.peak_memory_bytes,
        "size_bytes": chosen and chosen.size_bytes,
        "refused": [
            {"candidate": one.name, "status": one.status, "reason": one.reason}
            for one in target.candidates
            if one.status not in {"chosen", "fits"}
        ],
        "candidates": target.candidates,
        "search": target.search,
    }


def _metrics(outcome: BuildOutcome, evaluation: Evaluation) -> dict[str, Any]:
    entries = {}
    for name, value in evaluation.metrics.items():
        change = metric_change(outcome, evaluation, name)
        entries[name] = {
            "value": value,
            "float": outcome.oracle.metrics.get(name),
            "samples": evaluation.samples,
            "samples_digest": evaluation.samples_digest,
            "interval": change
            and {"low": change.low, "high": change.high, "method": change.method},
        }
    return entries


def _plain(value: Any, place: str) -> Any:
    """``value`` as JSON has it; numpy scalars and arrays become numbers and lists."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(one, f"{place}.{k}") for k, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, f"{place}[{n}]") for n, one in enumerate(value)]
    if isinstance(value, set | frozenset):
        return sorted(str(one) for one in value)
    if isinstance(value, date | Decimal | PurePath):
        return str(value)
    raise InputError(
        f"{place}: expected numbers, text, lists or tables, found "
        f"{type(value).__name__}; give labels and parameters as plain values"
    )
