"""A chosen artifact → the members of its bundle."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from device_agent.contract.golden import Bound, write_golden
from device_agent.contract.manifest import (
    CalibrationSet,
    Isa,
    LatencyFigure,
    Limits,
    Manifest,
    Metrics,
    Role,
    RuntimeSpec,
    Score,
    canonical_json,
)
from device_agent.contract.tensors import Array, Feeds, TensorSpec
from device_agent.runtimes.base import Session
from targets.profile import Target

from ..cache import digest_of, tool_versions
from ..candidate import Artifact
from ..model import Step
from ..outcome import BuildOutcome, Candidate, TargetOutcome
from ..recipes.recipe import Recipe
from ..workbench import Subject, Workbench, evaluate_split
from .baseline import baseline
from .bundle import pack
from .card import card_markdown
from .provenance import Component, package_components, provenance, sbom

GOLDEN_VECTORS = 16
GOLDEN_EDGES = ("zeros", "lowest", "highest", "checkerboard")


@dataclass(frozen=True)
class Shipment:
    """What goes into one bundle."""

    recipe: Recipe
    subject: Subject
    build: BuildOutcome
    outcome: TargetOutcome
    candidate: Candidate
    artifact: Artifact
    sources: Mapping[str, str]
    commit: str | None


def bundle_of(ship: Shipment, bench: Workbench) -> bytes:
    """The bundle's bytes; the same shipment gives the same bytes."""
    session = bench.open(ship.artifact)
    try:
        inputs, outputs = session.inputs, session.outputs
        _, answers = evaluate_split(ship.subject, session, None, bench.progress)
        golden = _golden(ship, bench.target, session)
    finally:
        session.close()
    members: dict[str, tuple[Role, bytes]] = {
        f"artifact/{name}": ("artifact", data)
        for name, data in ship.artifact.files.items()
    }
    members["golden.npz"] = ("golden", golden)
    members["baseline.json"] = ("baseline", _baseline(ship, answers))
    if ship.recipe.labels:
        members["labels.json"] = ("labels", canonical_json(list(ship.recipe.labels)))
    members["card.md"] = ("card", card_markdown(ship.build, ship.outcome).encode())
    members["provenance.json"] = ("provenance", _provenance(ship, members))
    members["sbom.json"] = ("sbom", _sbom(ship))
    return pack(_manifest(ship, bench, inputs, outputs), members)


def _manifest(
    ship: Shipment,
    bench: Workbench,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
) -> Manifest:
    recipe, target = ship.recipe, bench.target
    return Manifest(
        name=recipe.model.name,
        version=recipe.model.version,
        release_counter=recipe.model.release_counter,
        target=target.name,
        compatible=target.compatible,
        runtime=RuntimeSpec(
            name=target.runtime,
            min_version=bench.backend.oldest(target) or _minor(bench.runtime_version),
            options=bench.options(ship.artifact),
        ),
        artifact=f"artifact/{ship.artifact.entry}",
        precision=ship.candidate.precision,
        isa=Isa(arch=target.arch, requires=target.isa),
        inputs=inputs,
        outputs=outputs,
        preprocess=recipe.preprocess,
        preprocess_input=recipe.preprocess_input,
        postprocess=recipe.postprocess,
        limits=_limits(ship, target),
        metrics=_metrics(ship),
        calibration=_calibration(ship),
        members=(),
    )


def _golden(ship: Shipment, target: Target, session: Session) -> bytes:
    # An edge that the model answers with NaN proves nothing: NaN equals nothing.
    edges = [
        edge for edge in golden_edges(ship.subject) if _finite(session.predict(edge))
    ]
    feeds = [*spread(ship.subject, GOLDEN_VECTORS - len(edges)), *edges]
    tolerance = target.tolerances[ship.candidate.precision]
    return write_golden(
        feeds,
        [session.predict(feed) for feed in feeds],
        {spec.name: Bound(tolerance.atol, tolerance.rtol) for spec in session.outputs},
    )


def _baseline(ship: Shipment, answers: Mapping[str, Array]) -> bytes:
    split, output = ship.subject.validation, ship.recipe.metric.output
    return canonical_json(baseline(split.feeds, answers, split.labels, output=output))


def spread(subject: Subject, count: int) -> list[Feeds]:
    """So many validation samples, evenly from the first to the last."""
    feeds = subject.validation.feeds
    places = np.linspace(0, len(feeds) - 1, count).round().astype(int)
    return [feeds[place] for place in places]


def golden_edges(subject: Subject) -> list[Feeds]:
    """Inputs at the edges of the samples' range.

    Only floating inputs change; an input of another kind (a sampling rate, a token)
    keeps a sample's value, for not every integer is a valid one.
    """
    samples = spread(subject, GOLDEN_VECTORS)
    low, high = _ranges(samples)
    return [
        {
            name: _edge(kind, array, low[name], high[name])
            if array.dtype.kind == "f"
            else array
            for name, array in samples[0].items()
        }
        for kind in GOLDEN_EDGES
    ]


def _ranges(feeds: Sequence[Feeds]) -> tuple[dict[str, float], dict[str, float]]:
    low = {name: min(float(one[name].min()) for one in feeds) for name in feeds[0]}
    high = {name: max(float(one[name].max()) for one in feeds) for name in feeds[0]}
    return low, high


def _edge(kind: str, array: Array, low: float, high: float) -> Array:
    if kind == "checkerboard":
        flat = np.where(np.arange(array.size) % 2, high, low)
        return flat.reshape(array.shape).astype(array.dtype)
    value = {"zeros": 0.0, "lowest": low, "highest": high}[kind]
    return np.full_like(array, value)


def _finite(run: Mapping[str, Array]) -> bool:
    return all(
        bool(np.isfinite(array).all()) for array in run.values()
        if array.dtype.kind == "f"
    )  # fmt: skip


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _limits(ship: Shipment, target: Target) -> Limits:
    budget = ship.recipe.budget
    return Limits(
        latency_ms=budget.max_latency_ms or 0.0,
        peak_memory_bytes=budget.max_memory_bytes or target.memory_bytes,
    )


def _metrics(ship: Shipment) -> Metrics:
    evaluation, latency = ship.candidate.evaluation, ship.candidate.latency
    assert evaluation is not None, "what ships was judged"
    name = ship.recipe.metric.name
    return Metrics(
        accuracy=Score(
            name=name,
            value=evaluation.metrics[name],
            float_value=ship.build.oracle.metrics[name],
            samples=evaluation.samples,
            samples_digest=evaluation.samples_digest,
            better="lower" if ship.recipe.metric.better == "lower" else "higher",
        ),
        slices=evaluation.slices,
        flip_rate=evaluation.flip_rate,
        ece=evaluation.ece,
        size_bytes=ship.candidate.size_bytes,
        latency=LatencyFigure(
            p50_ms=latency.p50_ms,
            p99_ms=latency.p99_ms,
            threads=latency.threads,
            machine=latency.machine,
        )
        if latency is not None
        else None,
    )


def _calibration(ship: Shipment) -> CalibrationSet | None:
    if ship.candidate.precision in {"fp32", "fp16", "int4"}:
        return None
    drawn = ship.build.calibration
    return CalibrationSet(
        samples=drawn["samples"],
        sampler=drawn["sampler"],
        seed=drawn["seed"],
        digest=drawn["digest"],
    )


def _provenance(ship: Shipment, members: Mapping[str, tuple[Role, bytes]]) -> bytes:
    steps = [*ship.subject.model.lineage, _lowering(ship)]
    return provenance(
        {
            path: digest_of(data)
            for path, (role, data) in members.items()
            if role == "artifact"
        },
        recipe=recipe_facts(ship.recipe),
        recipe_sha256=ship.build.recipe_sha256,
        sources=ship.sources,
        data={
            "calibration": ship.subject.calibration.digest,
            "validation": ship.subject.validation.digest,
        },
        lineage=steps,
        tools=tool_versions(),
        seeds={"build": ship.recipe.seed},
        commit=ship.commit,
        target=ship.outcome.target,
    )


def _lowering(ship: Shipment) -> Step:
    one = ship.candidate
    return Step(
        "lower",
        {
            "backend": ship.outcome.runtime,
            "candidate": one.name,
            "precision": one.precision,
            "kept_layers": list(one.kept_layers),
            **one.parameters,
        },
    )


def recipe_facts(recipe: Recipe) -> dict[str, Any]:
    """The recipe as data, without the folder it lies in."""
    facts = TypeAdapter(Recipe).dump_python(recipe, mode="json")
    facts.pop("folder")
    return json.loads(canonical_json(facts))  # type: ignore[no-any-return]


def _sbom(ship: Shipment) -> bytes:
    model = ship.recipe.model
    data = [
        Component(name=name, kind="data", sha256=split.digest)
        for name, split in (
            ("calibration", ship.subject.calibration),
            ("validation", ship.subject.validation),
        )
    ]
    subject = Component(
        name=model.name,
        version=model.version,
        kind="machine-learning-model",
        sha256=ship.artifact.digest,
    )
    return sbom(subject, [*data, *package_components(tool_versions())])
