"""The layers that int8 breaks are found, and put back to float they mend the net."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edgeml.backends.onnxruntime import OnnxRuntimeBackend
from edgeml.candidate import LayerError, QuantizeOptions, Spec
from edgeml.graphs import layers, preparation
from edgeml.graphs.protos import spec_of
from edgeml.model import Model
from targets.profile import load_target


def simulator(name: str) -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "simulators" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"simulators_{name}", path)
    assert spec and spec.loader
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Bench:
    """The hard network with a backend and a target to make it for."""

    def __init__(self) -> None:
        pytest.importorskip("torch")
        pytest.importorskip("sklearn")
        self.net = simulator("hardnet").hardnet()
        graph = self.net.model.graph
        self.model = Model(
            "graph", self.net.model,
            tuple(map(spec_of, graph.input)), tuple(map(spec_of, graph.output)),
        )  # fmt: skip
        self.backend = OnnxRuntimeBackend()
        self.target = load_target("cpu-x86_64-vnni")
        specs = self.backend.specs(self.model, self.target, QuantizeOptions())
        self.specs = {spec.name: spec for spec in specs}

    def make(self, spec: Spec):
        return self.backend.lower(self.model, self.target, spec, self.net.calibration)

    def errors(self, spec: Spec) -> list[LayerError]:
        return self.backend.layer_errors(
            self.model, self.make(spec), self.net.calibration[:8]
        )

    def accuracy(self, spec: Spec, tmp_path: Path) -> float:
        artifact = self.make(spec)
        path = tmp_path / "model.onnx"
        path.write_bytes(artifact.files["model.onnx"])
        from device_agent.runtimes import runtime

        session = runtime("onnxruntime").load(path, artifact.options)
        answers = [session.predict(f)["y"].argmax() for f in self.net.validation]
        return float(np.mean(np.array(answers) == self.net.labels))


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench()


PLAIN = ["int8 ort default", "int8 ort minmax u8s8", "int8 ort minmax u8s8 core"]


@pytest.mark.parametrize("name", PLAIN)
def test_plain_int8_breaks_the_hard_network(bench: Bench, tmp_path: Path, name: str):
    exact = bench.accuracy(bench.specs["fp32"], tmp_path)
    assert exact >= 0.95
    assert bench.accuracy(bench.specs[name], tmp_path) < exact - 0.05


def test_the_guilty_layers_come_first(bench: Bench):
    """All three depthwise convolutions, though the first one drowns the others."""
    errors = bench.errors(bench.specs["int8 ort minmax u8s8"])
    assert {error.node for error in errors[:3]} == {"dw0", "dw1", "dw2"}
    assert [e.added_db for e in errors] == sorted(
        (e.added_db for e in errors), reverse=True
    )


def test_the_keep_list_rescues_it(bench: Bench, tmp_path: Path):
    """Few layers back in float, the rest still int8, within a point of float."""
    exact = bench.accuracy(bench.specs["fp32"], tmp_path)
    plain = bench.specs["int8 ort minmax u8s8 core"]
    errors = bench.errors(plain)
    macs = preparation.macs(preparation.prepare(bench.model.payload))
    keep: tuple[str, ...] = ()
    for group in layers.restore_order(errors, macs)[:3]:
        keep += group
    mixed = layers.mixed_spec(plain, keep)
    assert mixed.precision == "mixed" and len(keep) <= len(errors) / 4
    assert bench.accuracy(mixed, tmp_path) >= exact - 0.01
    left = {error.node for error in bench.errors(mixed)}
    assert left and not left & set(keep)


def test_float_artifacts_have_no_layer_errors(bench: Bench):
    assert bench.errors(bench.specs["fp32"]) == []


def test_restore_order_grows_and_takes_the_cheaper_of_equals():
    errors = [
        LayerError("big", "Conv", 5.0, 30.0),
        LayerError("small", "Conv", 6.0, 29.5),
        LayerError("harmless", "Conv", 45.0, 0.0),
        LayerError("third", "Conv", 20.0, 15.0),
        LayerError("fourth", "Conv", 30.0, 9.0),
    ]
    order = layers.restore_order(errors, {"big": 900, "small": 1})
    assert order == [("small",), ("big",), ("third", "fourth")]


def test_mixed_specs_add_to_what_is_kept():
    spec = Spec("int8", "int8", "ort", {"method": "minmax"}, keep=("a",))
    mixed = layers.mixed_spec(spec, ["b", "a"])
    assert mixed.keep == ("a", "b")
    assert mixed.parameters == spec.parameters
    assert mixed.name == "mixed int8, 2 layers float"
