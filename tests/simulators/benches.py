"""A real workbench for the small digits network, with chosen timings."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from digits import model, splits
from timings import Timings

from calibration.dataset import Dataset, Sample
from device_agent.contract.tensors import Feeds
from device_agent.runtimes import runtime
from edgeml.backends.onnxruntime import OnnxRuntimeBackend
from edgeml.cache import Cache, digest_of
from edgeml.candidate import Artifact, QuantizeOptions, Spec
from edgeml.intake.importer import load_model
from edgeml.model import Model
from edgeml.progress import Silent
from edgeml.recipes.feeds import Prepared, Preparer
from edgeml.recipes.recipe import MetricOptions
from edgeml.workbench import Reference, Subject, Workbench, evaluate_split
from targets.profile import Target, load_target

CHANNELS = 8
CALIBRATION, VALIDATION = 24, 100


def small(target: str = "cpu-x86_64") -> Target:
    return load_target(target)


@cache
def subject() -> Subject:
    """Digits: 24 samples to calibrate, 100 to judge, top-1 with slices by half."""
    images, labels, held, answers = splits()
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(model(images, labels, CHANNELS))
        loaded = load_model(path.name, None, path.parent, {})
    preparer = Preparer((), None, loaded.inputs)
    return Subject(
        model=loaded,
        model_digest=digest_of(loaded.payload.SerializeToString(deterministic=True)),
        calibration=_split(preparer, images[:CALIBRATION], labels, "c"),
        validation=_split(preparer, held[:VALIDATION], answers, "v"),
        metric=MetricOptions("top1"),
        folder=Path(),
        data_digest="digits",
    )


def _split(
    preparer: Preparer, images: np.ndarray, labels: np.ndarray, letter: str
) -> Prepared:
    samples = [
        Sample(f"{letter}{n}", image, int(labels[n]), {"half": ["lower", "high"][
            int(labels[n]) > 4]})
        for n, image in enumerate(images)
    ]  # fmt: skip
    return preparer.split(Dataset(tuple(samples)))


@cache
def reference() -> Reference:
    """The float32 oracle on it."""
    found = subject()
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(found.model.payload.SerializeToString())
        session = runtime("onnxruntime").load(path, {})
        try:
            evaluation, outputs = evaluate_split(found, session, None, Silent())
            runs = [session.predict(feed) for feed in found.calibration.feeds]
        finally:
            session.close()
    stacked = {name: np.stack([run[name] for run in runs]) for name in outputs}
    return Reference(evaluation, outputs, stacked)


class Chosen(OnnxRuntimeBackend):
    """ONNX Runtime's backend, tried with the given candidates only."""

    def __init__(self, specs: Sequence[Spec]) -> None:
        super().__init__()
        self._chosen = list(specs)
        self.lowered: list[str] = []

    def specs(
        self, model: Model, target: Target, options: QuantizeOptions
    ) -> list[Spec]:
        return self._chosen

    def lower(
        self, model: Model, target: Target, spec: Spec, calibration: Sequence[Feeds]
    ) -> Artifact:
        self.lowered.append(spec.name)
        return super().lower(model, target, spec, calibration)


@dataclass
class Heard:
    """Progress that is kept."""

    said: list[str] = field(default_factory=list)

    def stage(self, text: str) -> None:
        self.said.append(f"… {text}")

    def step(self, done: int, total: int) -> None:
        self.said.append(f"{done}/{total}")

    def result(self, text: str) -> None:
        self.said.append(text)


def bench(
    folder: Path, specs: Sequence[Spec], timings: Timings | None = None,
    target: Target | None = None, on: Subject | None = None,
) -> Workbench:  # fmt: skip
    return Workbench(
        on or subject(), target or small(), Chosen(specs), Cache(folder),
        timings or Timings(), Heard(),
    )  # fmt: skip


FP32 = Spec("fp32", "fp32")


def static(name: str, **parameters: object) -> Spec:
    """Static int8 by ONNX Runtime."""
    found = {"method": "minmax", "activation": "u8", "weight": "s8",
             "per_channel": True, **parameters}  # fmt: skip
    return Spec(name, "int8", "ort", found)
