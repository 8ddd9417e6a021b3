"""Searches the variations of a recipe under its budget, target by target.

1. Trials, until there were enough, time is up or every point was tried. A search that
   was killed goes on with the trial that it was at.
2. Of the trials that hold the budget on the search's samples the best is built as
   ``edgeml build`` builds it, on all validation samples, and must hold it there.
   Where it does not, the next best is.
3. Where nothing holds the budget, the nearest point is built for the report, which
   says what it misses and by how much; nothing ships unless it holds on all samples.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from targets.profile import Target, load_target

from ..cache import sweep
from ..choice import allowed_drop
from ..errors import BackendError
from ..evaluation.measure import machine_name
from ..outcome import BuildOutcome, Evaluation, SearchOutcome, SearchTrial
from ..passing import channel_multiple
from ..pipeline import Place, write_reports
from ..progress import Progress
from ..recipes.recipe import Recipe, SearchOptions, read_recipe
from ..recipes.sources import source_digests
from .front import nearest, objectives, ranked, told, with_front
from .ground import Ground
from .judge import Judge, able, base_of
from .space import AXES, Point, Space, space_of
from .study import Study, opened, optuna_here
from .variation import shaped, varied, without_qat

REVALIDATED = 5
"""So many of the points that hold the budget on the search's samples are built."""


@dataclass(frozen=True)
class Limits:
    """What the command line says in place of the recipe; None: what the recipe says."""

    trials: int | None = None
    minutes: float | None = None


class Search:
    """One search of one recipe."""

    def __init__(
        self,
        path: Path,
        place: Place,
        progress: Progress,
        *,
        targets: Sequence[str] = (),
        trust_model_code: bool = False,
        limits: Limits | None = None,
    ) -> None:
        self._path = path
        self._place = place
        self._progress = progress
        self._trust = trust_model_code
        recipe = read_recipe(path)
        self._limits = limits or Limits()
        self._table = recipe.search is not None
        self._options = _limited(recipe.search or SearchOptions(), self._limits)
        self.recipe: Recipe = replace(recipe, search=self._options)
        self._targets = tuple(targets) or recipe.targets

    @property
    def folder(self) -> Path:
        """Where bundles and report of this release lie."""
        model = self.recipe.model
        return self._place.out / f"{model.name}-{model.version}"

    def run(self) -> BuildOutcome:
        """Search for every target; write bundles and report.

        Raises:
            EdgemlError: the model, the data or the machine is refused, or no point
                could be built at all. A target for which no point holds the budget is
                part of the outcome instead.
        """
        optuna_here()
        sweep(self._place.out)
        found = [self._target(name) for name in self._targets]
        outcome = _merged(found)
        write_reports(self.folder, outcome)
        return outcome

    def _target(self, name: str) -> BuildOutcome:
        target = load_target(name, self.recipe.folder)
        ground = Ground(self._path, self._place, self._progress, name, self._trust)
        recipe = without_qat(self.recipe)
        whole = shaped(varied(recipe, _whole(recipe)), channel_multiple(recipe))
        self._progress.stage(f"{target.name}: reading model and data")
        try:
            stage = ground.stage(whole, target)
            base = base_of(stage)
        except BackendError as error:
            build = ground.build(whole, self._command(name), self._progress)
            return build.refused(ground.splits(whole), [str(error)])
        space = space_of(self.recipe, able(stage.bench, self.recipe.quantize))
        judge = Judge(ground, self.recipe, target, base)
        with opened(
            self._file(ground, target, space), space, self.recipe.seed
        ) as study:
            self._explore(study, space, judge, target)
            # A longer search of before does not change what a shorter one finds.
            trials = study.records[: self._options.trials]
        return self._settled(trials, space, ground, target)

    def _file(self, ground: Ground, target: Target, space: Space) -> Path:
        """Where the study is kept: one for all that its trials depend on.

        How long is searched is not among it: a longer search goes on with a shorter.
        """
        key = self._place.cache.key(
            "search",
            recipe=replace(self.recipe, search=None, folder=Path()),
            sources=source_digests(self.recipe),
            data=[
                ground.splits(varied(self.recipe, one)).digest
                for one in (space.points[0], space.points[-1])
            ],
            target=target,
            space=space,
            trusted=self._trust,
            machine=machine_name(),
            optuna=optuna_here().__version__,
        )
        return self._place.cache.folder / "search" / f"{key}.sqlite"

    def _explore(
        self, study: Study, space: Space, judge: Judge, target: Target
    ) -> None:
        options = self._options
        total = min(options.trials, len(space.points))
        while (number := len(study.records)) < total:
            if options.minutes and study.seconds >= options.minutes * 60:
                self._say(target, f"{options.minutes:g} minutes are up")
                break
            asked = study.ask()
            assert asked is not None, "there are points that were not tried"
            trial, point = asked
            self._progress.stage(
                f"{target.name}: trial {number + 1} of {total}: {point.text}"
            )
            started = time.monotonic()
            record = judge.judged(number, point, spared=number < len(space.opening))
            measured = record.latency_ms is not None
            values = objectives(record, self.recipe.metric) if measured else None
            study.tell(trial, record, values, time.monotonic() - started)
            self._say(target, _line(record, self.recipe.metric.name))

    def _settled(
        self, trials: list[SearchTrial], space: Space, ground: Ground, target: Target
    ) -> BuildOutcome:
        """The outcome of the target: the best trial that holds on all samples, built.

        Raises:
            BackendError: nothing could be built at all.
        """
        order = [one for one, _ in ranked(trials, self.recipe.metric)][:REVALIDATED]
        if not order:
            near = nearest([one for one in trials if one.value is not None])
            if near is None:
                raise BackendError(_nothing(trials))
            order = [near]
        for number, one in enumerate(order, 1):
            self._progress.stage(
                f"{target.name}: point {number} of {len(order)} on all samples: "
                f"{one.name}"
            )
            found = self._built(one, ground)
            (built,) = found.targets
            ships = built.bundle_file is not None
            trials = _noted(trials, one, ships, built.choice_reason)
            if ships:
                break
        why = f"{one.name}: {built.choice_reason}" if ships else _why_none(trials)
        search = self._told(trials, space, self._oracle(one, ground, target))
        search = replace(search, chosen=one.number if ships else None)
        built = replace(built, search=search, choice_reason=why)
        return replace(found, targets=(built,))

    def _built(self, trial: SearchTrial, ground: Ground) -> BuildOutcome:
        point = Point(**trial.point)
        recipe = varied(self.recipe, point, trial.kept_layers)
        build = ground.build(recipe, self._command(ground.name), self._progress)
        return build.shipped(ground.splits(recipe))

    def _oracle(self, trial: SearchTrial, ground: Ground, target: Target) -> Evaluation:
        """The float model on the search's samples: what trials were compared with."""
        point = Point(**trial.point)
        recipe = varied(without_qat(self.recipe), point)
        return ground.stage(recipe, target).reference.evaluation

    def _told(
        self, trials: Sequence[SearchTrial], space: Space, oracle: Evaluation
    ) -> SearchOutcome:
        metric = self.recipe.metric
        value = oracle.metrics[metric.name]
        drop = allowed_drop(oracle, self.recipe.budget, metric)
        return SearchOutcome(
            trials=with_front(trials, metric),
            space={axis: list(space.values(axis)) for axis in AXES},
            points=len(space.points),
            samples=oracle.samples,
            samples_digest=oracle.samples_digest,
            float_value=value,
            worst_value=value - drop if metric.better == "higher" else value + drop,
        )

    def _command(self, target: str) -> str:
        """What makes this outcome again."""
        given = vars(self._limits).items()
        words = [f"--{name} {value:g}" for name, value in given if value is not None]
        if self._targets != self.recipe.targets:
            words += [f"--target {target}"]
        words += ["--trust-model-code"] if self._trust else []
        verb = "build" if self._table and self._limits == Limits() else "search"
        return " ".join([f"edgeml {verb} {self._path.name}", *words])

    def _say(self, target: Target, text: str) -> None:
        self._progress.result(f"{target.name}: {text}")


def _limited(options: SearchOptions, limits: Limits) -> SearchOptions:
    given: dict[str, Any] = {
        name: value for name, value in vars(limits).items() if value is not None
    }
    return replace(options, **given)


def _whole(recipe: Recipe) -> Point:
    """The network as whole as the search has it, in float32."""
    options = recipe.search or SearchOptions()
    trained = recipe.data.train is not None
    prune = min(options.prune, default=0.0) if options.prune or trained else None
    distill = False if options.distill or trained else None
    return Point(prune, distill, "fp32")


def _merged(outcomes: Sequence[BuildOutcome]) -> BuildOutcome:
    """One outcome for all targets; facts on the network are those of the first."""
    first = next((one for one in outcomes if one.targets[0].search), outcomes[0])
    targets = tuple(target for one in outcomes for target in one.targets)
    commands = tuple(dict.fromkeys(line for one in outcomes for line in one.reproduce))
    warnings = dict.fromkeys(text for one in outcomes for text in one.warnings)
    facts = {repr((one.model_summary, one.calibration)) for one in outcomes
             if one.targets[0].search}  # fmt: skip
    if len(facts) > 1:
        note = (
            "the targets ship different points: what is said of model and "
            f"calibration set is of {first.targets[0].target}; each bundle has its own"
        )
        warnings[note] = None
    return replace(first, targets=targets, reproduce=commands, warnings=tuple(warnings))


def _noted(
    trials: Sequence[SearchTrial], about: SearchTrial, ships: bool, reason: str
) -> list[SearchTrial]:
    """The trials with what became of one of them on all samples."""
    if ships:
        note = "holds the budget on all samples"
        if about.reason:
            note += f"; on the search's: {about.reason}"
        now = replace(about, status="chosen", reason=note)
    elif about.status == "fits":
        now = replace(about, status="refuted", reason=f"on all samples: {reason}")
    else:
        now = about
    return [now if one is about else one for one in trials]


def _why_none(trials: Sequence[SearchTrial]) -> str:
    refuted = [one for one in trials if one.status == "refuted"]
    if refuted:
        one = refuted[0]
        return (
            f"no point of the search holds the budget on all samples; nearest is "
            f"{one.name}: {one.reason}"
        )
    near = nearest(trials)
    assert near is not None, "some trial was measured and missed a limit"
    misses = "; ".join(map(told, near.misses))
    return f"no point of the search holds the budget; nearest is {near.name}: {misses}"


def _nothing(trials: Sequence[SearchTrial]) -> str:
    reasons = [one.reason for one in trials if one.status == "failed"]
    first = next(iter(reasons), "no trial was made")
    return f"no point of the search could be built; the first: {first}"


def _line(trial: SearchTrial, metric: str) -> str:
    """A trial in one line."""
    text = f"{trial.number + 1} {trial.name}: "
    if trial.value is None or trial.size_bytes is None:
        return f"{text}{trial.status}: {trial.reason}"
    speed = "" if trial.latency_ms is None else f", {trial.latency_ms:.3g} ms"
    misses = "".join(f", misses {miss.limit}" for miss in trial.misses)
    return (
        f"{text}{metric} {trial.value:.4f}{speed}, "
        f"{trial.size_bytes / 1024:.0f} KiB{misses}"
    )
