"""Tries a target's candidates in a sensible order and says what became of each.

1. Float candidates first; the float32 one is what everything else is timed against.
2. Every quantized candidate is made and ranked by a cheap proxy (output SQNR on
   calibration samples). The best few go on, and so do the defaults of the tools that
   people would use instead: by construction we ship nothing worse than those.
3. Accuracy, flips and slices on validation samples; latency and memory only for what
   could still ship, and for what the report compares with.
4. When the recipe has a pass ``qat``, the most accurate int8 candidate that can be
   trained is, or where none of these was judged the best by the proxy.
5. When no quantized candidate holds the accuracy limits, the layers that add most
   error go back to float, one group at a time, until it holds or is not worth it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .candidate import Artifact, QuantizeOptions, Spec
from .choice import (
    OF_DEVICE,
    choose,
    float_fits,
    gate,
    is_slower,
    mark_slower,
    score,
)
from .errors import BackendError, ModelError, PassError
from .model import Model
from .outcome import Candidate, TargetOutcome
from .recipes.recipe import Budget
from .tuning import Tuner
from .workbench import Reference, Workbench, described

FINALISTS = 2
"""Of each kind of arithmetic so many go on after the proxy, besides the defaults."""
HOPELESS_DB = 12.0
"""A candidate this far behind the best by SQNR is not evaluated."""
RESCUE_SHARES = (0.03, 0.08, 0.16, 0.3, 0.5)
"""Shares of the quantized layers that are put back to float, step by step."""
RESCUED_BASES = 2
NOT_SHIPPED = "for comparison only: it can saturate on hosts that the target allows"
BETTER_DB = 0.5
"""What a step of the rescue must gain by the proxy to be worth an evaluation."""
ACCURACY_LIMITS = {"max_accuracy_drop", "max_slice_drop", "max_flip_rate"}


@dataclass(frozen=True)
class Tried:
    """A candidate with the bytes that it stands for."""

    spec: Spec
    candidate: Candidate
    artifact: Artifact | None = None


@dataclass(frozen=True)
class Verdict:
    """What a target ends with: the record, and the artifact that ships, if any."""

    outcome: TargetOutcome
    artifact: Artifact | None


class Trial:
    """One target's candidates, from the first try to the choice."""

    def __init__(
        self,
        bench: Workbench,
        reference: Reference,
        budget: Budget,
        options: QuantizeOptions,
        tuner: Tuner | None = None,
    ) -> None:
        self._bench = bench
        self._reference = reference
        self._budget = budget
        self._options = options
        self._tuner = tuner
        self._float: Artifact | None = None
        unseen = () if bench.host.timed else OF_DEVICE
        self._unchecked = tuple(
            limit for limit in unseen if getattr(budget, limit) is not None
        )

    def run(self) -> Verdict:
        """Try everything; choose."""
        bench = self._bench
        specs = bench.backend.specs(bench.subject.model, bench.target, self._options)
        floats = [spec for spec in specs if spec.quantizer is None]
        others = [spec for spec in specs if spec.quantizer is not None]
        tried = [self._judge(self._made(spec)) for spec in floats]
        tried += self._quantized(others)
        tried += self._tuned(tried)
        if self._may_mix() and not self._holds_accuracy(tried):
            tried += self._rescue(tried)
        return self._verdict(tried)

    def _made(self, spec: Spec) -> Tried:
        """Make the artifact; a failure is a fact about this candidate, not the end."""
        self._bench.progress.stage(f"{self._bench.target.name}: making {spec.name}")
        blank = self._bench.blank(spec)
        try:
            artifact = self._bench.make(spec)
        except BackendError as error:
            if spec.precision == "fp32":
                raise
            self._say(spec.name, f"failed: {error}")
            return Tried(spec, replace(blank, status="failed", reason=str(error)))
        if spec.precision == "fp32":
            self._float = artifact
        return Tried(spec, described(blank, artifact), artifact)

    def _quantized(self, specs: Sequence[Spec]) -> list[Tried]:
        made = [self._proxied(self._made(spec)) for spec in specs]
        made = _without_twins(made)
        best = max((_ratio(one) for one in made if one.artifact), default=0.0)
        go_on = {one.spec.name for one in _finalists(made, best)}
        return [
            self._judge(one)
            if one.spec.name in go_on
            else one
            if one.artifact is None
            else _skipped(one, best)
            for one in made
        ]

    def _proxied(self, tried: Tried) -> Tried:
        if tried.artifact is None:
            return tried
        try:
            ratio = self._bench.proxy_db(tried.artifact, self._reference)
        except BackendError as error:
            return _failed(tried, str(error))
        return replace(tried, candidate=replace(tried.candidate, proxy_sqnr_db=ratio))

    def _judge(self, tried: Tried) -> Tried:
        """Everything that is measured of a candidate, and the gates."""
        bench, artifact = self._bench, tried.artifact
        if artifact is None or self._float is None:
            return tried
        bench.progress.stage(f"{bench.target.name}: judging {tried.spec.name}")
        try:
            candidate = replace(
                tried.candidate,
                evaluation=bench.evaluate(artifact, self._reference),
                layer_errors=()
                if tried.spec.quantizer in (None, "qat")  # trained: not comparable
                else bench.layer_errors(artifact),
            )
            if bench.host.timed:
                candidate = self._measured(candidate, artifact, self._float)
        except BackendError as error:
            if tried.spec.precision == "fp32":
                raise  # without it nothing can be compared
            return _failed(tried, str(error))
        candidate = self._gated(candidate)
        self._tell(candidate)
        if candidate.status == "fits" and not tried.spec.ships:
            candidate = replace(candidate, status="skipped", reason=NOT_SHIPPED)
        return replace(tried, candidate=candidate)

    def _measured(
        self, candidate: Candidate, artifact: Artifact, floating: Artifact
    ) -> Candidate:
        """With what only the target's device, or one of its kind, can tell."""
        memory, load_ms = self._bench.memory(artifact)
        return replace(
            candidate,
            latency=self._bench.latency(artifact, floating),
            coverage=self._bench.coverage(artifact),
            peak_memory_bytes=memory,
            load_ms=load_ms,
        )

    def _gated(self, candidate: Candidate) -> Candidate:
        misses = gate(
            candidate,
            self._reference.evaluation,
            self._budget,
            self._bench.subject.metric,
            self._unchecked,
        )
        return replace(
            candidate,
            misses=misses,
            status="missed" if misses else "fits",
            reason="; ".join(miss.text for miss in misses),
        )

    def _tuned(self, tried: Sequence[Tried]) -> list[Tried]:
        """QAT of the most accurate int8 candidate that can be trained.

        That there is none, or that the training failed, is a failed candidate.
        """
        if self._tuner is None:
            return []
        bench, spec = self._bench, Spec("int8 qat", "int8", "qat")
        try:
            base, graph = self._trainable(self._tuner, tried)
            short = base.spec.name.removeprefix("int8 ")
            name, given = f"int8 qat (from {short})", {"from": base.spec.name}
            spec = replace(spec, name=name, parameters=given, keep=base.spec.keep)
            bench.progress.stage(f"{bench.target.name}: training {spec.name}")
            trained = self._tuner.tuned(graph, bench.progress)
            facts = {**given, **trained.lineage[-1].parameters}
            spec = replace(spec, parameters=facts)
            artifact = bench.retrained(trained, spec, base.spec)
        except (BackendError, ModelError, PassError) as error:
            self._say(spec.name, f"failed: {error}")
            return [_failed(Tried(spec, bench.blank(spec)), str(error))]
        candidate = described(bench.blank(spec), artifact)
        return [self._judge(self._proxied(Tried(spec, candidate, artifact)))]

    def _trainable(self, tuner: Tuner, tried: Sequence[Tried]) -> tuple[Tried, Model]:
        """The base, and its quantized graph.

        Raises:
            BackendError: no candidate has one in the wanted scheme.
        """
        made = [
            one
            for one in tried
            if one.spec.precision == "int8" and one.spec.ships and one.artifact
        ]
        judged = [one for one in made if one.candidate.evaluation is not None]
        judged.sort(key=lambda one: -score(one.candidate, self._bench.subject.metric))
        # what the proxy gave up is what training can do most for
        rest = [one for one in made if one.candidate.evaluation is None]
        why = ""
        for one in [*judged, *sorted(rest, key=lambda one: -_ratio(one))]:
            assert one.artifact is not None, "it was made"
            try:
                graph = self._bench.trainable(one.spec, one.artifact)
            except BackendError as error:
                why = f"; {one.spec.name}: {error}"
                continue
            if graph is not None and tuner.takes(graph):
                return one, graph
        scheme = tuner.parameters["scheme"]
        raise BackendError(
            f"qat begins from an int8 candidate with a quantized ONNX graph (scheme "
            f"{scheme}); {self._bench.target.name} has none{why}"
        )

    def _may_mix(self) -> bool:
        wanted = self._options.precisions
        return (
            self._options.mixed
            and (not wanted or "mixed" in wanted)
            and "mixed" in self._bench.target.precisions
        )

    def _holds_accuracy(self, tried: Sequence[Tried]) -> bool:
        quantized = [one for one in tried if one.spec.quantizer and one.spec.ships]
        return not quantized or any(
            one.candidate.evaluation is not None
            and not ACCURACY_LIMITS & {miss.limit for miss in one.candidate.misses}
            for one in quantized
        )

    def _rescue(self, tried: Sequence[Tried]) -> list[Tried]:
        """Mixed precision from the most accurate quantized candidates.

        A step that is not clearly better by the proxy is not evaluated; a base whose
        mixed candidates are slower than float32 has nothing to give.
        """
        judged = [
            one
            for one in tried
            if one.spec.precision == "int8"
            and one.spec.ships
            and one.candidate.layer_errors
        ]
        judged.sort(key=lambda one: -score(one.candidate, self._bench.subject.metric))
        rescued: list[Tried] = []
        for base in judged[:RESCUED_BASES]:
            best = _ratio(base)
            for keep in _keeps(base.candidate):
                one = self._proxied(self._made(_mixed(base.spec, keep)))
                if one.artifact is None or _ratio(one) < best + BETTER_DB:
                    rescued.append(one if one.artifact is None else _skipped(one, best))
                    continue
                best = _ratio(one)
                one = self._judge(one)
                rescued.append(one)
                if self._holds_accuracy([one]):
                    return rescued
                if is_slower(one.candidate) and float_fits(
                    [other.candidate for other in tried]
                ):
                    break
        return rescued

    def _verdict(self, tried: Sequence[Tried]) -> Verdict:
        bench = self._bench
        candidates = mark_slower([one.candidate for one in tried])
        chosen, why = choose(candidates, bench.subject.metric, bench.target.preference)
        if chosen is not None:
            candidates = [
                replace(one, status="chosen") if one.name == chosen.name else one
                for one in candidates
            ]
        artifact = next(
            (one.artifact for one in tried if chosen and one.spec.name == chosen.name),
            None,
        )
        outcome = TargetOutcome(
            target=bench.target.name,
            runtime=bench.target.runtime,
            candidates=tuple(candidates),
            chosen=chosen.name if chosen else None,
            choice_reason=why,
            artifact_entry=artifact.entry if artifact else None,
            threads=bench.target.threads,
            validated_on=bench.host.validated_on,
            unchecked=self._unchecked,
        )
        return Verdict(outcome, artifact)

    def _tell(self, one: Candidate) -> None:
        metric = self._bench.subject.metric.name
        assert one.evaluation is not None, "what is told was judged"
        took = f"{one.latency.p50_ms:.3g} ms, " if one.latency else ""
        self._say(
            one.name,
            f"{metric} {one.evaluation.metrics[metric]:.4f}, {took}"
            f"{one.size_bytes / 1024:.0f} KiB"
            + "".join(f", misses {miss.limit}" for miss in one.misses),
        )

    def _say(self, name: str, text: str) -> None:
        self._bench.progress.result(f"{self._bench.target.name}: {name}: {text}")


def _keeps(candidate: Candidate) -> list[tuple[str, ...]]:
    """Growing groups of layers to put back to float, most added error first."""
    names = [error.node for error in candidate.layer_errors]
    counts = sorted({max(1, round(share * len(names))) for share in RESCUE_SHARES})
    return [tuple(names[:count]) for count in counts]


def _finalists(made: Sequence[Tried], best: float) -> list[Tried]:
    """The tools' defaults, and the best of each kind of arithmetic by the proxy.

    Kinds differ in speed, which the proxy cannot see: the most exact candidate of a
    fast kind must not lose to those of a slow one before it was timed.
    """
    kinds: dict[str, list[Tried]] = {}
    for one in made:
        if one.artifact is not None:
            kinds.setdefault(arithmetic(one.spec), []).append(one)
    ranked = [sorted(kind, key=lambda one: -_ratio(one)) for kind in kinds.values()]
    hopeful = [
        one
        for kind in ranked
        for one in kind[:FINALISTS]
        if _ratio(one) > best - HOPELESS_DB
    ]
    return hopeful + [one for one in made if one.artifact and _is_default(one.spec)]


def arithmetic(spec: Spec) -> str:
    """What a candidate's speed depends on, its network aside."""
    words = ("activation", "weight", "reduce_range", "overflow_safe", "operators",
             "constant_only", "level")  # fmt: skip
    found = [spec.parameters.get(word) for word in words]
    return repr([spec.precision, spec.quantizer, *found])


def _ratio(tried: Tried) -> float:
    return tried.candidate.proxy_sqnr_db or 0.0


def _is_default(spec: Spec) -> bool:
    return spec.name.endswith("default")


def _mixed(spec: Spec, keep: tuple[str, ...]) -> Spec:
    kept = (*spec.keep, *(name for name in keep if name not in spec.keep))
    return replace(
        spec,
        name=f"mixed {spec.name}, {len(kept)} layers float",
        precision="mixed",
        keep=kept,
    )


def _without_twins(made: Sequence[Tried]) -> list[Tried]:
    """Candidates whose bytes another one has already are skipped, and say so.

    The tools' defaults stay: the report compares with them by name.
    """
    seen: dict[str, str] = {}
    rest = []
    for one in sorted(made, key=lambda one: not _is_default(one.spec)):
        if one.artifact is None:
            rest.append(one)
            continue
        key = one.artifact.digest + repr(sorted(one.artifact.options.items()))
        if key in seen:
            reason = f"same bytes as {seen[key]}"
            skipped = replace(one.candidate, status="skipped", reason=reason)
            rest.append(Tried(one.spec, skipped))
        else:
            seen[key] = one.spec.name
            rest.append(one)
    order = {one.spec.name: place for place, one in enumerate(made)}
    return sorted(rest, key=lambda one: order[one.spec.name])


def _skipped(tried: Tried, best: float) -> Tried:
    ratio = tried.candidate.proxy_sqnr_db
    reason = f"output SQNR {ratio:.1f} dB on calibration samples, best {best:.1f} dB"
    return replace(
        tried, candidate=replace(tried.candidate, status="skipped", reason=reason)
    )


def _failed(tried: Tried, reason: str) -> Tried:
    return Tried(tried.spec, replace(tried.candidate, status="failed", reason=reason))
