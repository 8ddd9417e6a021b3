"""What a point is worth, the cheapest questions first.

1. Before anything is trained for the point: the network in its final shape. Its work
   and its weights bound latency and size from below; a point that cannot hold these
   limits is given up.
2. The network is trained, where the point says so. Trials that share a network share
   its training: it is cached by what it depends on.
3. Accuracy of the quantized artifact on the search's samples. What loses hopelessly is
   not timed.
4. Latency on the target's runtime, and memory where it is limited.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from targets.profile import Target

from ..candidate import Artifact, QuantizeOptions, Spec
from ..choice import choose, gate
from ..errors import BackendError, ModelError, PassError, one_line
from ..outcome import Candidate, Miss, SearchTrial, Tried
from ..passing import Imported
from ..recipes.recipe import Recipe
from ..recipes.schema import METHODS
from ..trial import ACCURACY_LIMITS, HOPELESS_DB, arithmetic
from ..workbench import Workbench
from .front import excess
from .ground import Ground, Stage
from .space import CALIBRATED, Point
from .variation import varied, without_qat

BITS = {"fp32": 32, "fp16": 16, "int8": 8, "int8-dynamic": 8}
"""Of a weight, at best; else 4."""
SPEED_UP = {"fp32": 1.0, "fp16": 2.0}
"""Against float32 on the same network, at best; else 4, and rarely half of that."""
LATENCY_MARGIN = 1.5
SIZE_MARGIN = 1.1
"""A point is given up when even its bound misses the limit so many times."""
HOPELESS = 3.0
"""A candidate that loses more than so many times the allowed drop is not timed."""
FLOAT = Spec("fp32", "fp32")


@dataclass(frozen=True)
class Base:
    """The network that bounds are scaled from, as it runs on the target in float32."""

    latency_ms: float
    macs: int
    overhead_bytes: int
    """Of the artifact, besides its weights."""


class Judge:
    """Judges points of one recipe for one target."""

    def __init__(
        self, ground: Ground, recipe: Recipe, target: Target, base: Base
    ) -> None:
        self._ground = ground
        self._recipe = without_qat(recipe)
        self._target = target
        self._base = base
        self._works: dict[tuple[float | None, bool | None], tuple[int, int]] = {}

    def judged(self, number: int, point: Point, *, spared: bool = False) -> SearchTrial:
        """What became of a point.

        Args:
            number: the number of the trial.
            point: what to judge.
            spared: whether it is measured however bad its bounds are.
        """
        blank = SearchTrial(
            number, point.text, point.values, "failed", precision=point.precision
        )
        try:
            bounded = self._bounded(blank, point)
            misses = () if spared else self._hopeless(bounded)
            if misses:
                bounds = _texts(misses).replace(", measured", ", at best")
                reason = f"before any training: {bounds}"
                return replace(bounded, status="pruned", reason=reason, misses=misses)
            return self._measured(bounded, point)
        except (BackendError, ModelError, PassError) as error:
            return replace(blank, reason=one_line(error))

    def _bounded(self, trial: SearchTrial, point: Point) -> SearchTrial:
        network = point.prune, point.distill
        if network not in self._works:
            shape = self._ground.shape(varied(self._recipe, point))
            self._works[network] = _work(shape)
        macs, weights = self._works[network]
        share = macs / self._base.macs if self._base.macs else 1.0
        precision = point.precision
        best_ms = self._base.latency_ms * share / SPEED_UP.get(precision, 4.0)
        size = self._base.overhead_bytes + weights * BITS.get(precision, 4) // 32
        return replace(
            trial, macs=macs, predicted_latency_ms=round(best_ms, 6),
            predicted_size_bytes=size,
        )  # fmt: skip

    def _hopeless(self, trial: SearchTrial) -> tuple[Miss, ...]:
        budget = self._recipe.budget
        limits = (
            ("max_latency_ms", budget.max_latency_ms, trial.predicted_latency_ms,
             LATENCY_MARGIN),
            ("max_size_bytes", budget.max_size_bytes, trial.predicted_size_bytes,
             SIZE_MARGIN),
        )  # fmt: skip
        return tuple(
            Miss(limit, allowed, found)
            for limit, allowed, found, margin in limits
            if allowed is not None and found is not None and found > allowed * margin
        )

    def _measured(self, trial: SearchTrial, point: Point) -> SearchTrial:
        stage = self._ground.stage(varied(self._recipe, point), self._target)
        keep: tuple[str, ...] = ()
        if point.keep:
            keep = self._sensitive(stage, point)
        options = varied(self._recipe, point, keep).quantize
        finalists = _finalists(_made(stage, point.precision, options))
        judged = [self._candidate(stage, *one) for one in finalists]
        best = self._best(judged)
        metric = self._recipe.metric.name
        assert best.evaluation is not None, "finalists are evaluated"
        return replace(
            trial,
            status=_status(best),
            reason=_texts(best.misses),
            candidate=best.name,
            kept_layers=keep,
            value=best.evaluation.metrics[metric],
            flip_rate=best.evaluation.flip_rate,
            latency_ms=best.latency.p50_ms if best.latency else None,
            float_latency_ms=best.latency.float_p50_ms if best.latency else None,
            size_bytes=best.size_bytes,
            misses=best.misses,
        )

    def _sensitive(self, stage: Stage, point: Point) -> tuple[str, ...]:
        """The layers that add most error when all are quantized."""
        options = varied(self._recipe, point).quantize
        made = _made(stage, point.precision, options)
        _, artifact, _ = max(made, key=lambda one: one[2])
        found = stage.bench.layer_errors(artifact)
        return tuple(error.node for error in found[: point.keep])

    def _candidate(self, stage: Stage, spec: Spec, artifact: Artifact) -> Candidate:
        bench, budget = stage.bench, self._recipe.budget
        candidate = replace(
            bench.blank(spec),
            artifact_sha256=artifact.digest,
            size_bytes=artifact.size_bytes,
            evaluation=bench.evaluate(artifact, stage.reference),
        )
        lost = [one for one in self._gated(stage, candidate).misses
                if one.limit in ACCURACY_LIMITS]  # fmt: skip
        if any(excess(miss) > HOPELESS for miss in lost):
            return replace(candidate, status="missed", misses=tuple(lost))
        floating = bench.make(FLOAT)
        candidate = replace(candidate, latency=bench.latency(artifact, floating))
        if budget.max_memory_bytes is not None:
            memory, load_ms = bench.memory(artifact)
            candidate = replace(candidate, peak_memory_bytes=memory, load_ms=load_ms)
        if budget.max_fallback_share is not None:
            candidate = replace(candidate, coverage=bench.coverage(artifact))
        return self._gated(stage, candidate)

    def _gated(self, stage: Stage, candidate: Candidate) -> Candidate:
        misses = gate(
            candidate, stage.reference.evaluation, self._recipe.budget,
            self._recipe.metric,
        )  # fmt: skip
        return replace(candidate, misses=misses, status="missed" if misses else "fits")

    def _best(self, judged: Sequence[Candidate]) -> Candidate:
        """The one that a build would choose; else the one that misses least."""
        chosen, _ = choose(judged, self._recipe.metric)
        return chosen or min(
            judged,
            key=lambda one: (one.latency is None, sum(map(excess, one.misses))),
        )


def base_of(stage: Stage) -> Base:
    """The float32 figures of a network on the target."""
    artifact = stage.bench.make(FLOAT)
    macs, weights = _work(stage.imported)
    return Base(
        stage.bench.latency(artifact, artifact).p50_ms, macs,
        max(0, artifact.size_bytes - weights),
    )  # fmt: skip


def able(
    bench: Workbench, quantize: QuantizeOptions
) -> list[tuple[str, tuple[str, ...]]]:
    """Precisions that a target can be built in, each with its calibration methods.

    With the quantizers that the recipe allows, and what else it tells them.
    """
    model, target = bench.subject.model, bench.target
    found = []
    for precision in target.precisions:
        if precision == "mixed":
            continue
        options = replace(quantize, precisions=(precision,), methods=())
        methods = METHODS if precision in CALIBRATED else ()
        with_method = [(one, replace(options, methods=(one,))) for one in methods]
        there = tuple(
            method
            for method, asked in with_method
            if _specs(bench.backend.specs(model, target, asked), precision)
        )
        if there or _specs(bench.backend.specs(model, target, options), precision):
            found.append((precision, there))
    return found


def _specs(specs: Sequence[Spec], precision: str) -> list[Spec]:
    """The specs of a precision that may ship and are quick to make.

    Bias correction layer by layer takes minutes; it is left to the build.
    """
    return [
        one
        for one in specs
        if one.precision == precision
        and one.ships
        and not one.refused
        and one.parameters.get("fast_bias_correction", True) is not False
    ]


def _made(
    stage: Stage, precision: str, options: QuantizeOptions
) -> list[tuple[Spec, Artifact, float]]:
    """Artifacts of a precision, each with its proxy: output SQNR in dB.

    Raises:
        BackendError: none could be made; the text is of the first.
    """
    bench, made, reasons = stage.bench, [], []
    specs = bench.backend.specs(bench.subject.model, bench.target, options)
    for spec in _specs(specs, precision):
        try:
            artifact = bench.make(spec)
            made.append((spec, artifact, bench.proxy_db(artifact, stage.reference)))
        except BackendError as error:
            reasons.append(str(error))
    if not made:
        refused = [one.refused for one in specs if one.refused]
        raise BackendError(next(iter([*reasons, *refused]), f"no {precision} here"))
    return made


def _finalists(
    made: Sequence[tuple[Spec, Artifact, float]],
) -> list[tuple[Spec, Artifact]]:
    """Of each kind of arithmetic the most exact one, unless it is hopeless."""
    best: dict[str, tuple[Spec, Artifact, float]] = {}
    for one in sorted(made, key=lambda one: -one[2]):
        best.setdefault(arithmetic(one[0]), one)
    top = max(ratio for _, _, ratio in best.values())
    return [
        (spec, artifact)
        for spec, artifact, ratio in best.values()
        if ratio > top - HOPELESS_DB
    ]


def _work(imported: Imported) -> tuple[int, int]:
    """Multiply-accumulates of one inference, and bytes of the float32 weights."""
    return imported.summary["macs"], imported.summary["weight_bytes"]


def _status(candidate: Candidate) -> Tried:
    if candidate.latency is None:
        return "pruned"
    return "missed" if candidate.misses else "fits"


def _texts(misses: Sequence[Miss]) -> str:
    return "; ".join(miss.text for miss in misses)
