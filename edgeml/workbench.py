"""One target's workbench: makes candidates and finds out what they are worth.

Everything here is a question with a cached answer: the bytes of a candidate, its
outputs' distance from the float model, its figures on the validation data, its
latency and memory on this machine. What to ask next is :mod:`edgeml.trial`'s matter.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from device_agent.contract.errors import DeviceError
from device_agent.contract.manifest import Option
from device_agent.contract.tensors import Array
from device_agent.runtimes import runtime
from device_agent.runtimes.base import Coverage, Session
from targets.profile import Target

from .backends.base import Backend, Base, Host
from .cache import Cache, digest_of, place
from .candidate import Artifact, LayerError, Spec
from .errors import BackendError, InputError
from .evaluation.evaluate import evaluate
from .evaluation.measure import Measurements, latency, peak_memory
from .graphs.preparation import from_bytes, to_bytes
from .model import Model
from .outcome import Candidate, Evaluation, Latency
from .progress import Progress
from .recipes.feeds import Prepared
from .recipes.recipe import MetricOptions

PROXY_SAMPLES = 32
MEMORY_SAMPLES = 8
LATENCY_SECONDS = 1.0
"""Per candidate, for it and for float32 together."""


@dataclass(frozen=True)
class Reference:
    """What candidates are compared with.

    ``evaluation`` and ``outputs`` are of the float32 oracle on the validation samples:
    the model before anything made it smaller. ``proxy_outputs`` are of the float model
    that is compiled, on calibration samples.
    """

    evaluation: Evaluation
    outputs: Mapping[str, Array]
    proxy_outputs: Mapping[str, Array]


@dataclass(frozen=True)
class Subject:
    """What is compiled and what it is judged on; the same for every target."""

    model: Model
    model_digest: str
    calibration: Prepared
    validation: Prepared
    metric: MetricOptions
    folder: Path
    """Where ``module:function`` metrics are looked up."""
    data_digest: str
    """Digest of samples, labels, slices, steps and metric together."""


class Workbench:
    """Makes, runs and measures the artifacts of one subject for one target."""

    def __init__(
        self,
        subject: Subject,
        target: Target,
        backend: Backend,
        cache: Cache,
        measurements: Measurements,
        progress: Progress,
    ) -> None:
        self.subject = subject
        self.target = target
        self.backend = backend
        self.progress = progress
        self._cache = cache
        self._measurements = measurements
        self.host: Host = backend.host(target)
        """What runs the artifacts here."""
        self._runtime = runtime(target.runtime)

    def make(self, spec: Spec) -> Artifact:
        """The artifact of a candidate.

        Raises:
            BackendError: the tool cannot make it of this model.
        """
        key = self._cache.key(
            "lower",
            model=self.subject.model_digest,
            target=self.target,
            spec=spec,
            calibration=self.subject.calibration.digest,
            steps=self.subject.data_digest,
            host=self.host,
        )
        return unpacked(
            self._cache.bytes(
                key,
                lambda: packed(
                    self.backend.lower(
                        self.subject.model,
                        self.target,
                        spec,
                        self.subject.calibration.feeds,
                    )
                ),
            )
        )

    def trainable(self, spec: Spec, artifact: Artifact) -> Model | None:
        """The quantized graph behind a candidate, for QAT; None: there is none.

        Raises:
            BackendError: the tool that makes it failed.
        """
        subject = self.subject
        key = self._cache.key(
            "trainable", model=subject.model_digest, target=self.target, spec=spec,
            artifact=artifact.digest, calibration=subject.calibration.digest,
            steps=subject.data_digest,
        )  # fmt: skip

        def made() -> bytes:
            proto = self.backend.trainable(
                subject.model, self.target, spec, artifact, subject.calibration.feeds
            )
            return b"" if proto is None else to_bytes(proto)

        written = self._cache.bytes(key, made)
        if not written:
            return None
        return replace(subject.model, payload=from_bytes(written), origin=None)

    def retrained(self, model: Model, spec: Spec, base: Spec) -> Artifact:
        """The artifact of such a graph after QAT.

        Raises:
            BackendError: the runtime does not load it.
        """
        subject = self.subject
        key = self._cache.key(
            "retrained", model=subject.model_digest, target=self.target, spec=spec,
            base=base, graph=digest_of(to_bytes(model.payload)),
            calibration=subject.calibration.digest, steps=subject.data_digest,
            host=self.host,
        )  # fmt: skip
        begun = Base(subject.model, base, subject.calibration.feeds)
        return unpacked(
            self._cache.bytes(
                key,
                lambda: packed(self.backend.retrained(model, self.target, spec, begun)),
            )
        )

    def options(self, artifact: Artifact) -> dict[str, Option]:
        """Runtime options: the target's, overridden by the artifact's own."""
        return {
            "threads": self.target.threads,
            **self.target.runtime_options,
            **artifact.options,
        }

    def _here(self, artifact: Artifact) -> dict[str, Option]:
        """Those options as this machine can run it."""
        return self.backend.host_options(self.target, self.options(artifact))

    @property
    def runtime_version(self) -> str:
        """Version of the installed runtime."""
        return self._runtime.version()

    def path(self, artifact: Artifact) -> Path:
        """The artifact's entry file on disk, written where it is missing."""
        folder = self._cache.folder / "artifacts" / artifact.digest
        for name, data in artifact.files.items():
            place(folder / name, data)
        return folder / artifact.entry

    def open(self, artifact: Artifact) -> Session:
        """The artifact in its runtime, with the target's options as they go here.

        Raises:
            BackendError: the runtime refuses what the backend made.
        """
        try:
            return self.backend.opened(
                self.path(artifact), self.target, self._here(artifact)
            )
        except DeviceError as error:
            raise BackendError(f"{self.target.runtime} refuses it: {error}") from error

    def proxy_db(self, artifact: Artifact, reference: Reference) -> float:
        """Signal to noise ratio of the outputs on calibration samples, in dB."""
        key = self._cache.key(
            "proxy", artifact=artifact.digest, options=self._here(artifact),
            calibration=self.subject.calibration.digest,
            steps=self.subject.data_digest, host=self.host,
        )  # fmt: skip
        return float(
            self._cache.bytes(
                key,
                lambda: repr(
                    sqnr_db(
                        reference.proxy_outputs,
                        self.outputs(artifact, self.subject.calibration),
                    )
                ).encode(),
            )
        )

    def outputs(self, artifact: Artifact, split: Prepared) -> dict[str, Array]:
        """Stacked outputs for the first samples of a split."""
        session = self.open(artifact)
        try:
            runs = [session.predict(feed) for feed in split.feeds[:PROXY_SAMPLES]]
        except DeviceError as error:
            raise BackendError(str(error)) from error
        finally:
            session.close()
        return {name: np.stack([run[name] for run in runs]) for name in runs[0]}

    def evaluate(self, artifact: Artifact, reference: Reference) -> Evaluation:
        """The artifact on the validation samples, against the float model."""
        key = self._cache.key(
            "evaluate", artifact=artifact.digest, options=self._here(artifact),
            model=self.subject.model_digest,
            validation=self.subject.validation.digest,
            steps=self.subject.data_digest, host=self.host,
        )  # fmt: skip
        return self._cache.record(
            Evaluation, key, lambda: self._evaluate(artifact, reference)
        )

    def _evaluate(self, artifact: Artifact, reference: Reference) -> Evaluation:
        session = self.open(artifact)
        try:
            return evaluate_split(
                self.subject, session, reference.outputs, self.progress
            )[0]
        except (DeviceError, InputError) as error:
            # The float model passed on these samples, so the artifact is to blame.
            raise BackendError(str(error)) from error
        finally:
            session.close()

    def latency(self, artifact: Artifact, floating: Artifact) -> Latency:
        """Latency on this machine, the float32 artifact measured in turn."""

        def measure() -> Latency:
            # by the runtime itself, which need not be what answers for the target
            candidate, plain = (
                self._runtime.load(self.path(one), self._here(one))
                for one in (artifact, floating)
            )
            try:
                return latency(
                    candidate, plain, self.subject.validation.feeds[:16],
                    threads=self.target.threads, seconds=LATENCY_SECONDS,
                )  # fmt: skip
            except DeviceError as error:
                raise BackendError(str(error)) from error
            finally:
                candidate.close()
                plain.close()

        what = {**self._measured(artifact), "float": floating.digest}
        return self._measurements.latency(what, measure)

    def memory(self, artifact: Artifact) -> tuple[int, float]:
        """Peak memory in bytes and load time in ms, in a fresh process."""

        def measure() -> tuple[int, float]:
            return peak_memory(
                self.path(artifact), self.target.runtime, self._here(artifact),
                self.subject.validation.feeds[:MEMORY_SAMPLES],
            )  # fmt: skip

        return self._measurements.memory(self._measured(artifact), measure)

    def coverage(self, artifact: Artifact) -> Coverage:
        """Which operators the target's device runs itself."""
        key = self._cache.key(
            "coverage", artifact=artifact.digest, options=self._here(artifact)
        )
        return self._cache.record(
            Coverage,
            key,
            lambda: self._runtime.coverage(self.path(artifact), self._here(artifact)),
        )

    def layer_errors(self, artifact: Artifact) -> tuple[LayerError, ...]:
        """Error of each quantized layer on calibration samples, worst first."""
        key = self._cache.key(
            "layers", artifact=artifact.digest, model=self.subject.model_digest,
            calibration=self.subject.calibration.digest,
            steps=self.subject.data_digest,
        )  # fmt: skip
        return self._cache.record(
            tuple[LayerError, ...],
            key,
            lambda: tuple(
                self.backend.layer_errors(
                    self.subject.model, artifact, self.subject.calibration.feeds[:8]
                )
            ),
        )

    def blank(self, spec: Spec) -> Candidate:
        """A candidate of which nothing is known yet."""
        return Candidate(
            name=spec.name,
            precision=spec.precision,
            status="skipped",
            parameters={"quantizer": spec.quantizer, **spec.parameters},
            kept_layers=spec.keep,
        )

    def _measured(self, artifact: Artifact) -> dict[str, object]:
        return {
            "artifact": artifact.digest,
            "runtime": self.target.runtime,
            "runtime_version": self._runtime.version(),
            "options": self._here(artifact),
            "samples": self.subject.validation.digest,
            "steps": self.subject.data_digest,
        }


def evaluate_split(
    subject: Subject,
    session: Session,
    reference: Mapping[str, Array] | None,
    progress: Progress,
) -> tuple[Evaluation, dict[str, Array]]:
    """A session on the subject's validation samples."""
    split = subject.validation
    return evaluate(
        session, split.feeds, split.labels, split.slices, subject.metric,
        reference=dict(reference) if reference is not None else None,
        ids=split.ids, samples_digest=split.digest, folder=subject.folder,
        progress=progress.step,
    )  # fmt: skip


def sqnr_db(reference: Mapping[str, Array], outputs: Mapping[str, Array]) -> float:
    """Signal to quantization noise ratio over all float outputs, in dB (max 200).

    Each output counts alike, whatever its scale: noise and signal are normalised by
    the output's own signal power.
    """
    ratios = []
    for name, wanted in reference.items():
        want = wanted.astype(np.float64)
        noise = float(np.mean((outputs[name].astype(np.float64) - want) ** 2))
        signal = float(np.mean(want**2))
        ratios.append(noise / signal if signal else float(noise > 0))
    share = float(np.mean(ratios))
    if not np.isfinite(share):
        return -200.0
    return float(np.clip(-10 * np.log10(max(share, 1e-20)), -200.0, 200.0))


def packed(artifact: Artifact) -> bytes:
    """An artifact as bytes for the cache."""
    head = {
        "runtime": artifact.runtime,
        "entry": artifact.entry,
        "options": artifact.options,
        "files": [[name, len(data)] for name, data in sorted(artifact.files.items())],
    }
    blobs = b"".join(data for _, data in sorted(artifact.files.items()))
    return json.dumps(head).encode() + b"\n" + blobs


def unpacked(raw: bytes) -> Artifact:
    """The artifact that :func:`packed` wrote."""
    line, _, blobs = raw.partition(b"\n")
    head = json.loads(line)
    files, at = {}, 0
    for name, size in head["files"]:
        files[name] = blobs[at : at + size]
        at += size
    return Artifact(head["runtime"], head["entry"], files, head["options"])


def described(candidate: Candidate, artifact: Artifact) -> Candidate:
    """The candidate with what its bytes say."""
    return replace(
        candidate, artifact_sha256=artifact.digest, size_bytes=artifact.size_bytes
    )
