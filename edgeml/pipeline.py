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
from device_agent.runtimes.base import Session
from targets.profile import Target, load_target

from . import armv7
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
from .model import Model
from .outcome import BuildOutcome, Evaluation, TargetOutcome
from .passing import Imported, graph_of
from .progress import Progress
from .recipes.data import RANDOM, Splits, load_splits, splits_identity
from .recipes.feeds import Prepared, Preparer
from .recipes.recipe import Recipe, read_recipe
from .recipes.sources import commit_of, source_digests
from .report import report_html, report_json
from .trial import Trial, Verdict
from .tuning import Tuner, tuner_of
from .workbench import PROXY_SAMPLES, Reference, Subject, Workbench, evaluate_split

EMBEDDED_POOL = 2000
"""Samples of the pool that k-center looks at; more costs time and gains little."""


@dataclass(frozen=True)
class Place:
    """Where a build reads and writes besides its recipe."""

    out: Path
    cache: Cache
    measurements: Measurements


@dataclass(frozen=True)
class Variation:
    """A recipe that was made of the one in a file, and the command that makes it."""

    recipe: Recipe
    command: str


class Build:
    """One run of one recipe: the one at ``path``, or a ``variation`` of it."""

    def __init__(
        self,
        path: Path,
        place: Place,
        progress: Progress,
        *,
        targets: Sequence[str] = (),
        trust_model_code: bool = False,
        variation: Variation | None = None,
    ) -> None:
        self._path = path
        self._place = place
        self._progress = progress
        self._trust = trust_model_code
        self._variation = variation
        self.recipe: Recipe = variation.recipe if variation else read_recipe(path)
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
            variation=self._variation,
            sources=self._sources,
            data=seen if splits is None else splits.digest,
            targets=self._targets,
            machine=machine_name(),
            commit=self._commit,
            armv7=armv7.how(),
        )
        known = self._known(key)
        if known is not None:
            self._progress.result(
                "nothing changed: bundles and report are as they were"
            )
            write_reports(self.folder, known)  # a check may have added to them
            return known
        outcome = self.shipped(splits or load_splits(self.recipe))
        write_reports(self.folder, outcome)
        self._remember(key, outcome)
        return outcome

    def graph(self, splits: Splits) -> Imported:
        """The model after the recipe's passes.

        Raises:
            ModelError: the model is refused.
            PassError: a pass failed.
        """
        return graph_of(
            self.recipe, self._place.cache, self._sources, splits.digest, self._trust,
            self._progress,
        )  # fmt: skip

    def shipped(self, splits: Splits) -> BuildOutcome:
        """Build every target and write the bundles, but no report."""
        subject, reference, blank = self._begun(splits)
        tuner = tuner_of(self.recipe, self._place.cache, self._sources, splits.digest)
        outcomes = [
            self._target(target, subject, reference, blank, tuner)
            for target in self._targets
        ]
        return replace(blank, targets=tuple(outcomes))

    def refused(self, splits: Splits, reasons: Sequence[str]) -> BuildOutcome:
        """The outcome when every target is refused for these reasons."""
        *_, blank = self._begun(splits)
        outcomes = [self._refused(target, reasons) for target in self._targets]
        return replace(blank, targets=tuple(outcomes))

    def _begun(self, splits: Splits) -> tuple[Subject, Reference, BuildOutcome]:
        """What targets are built from, and the outcome without any of them."""
        self._progress.stage("reading the model")
        imported = self.graph(splits)
        self._progress.stage("preparing samples")
        subject, calibration = self.subject(imported, splits.given(imported.model))
        reference = self.reference(imported, subject)
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
        return subject, reference, blank

    def _limits(self, reference: Reference) -> dict[str, Any]:
        """The budget as it is applied, the default for accuracy included."""
        recipe = self.recipe
        drop = allowed_drop(reference.evaluation, recipe.budget, recipe.metric)
        limits = replace(recipe.budget, max_accuracy_drop=drop)
        return dict(vars(limits))

    def _commands(self) -> tuple[str, ...]:
        """What makes this build again."""
        if self._variation is not None:
            return (self._variation.command,)
        command = f"edgeml build {self._path.name}"
        names = [target.name for target in self._targets]
        if names != list(self.recipe.targets):
            command += "".join(f" --target {name}" for name in names)
        if self._trust:
            command += " --trust-model-code"
        return (command,)

    def subject(
        self, imported: Imported, splits: Splits
    ) -> tuple[Subject, dict[str, Any]]:
        """What is compiled with its prepared samples, and facts on the calibration.

        Raises:
            InputError: samples do not fit the model.
            DataError: a sample is in both splits.
        """
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

    def reference(self, imported: Imported, subject: Subject) -> Reference:
        """The float32 oracle's figures, and the outputs of what is compiled."""
        cache = self._place.cache
        key = cache.key(
            "oracle", model=imported.reference_digest, data=subject.data_digest
        )
        raw = cache.bytes(key, lambda: self._run_oracle(imported, subject))
        line, _, blob = raw.partition(b"\n")
        evaluation = TypeAdapter(Evaluation).validate_json(line)
        metric = subject.metric.name
        self._progress.result(
            f"float32 oracle: {metric} {evaluation.metrics[metric]:.4f} "
            f"on {evaluation.samples} samples"
        )
        proxies = cache.bytes(
            cache.key("proxies", model=subject.model_digest, data=subject.data_digest),
            lambda: _saved(self._proxies(subject)),
        )
        return Reference(evaluation, _unsaved(blob), _unsaved(proxies))

    def _run_oracle(self, imported: Imported, subject: Subject) -> bytes:
        self._progress.stage("float32 oracle on the validation samples")
        session = self._oracle(imported.reference, imported.reference_digest)
        try:
            evaluation, outputs = evaluate_split(subject, session, None, self._progress)
        finally:
            session.close()
        head = TypeAdapter(Evaluation).dump_json(evaluation)
        return head + b"\n" + _saved(outputs)

    def _proxies(self, subject: Subject) -> dict[str, Array]:
        """Outputs of the float model that is compiled, on calibration samples."""
        session = self._oracle(subject.model, subject.model_digest)
        try:
            runs = [
                session.predict(feed)
                for feed in subject.calibration.feeds[:PROXY_SAMPLES]
            ]
        finally:
            session.close()
        return {name: np.stack([one[name] for one in runs]) for name in runs[0]}

    def _oracle(self, model: Model, digest: str) -> Session:
        entry = self._place.cache.folder / "artifacts" / digest / "model.onnx"
        place(entry, model.payload.SerializeToString(deterministic=True))
        target = load_target("reference")
        return runtime(target.runtime).load(entry, target.runtime_options)

    def bench(
        self, target: Target, subject: Subject
    ) -> tuple[Workbench | None, list[str]]:
        """The workbench of a target, or the reasons why there is none."""
        try:
            maker = backend(target.runtime)
        except MachineLacks as error:
            return None, [str(error)]
        refusals = maker.refusals(subject.model, target)
        if not maker.host(target).validated_on:
            refusals = [*host_refusals(target), *refusals]
        if refusals:
            return None, refusals
        bench = Workbench(
            subject, target, maker, self._place.cache, self._place.measurements,
            self._progress,
        )  # fmt: skip
        return bench, []

    def _target(
        self,
        target: Target,
        subject: Subject,
        reference: Reference,
        blank: BuildOutcome,
        tuner: Tuner | None,
    ) -> TargetOutcome:
        bench, refusals = self.bench(target, subject)
        if bench is None:
            return self._refused(target, refusals)
        trial = Trial(bench, reference, self.recipe.budget, self.recipe.quantize, tuner)
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
        """The outcome of this very build, if its bundles are still there."""
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
        names = [one.bundle_file for one in outcome.targets if one.bundle_file]
        record = {
            "outcome": TypeAdapter(BuildOutcome).dump_python(outcome, mode="json"),
            "files": {name: file_digest(self.folder / name) for name in names},
        }
        self._place.cache.write(key, json.dumps(record).encode())


def write_reports(folder: Path, outcome: BuildOutcome) -> None:
    """``report.json`` and ``report.html`` of an outcome; what is so already stays."""
    place(folder / "report.json", report_json(outcome))
    place(folder / "report.html", report_html(outcome))


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


def _saved(arrays: dict[str, Array]) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def _unsaved(blob: bytes) -> dict[str, Array]:
    with np.load(io.BytesIO(blob), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def failure(outcome: BuildOutcome) -> str | None:
    """Why the build did not give every bundle that was asked for, if so."""
    without = [one.target for one in outcome.targets if one.bundle_file is None]
    if not without:
        return None
    return f"no bundle for {', '.join(without)}; the report says why"
