"""What is packed: golden vectors, the manifest, facts without a path."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benches import FP32, bench, reference, static, subject
from digits import recipe

from calibration.dataset import Dataset, Sample
from device_agent.contract.bundle import Bundle, read_bundle
from device_agent.contract.golden import read_golden
from device_agent.contract.tensors import TensorSpec
from edgeml.bundling.packing import (
    GOLDEN_EDGES,
    GOLDEN_VECTORS,
    Shipment,
    bundle_of,
    golden_edges,
    recipe_facts,
    spread,
)
from edgeml.candidate import QuantizeOptions, Spec
from edgeml.model import Model
from edgeml.outcome import BuildOutcome
from edgeml.recipes.feeds import Preparer
from edgeml.recipes.recipe import Budget, read_recipe
from edgeml.trial import Trial
from edgeml.workbench import Subject, Workbench

INT8 = static("int8 minmax u8s8")
DIGEST = "c4" * 32


def shipment(folder: Path, spec: Spec, extra: str = "") -> tuple[Shipment, Workbench]:
    work = bench(folder / "stages", [FP32, spec])
    trial = Trial(work, reference(), Budget(), QuantizeOptions())
    verdict = trial.run()
    assert verdict.artifact is not None
    chosen = next(one for one in verdict.outcome.candidates if one.status == "chosen")
    assert chosen.name == spec.name
    for name in ("model.onnx", "train.npz", "held.npz"):
        (folder / name).write_bytes(b"")
    read = read_recipe(recipe(folder, "cpu-x86_64", extra=extra))
    drawn = {"samples": 24, "sampler": "stratified", "seed": 0, "digest": DIGEST,
             "coverage": {}}  # fmt: skip
    build = BuildOutcome(
        name="digits", version="1.0.0", recipe_sha256=DIGEST, model_summary={},
        metric="top1", better="higher", oracle=reference().evaluation,
        export_error=0.0, calibration=drawn, budget={}, tools={}, machine={},
    )  # fmt: skip
    ship = Shipment(
        read, subject(), build, verdict.outcome, chosen, verdict.artifact,
        {"model.onnx": DIGEST}, None,
    )  # fmt: skip
    return ship, work


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shipment, Workbench]:
    return shipment(tmp_path_factory.mktemp("packed"), INT8)


@pytest.fixture(scope="module")
def bundle(packed: tuple[Shipment, Workbench]) -> Bundle:
    return read_bundle(bundle_of(*packed))


def test_there_are_sixteen_golden_vectors_with_finite_answers(bundle: Bundle) -> None:
    golden = read_golden(bundle.member("golden.npz"))
    assert len(golden) >= 16
    for run in golden.outputs:
        assert all(np.isfinite(array).all() for array in run.values())


def test_the_same_shipment_gives_the_same_bytes(
    packed: tuple[Shipment, Workbench],
) -> None:
    assert bundle_of(*packed) == bundle_of(*packed)


def test_the_manifest_says_what_the_device_needs(
    bundle: Bundle, packed: tuple[Shipment, Workbench]
) -> None:
    ship, work = packed
    manifest = bundle.manifest
    assert manifest.runtime.options == work.options(ship.artifact)
    assert manifest.runtime.options["threads"] == work.target.threads
    assert work.runtime_version.startswith(manifest.runtime.min_version + ".")
    assert (manifest.isa.arch, manifest.isa.requires) == ("x86_64", work.target.isa)
    assert manifest.precision == "int8"
    assert manifest.artifact == f"artifact/{ship.artifact.entry}"
    assert manifest.limits.peak_memory_bytes == work.target.memory_bytes
    assert (
        manifest.metrics.accuracy.float_value
        == (reference().evaluation.metrics["top1"])
    )
    assert manifest.calibration is not None
    assert (manifest.calibration.samples, manifest.calibration.digest) == (24, DIGEST)
    assert {one.role for one in manifest.members} >= {
        "artifact", "golden", "baseline", "card", "provenance", "sbom",
    }  # fmt: skip


def test_a_float_artifact_was_not_calibrated(tmp_path: Path) -> None:
    half = Spec("fp16", "fp16")
    made = read_bundle(bundle_of(*shipment(tmp_path, half))).manifest
    assert made.precision == "fp16"
    assert made.calibration is None


def test_no_path_of_this_machine_is_in_the_recipes_facts(
    packed: tuple[Shipment, Workbench],
) -> None:
    ship, _ = packed
    facts = recipe_facts(ship.recipe)
    assert str(ship.recipe.folder) not in repr(facts)
    assert facts["model"]["source"] == "model.onnx"


def test_no_path_of_this_machine_is_in_the_bundle(
    packed: tuple[Shipment, Workbench],
) -> None:
    ship, _ = packed
    assert str(ship.recipe.folder).encode() not in bundle_of(*packed)


# --- golden inputs


def other(feeds: list[dict[str, np.ndarray]]) -> Subject:
    """A subject of which only these validation samples matter."""
    specs = tuple(
        TensorSpec(
            name=name, shape=array.shape,
            datatype="FP32" if array.dtype.kind == "f" else "INT64",
        )
        for name, array in feeds[0].items()
    )  # fmt: skip
    samples = tuple(Sample(f"s{n}", feed) for n, feed in enumerate(feeds))
    split = Preparer((), None, specs).split(Dataset(samples))
    model = Model("graph", None, specs, ())
    return replace(subject(), model=model, validation=split)


def test_golden_inputs_are_spread_samples_and_the_edges_of_their_range() -> None:
    values = np.linspace(-2, 3, 40, dtype=np.float32)
    given = other([{"x": np.full((1, 4), one)} for one in values])
    found, edges = spread(given, 12), golden_edges(given)
    assert len(found) == 12
    assert found[0]["x"][0, 0] == -2
    assert found[-1]["x"][0, 0] == 3
    assert len(edges) == len(GOLDEN_EDGES)
    zeros, lowest, highest, board = (one["x"] for one in edges)
    assert (zeros == 0).all()
    assert (lowest == -2).all()
    assert (highest == 3).all()
    assert board.ravel().tolist() == [-2, 3, -2, 3]
    assert {one["x"].dtype for one in found + edges} == {np.dtype(np.float32)}


def test_an_integer_input_keeps_a_samples_value_in_every_edge() -> None:
    edges = golden_edges(
        other([
            {"x": np.full((1, 4), n, np.float32), "rate": np.full((1, 1), 16_000 + n)}
            for n in range(20)
        ])
    )  # fmt: skip
    for edge in edges:
        assert edge["rate"].tolist() == [[16_000]]


def test_few_samples_are_taken_more_than_once() -> None:
    assert len(spread(other([{"x": np.ones((1, 4), np.float32)}]), 16)) == 16


def test_an_edge_that_is_answered_with_no_number_is_left_out(
    packed: tuple[Shipment, Workbench], monkeypatch: pytest.MonkeyPatch
) -> None:
    ship, work = packed
    opened = work.open

    def logarithm(artifact):  # type: ignore[no-untyped-def]
        session = opened(artifact)
        predict = session.predict

        def spoiled(feeds):  # type: ignore[no-untyped-def]
            answer = predict(feeds)
            if any((array == 0).all() for array in feeds.values()):
                return {key: np.full_like(one, np.nan) for key, one in answer.items()}
            return answer

        monkeypatch.setattr(session, "predict", spoiled)
        return session

    monkeypatch.setattr(work, "open", logarithm)
    golden = read_golden(read_bundle(bundle_of(ship, work)).member("golden.npz"))
    assert not any((one["image"] == 0).all() for one in golden.inputs)
    assert len(golden) >= GOLDEN_VECTORS
