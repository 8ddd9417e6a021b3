"""The model card in a bundle: what it is, for whom, how good, made of what.

Markdown for people. Names come from users, so they are escaped; equal records give
equal bytes.

References:
    Mitchell et al., "Model Cards for Model Reporting", 2019.
"""

from collections.abc import Iterator

from ..outcome import BuildOutcome, Candidate, Evaluation, TargetOutcome
from ..report.sections import budget_rows, certainty, view
from ..report.words import (
    markdown,
    milliseconds,
    percent,
    size,
    validated,
    value_of,
)


def card_markdown(build: BuildOutcome, target: TargetOutcome) -> str:
    """The card of what ships for one target.

    Raises:
        ValueError: nothing ships for this target.
    """
    chosen = next((c for c in target.candidates if c.name == target.chosen), None)
    if chosen is None or chosen.evaluation is None:
        raise ValueError(f"nothing ships for {target.target}, so it has no card")
    return "\n".join(_lines(build, target, chosen, chosen.evaluation)) + "\n"


def _lines(
    build: BuildOutcome, target: TargetOutcome, chosen: Candidate, now: Evaluation
) -> Iterator[str]:
    yield f"# {markdown(build.name)} {markdown(build.version)} for {target.target}"
    yield ""
    yield f"{markdown(chosen.name)} on {target.runtime}: {target.choice_reason}."
    yield ""
    yield "## How good"
    yield ""
    yield "| figure | float32 | this artifact |"
    yield "|---|---|---|"
    for name, value in now.metrics.items():
        before = value_of(name, build.oracle.metrics.get(name))
        yield f"| {markdown(name)} | {before} | {value_of(name, value)} |"
    yield f"| answers that changed | | {percent(now.flip_rate)} |"
    if now.ece is not None:
        before = "" if build.oracle.ece is None else f"{build.oracle.ece:.4f}"
        yield f"| calibration error (ECE) | {before} | {now.ece:.4f} |"
    yield f"| size | | {size(chosen.size_bytes)} |"
    if chosen.latency is not None:
        before = milliseconds(chosen.latency.float_p50_ms)
        yield f"| latency, median | {before} | {milliseconds(chosen.latency.p50_ms)} |"
    yield ""
    yield f"Measured on {now.samples} validation samples that calibration never saw,"
    yield f"digest `{now.samples_digest[:16]}`."
    if chosen.latency is not None:
        machine = markdown(chosen.latency.machine)
        yield f"Latency on {machine}, {target.threads} thread(s)."
    if target.validated_on:
        yield f"It was {markdown(validated(target))}."
    certain = certainty(view(build, target))
    if certain:
        yield markdown(certain)
    yield from _limits(build, target)
    yield from _slices(build, now)
    yield from _made(build, target, chosen)


def _limits(build: BuildOutcome, target: TargetOutcome) -> Iterator[str]:
    rows = budget_rows(view(build, target))
    if not rows:
        return
    yield ""
    yield "## Limits it was held to"
    yield ""
    yield "| limit | allowed | measured |"
    yield "|---|---|---|"
    for row in rows:
        yield f"| {markdown(row['name'])} | {row['allowed']} | {row['measured']} |"


def _slices(build: BuildOutcome, now: Evaluation) -> Iterator[str]:
    for column, values in now.slices.items():
        floats = build.oracle.slices.get(column, {})
        yield ""
        yield f"## By {markdown(column)}"
        yield ""
        yield "| value | samples | float32 | this artifact |"
        yield "|---|---|---|---|"
        for value, score in values.items():
            count = now.slice_counts.get(column, {}).get(value, 0)
            before = value_of(build.metric, floats.get(value))
            after = value_of(build.metric, score)
            yield f"| {markdown(value)} | {count} | {before} | {after} |"


def _made(
    build: BuildOutcome, target: TargetOutcome, chosen: Candidate
) -> Iterator[str]:
    yield ""
    yield "## How it was made"
    yield ""
    for key, value in sorted(chosen.parameters.items()):
        yield f"- {markdown(key)}: {markdown(value)}"
    if chosen.kept_layers:
        yield f"- kept in float: {markdown(', '.join(chosen.kept_layers))}"
    drawn = build.calibration
    yield (
        f"- calibration: {drawn['samples']} samples, {drawn['sampler']}, "
        f"seed {drawn['seed']}, digest `{drawn['digest'][:16]}`"
    )
    yield ""
    yield "## Known gaps"
    yield ""
    rejected = [c for c in target.candidates if c.status in {"missed", "failed"}]
    yield f"- {len(rejected)} other candidates were rejected; the report says why."
    yield "- Data unlike the validation samples was not judged; drift is measured"
    yield "  against `baseline.json`."
