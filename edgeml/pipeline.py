"""Runs a recipe: data, model, passes, oracle, candidates per target, bundles, report.

The rules it keeps:

1. Every stage's result is cached by the digest of what it depends on, so that a build
   which was killed goes on where it was and gives the same bytes.
2. A target that is refused or misses a limit does not stop the others.
3. Nothing is written to the output folder before it is whole.
"""

import io
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from calibration.dataset import Dataset, check_disjoint
from calibration.sampler import coverage, draw
from device_agent.contract import machine
from device_agent.contract.tensors import Array
from device_agent.runtimes import runtime
from targets.profile import Target, load_target

from .backends import backend
from .bundling.packing import Shipment, bundle_of
from .cache import (
    Cache,
    digest_of,
    file_digest,
    place,
    sweep,
    tool_versions,
    write_atomic,
)
from .choice import allowed_drop
from .errors import BackendError, MachineLacks
from .evaluation.measure import Measurements, machine_name
from .imported import Imported, graph_of
from .outcome import BuildOutcome, Evaluation, TargetOutcome
from .progress import Progress
from .recipes.data import RANDOM, Splits, load_splits, splits_identity
from .recipes.feeds import Prepared, Preparer
from .recipes.recipe import Recipe, read_recipe
from .recipes.sources import commit_of, source_digests
from .report import report_html, report_json
from .trial import Trial, Verdict
from .workbench import PROXY_SAMPLES, Reference, Subject, Workbench, evaluate_split

EMBEDDED_POOL = 2000
"""Samples of the pool that k-center looks at; more costs time and gains little."""


@dataclass(frozen=True)
class Place:
    """Where a build reads and writes besides its recipe."""

    out: Path
    cache: Cache
    measurements: Measurements


class Build:
    """One run of one recipe."""

    def __init__(
        self,
        path: Path,
        place: Place,
        progress: Progress,
        *,
        targets: Sequence[str] = (),
        trust_model_code: bool = False,
    ) -> None:
        self._path = path
        self._place = place
        self._progress = progress
        self._trust = trust_model_code
        self.recipe: Recipe = read_recipe(path)
        names = tuple(targets) or self.recipe.targets
        self._targets = [load_target(name, self.recipe.folder) for name in names]
        self._sources = source_digests(self.recipe)
        self._commit = commit_of(self.recipe.folder)

    @property
    def folder(self) -> Path:
        """Where bundles and report of this release lie."""
        model = self.recipe.model
        return self._place.out / f"{model.name}-{model.version}"

    def run(self) -> BuildOutcome:
        """Build every target; write bundles and report.

        Raises:
            EdgemlError: the model, the data or the machine is refused. A target that
                is refused or misses the budget is part of the outcome instead.
        """
        sweep(self._place.out)
        self._progress.stage("reading data")
        seen = splits_identity(self.recipe)
        splits = load_splits(self.recipe) if seen is None else None
        key = self._place.cache.key(
            "build",
            recipe=file_digest(self._path),
            sources=self._sources,
            data=seen if splits is None else splits.digest,
            targets=self._targets,
            machine=machine_name(),
            commit=self._commit,
        )
        known = self._known(key)
        if known is not None:
            self._progress.result(
                "nothing changed: bundles and report are as they were"
            )
            return known
        outcome = self._build(splits or load_splits(self.recipe))
        self._remember(key, outcome)
        return outcome

    def _build(self, splits: Splits) -> BuildOutcome:
        self._progress.stage("reading the model")
        imported = graph_of(
            self.recipe, self._place.cache, self._sources, splits.digest, self._trust
        )
        self._progress.stage("preparing samples")
        subject, calibration = self._subject(imported, splits.given(imported.model))
        reference = self._reference(subject)
        blank = BuildOutcome(
            name=self.recipe.model.name,
            version=self.recipe.model.version,
            recipe_sha256=file_digest(self._path),
            model_summary=imported.summary,
            metric=self.recipe.metric.name,
            better=self.recipe.metric.better,
            oracle=reference.evaluation,
            export_error=imported.export_error,
            calibration=calibration,
            budget=self._limits(reference),
            tools=tool_versions(),
            machine=machine_facts(),
            labels=self.recipe.labels,
            reproduce=self._commands(),
            warnings=_warnings(recipe=self.recipe),
        )
        outcomes = [
            self._target(target, subject, reference, blank) for target in self._targets
        ]
        outcome = replace(blank, targets=tuple(outcomes))
        write_atomic(self.folder / "report.json", report_json(outcome))
        write_atomic(self.folder / "report.html", report_html(outcome))
        return outcome

    def _limits(self, reference: Reference) -> dict[str, Any]:
        """The budget as it is applied, the default for accuracy included."""
        recipe = self.recipe
        drop = allowed_drop(reference.evaluation, recipe.budget, recipe.metric)
        limits = replace(recipe.budget, max_accuracy_drop=drop)
        return dict(vars(limits))

    def _commands(self) -> tuple[str, ...]:
        """What makes this build again."""
        command = f"edgeml build {self._path.name}"
        names = [target.name for target in self._targets]
        if names != list(self.recipe.targets):
            command += "".join(f" --target {name}" for name in names)
        if self._trust:
            command += " --trust-model-code"
        return (command,)

    def _subject(
        self, imported: Imported, splits: Splits
    ) -> tuple[Subject, dict[str, Any]]:
        recipe = self.recipe
        check_disjoint(splits.calibration, splits.validation)
        preparer = Preparer(
            recipe.preprocess, recipe.preprocess_input, imported.model.inputs
        )
        drawn = self._drawn(splits.calibration, preparer, imported)
        calibration = preparer.split(splits.calibration, drawn)
        validation = preparer.split(splits.validation)
        facts = {
            "samples": len(calibration),
            "pool": len(splits.calibration),
            "sampler": recipe.data.sampler,
            "seed": recipe.seed,
            "digest": calibration.digest,
            "coverage": coverage(splits.calibration, drawn),
        }
        subject = Subject(
            model=imported.model,
            model_digest=imported.digest,
            calibration=calibration,
            validation=validation,
            metric=recipe.metric,
            folder=recipe.folder,
            data_digest=self._judged_by(calibration, validation),
        )
        return subject, facts

    def _drawn(
        self, pool: Dataset, preparer: Preparer, imported: Imported
    ) -> tuple[int, ...]:
        options, embedded = self.recipe.data, None
        if options.sampler == "k_center":
            from .graphs.graph import embeddings

            first = range(min(len(pool), EMBEDDED_POOL))
            feeds = preparer.split(pool, first).feeds
            embedded = embeddings(imported.model, feeds)
        return draw(pool, options.sampler, options.samples, self.recipe.seed, embedded)

    def _judged_by(self, calibration: Prepared, validation: Prepared) -> str:
        recipe = self.recipe
        labels = validation.labels
        return digest_of(
            {
                "calibration": calibration.digest,
                "validation": validation.digest,
                "labels": None if labels is None else labels.tolist(),
                "ids": validation.ids,
                "slices": {name: list(of) for name, of in validation.slices.items()},
                "steps": recipe.preprocess,
                "step_input": recipe.preprocess_input,
                "metric": TypeAdapter(type(recipe.metric)).dump_python(recipe.metric),
                "code": self._sources,
            }
        )

    def _reference(self, subject: Subject) -> Reference:
        """The float32 oracle's figures and outputs."""
        cache = self._place.cache
        self._progress.stage("float32 oracle on the validation samples")
        key = cache.key("oracle", model=subject.model_digest, data=subject.data_digest)
        raw = cache.bytes(key, lambda: self._run_oracle(subject))
        line, _, blob = raw.partition(b"\n")
        evaluation = TypeAdapter(Evaluation).validate_json(line)
        metric = subject.metric.name
        self._progress.result(
            f"float32 oracle: {metric} {evaluation.metrics[metric]:.4f} "
            f"on {evaluation.samples} samples"
        )
        return Reference(evaluation, *_unsaved(blob))

    def _run_oracle(self, subject: Subject) -> bytes:
        path = self._place.cache.folder / "artifacts" / subject.model_digest
        entry = path / "model.onnx"
        place(entry, subject.model.payload.SerializeToString(deterministic=True))
        target = load_target("reference")
        session = runtime(target.runtime).load(entry, target.runtime_options)
        try:
            evaluation, outputs = evaluate_split(subject, session, None, self._progress)
            proxies = [
                session.predict(feed)
                for feed in subject.calibration.feeds[:PROXY_SAMPLES]
            ]
        finally:
            session.close()
        stacked = {name: np.stack([one[name] for one in proxies]) for name in outputs}
        head = TypeAdapter(Evaluation).dump_json(evaluation)
        return head + b"\n" + _saved(outputs, stacked)

    def _target(
        self,
        target: Target,
        subject: Subject,
        reference: Reference,
        blank: BuildOutcome,
    ) -> TargetOutcome:
        try:
            maker = backend(target.runtime)
        except MachineLacks as error:
            return self._refused(target, [str(error)])
        refusals = [*host_refusals(target), *maker.refusals(subject.model, target)]
        if refusals:
            return self._refused(target, refusals)
        bench = Workbench(
            subject, target, maker, self._place.cache, self._place.measurements,
            self._progress,
        )  # fmt: skip
        trial = Trial(bench, reference, self.recipe.budget, self.recipe.quantize)
        try:
            verdict = trial.run()
        except BackendError as error:
            return self._refused(target, [f"float32 already fails: {error}"])
        return self._ship(verdict, bench, subject, blank)

    def _ship(
        self, verdict: Verdict, bench: Workbench, subject: Subject, blank: BuildOutcome
    ) -> TargetOutcome:
        outcome, file = verdict.outcome, self.folder / f"{bench.target.name}.edgeml"
        if verdict.artifact is None:
            file.unlink(missing_ok=True)  # a stale bundle would look like this build's
            self._progress.result(
                f"{outcome.target}: no bundle: {outcome.choice_reason}"
            )
            return outcome
        self._progress.stage(f"{outcome.target}: packing")
        chosen = next(one for one in outcome.candidates if one.name == outcome.chosen)
        ship = Shipment(
            self.recipe, subject, blank, outcome, chosen, verdict.artifact,
            self._sources, self._commit,
        )  # fmt: skip
        raw = bundle_of(ship, bench)
        write_atomic(file, raw)
        self._progress.result(f"{outcome.target}: ships {chosen.name}")
        return replace(
            outcome,
            bundle_file=file.name,
            bundle_sha256=digest_of(raw),
            bundle_bytes=len(raw),
        )

    def _refused(self, target: Target, reasons: Sequence[str]) -> TargetOutcome:
        for reason in reasons:
            self._progress.result(f"{target.name}: refused: {reason}")
        (self.folder / f"{target.name}.edgeml").unlink(missing_ok=True)
        return TargetOutcome(
            target=target.name,
            runtime=target.runtime,
            refusals=tuple(reasons),
            threads=target.threads,
        )

    def _known(self, key: str) -> BuildOutcome | None:
        """The outcome of this very build, if all that it wrote is still there."""
        raw = self._place.cache.read(key)
        if raw is None:
            return None
        record = json.loads(raw)
        for name, digest in record["files"].items():
            path = self.folder / name
            if not path.is_file() or file_digest(path) != digest:
                return None
        return TypeAdapter(BuildOutcome).validate_python(record["outcome"])

    def _remember(self, key: str, outcome: BuildOutcome) -> None:
        names = ["report.json", "report.html"]
        names += [one.bundle_file for one in outcome.targets if one.bundle_file]
        record = {
            "outcome": TypeAdapter(BuildOutcome).dump_python(outcome, mode="json"),
            "files": {name: file_digest(self.folder / name) for name in names},
        }
        self._place.cache.write(key, json.dumps(record).encode())


def _warnings(recipe: Recipe) -> tuple[str, ...]:
    if not recipe.data.validation.location.startswith(RANDOM):
        return ()
    return (
        "validation samples are random numbers: nothing is known of the accuracy on "
        "real data; name real samples in [data]",
    )


def host_refusals(target: Target) -> list[str]:
    """Why this machine cannot validate artifacts of a target, if so."""
    if target.arch != machine.arch():
        return [
            f"needs {target.arch} to be validated and this machine is {machine.arch()}"
        ]
    missing = machine.lacks(target.isa, machine.features())
    return [
        f"this machine lacks {flag}, so it cannot validate what needs it"
        for flag in missing
    ]


def machine_facts() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "name": machine_name(),
        "arch": platform.machine(),
        "cores": os.cpu_count() or 1,
        "python": platform.python_version(),
    }


def _saved(*groups: dict[str, Array]) -> bytes:
    stream = io.BytesIO()
    arrays = {
        f"{place}.{name}": array
        for place, group in enumerate(groups)
        for name, array in group.items()
    }
    np.savez(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def _unsaved(blob: bytes) -> tuple[dict[str, Array], dict[str, Array]]:
    groups: tuple[dict[str, Array], dict[str, Array]] = ({}, {})
    with np.load(io.BytesIO(blob), allow_pickle=False) as arrays:
        for key in arrays.files:
            place, _, name = key.partition(".")
            groups[int(place)][name] = arrays[key]
    return groups


def failure(outcome: BuildOutcome) -> str | None:
    """Why the build did not give every bundle that was asked for, if so."""
    without = [one.target for one in outcome.targets if one.bundle_file is None]
    if not without:
        return None
    return f"no bundle for {', '.join(without)}; the report says why"
