"""LiteRT artifacts: candidates, names, what armv7 lacks, and where the error is."""

from dataclasses import replace
from pathlib import Path

import networks_onnx
import numpy as np
import pytest
from onnx import numpy_helper

pytest.importorskip("litert_torch", reason="litert-torch converts")
pytest.importorskip("ai_edge_quantizer")

from device_agent.contract import machine
from device_agent.contract.tensors import TensorSpec
from device_agent.runtimes import runtime
from edgeml import armv7
from edgeml.backends import backend
from edgeml.backends.base import Base, Host
from edgeml.candidate import QuantizeOptions, Spec
from edgeml.errors import BackendError
from edgeml.graphs.tflite import Inside
from edgeml.model import Model
from edgeml.training.simulation import Simulation
from targets.profile import Tolerance, load_target

RPI4, ARMV7 = load_target("rpi4"), load_target("armv7")
STATIC = Spec("int8", "int8", "aeq", {"kind": "static", "method": "minmax"})
DYNAMIC = Spec("dynamic", "int8-dynamic", "aeq", {"kind": "dynamic"})
INT16 = Spec(
    "int16", "int8", "aeq",
    {"kind": "static", "method": "minmax", "activation": "int16"},
)  # fmt: skip


@pytest.fixture(scope="module")
def litert():
    return backend("litert")


@pytest.fixture(scope="module")
def model() -> Model:
    return networks_onnx.convolutional()


@pytest.fixture(scope="module")
def samples(model):
    return networks_onnx.feeds(model, 24)


@pytest.fixture(scope="module")
def exact(model, samples):
    import onnxruntime as ort

    session = ort.InferenceSession(model.payload.SerializeToString())
    return [session.run(["scores"], feed)[0] for feed in samples]


def opened(artifact, folder):
    for name, data in artifact.files.items():
        (folder / name).write_bytes(data)
    return runtime("litert").load(folder / artifact.entry, {"threads": 1})


@pytest.mark.parametrize(
    ("spec", "allowed"),
    [
        (Spec("fp32", "fp32"), 1e-5), (Spec("fp16", "fp16"), 3e-3), (DYNAMIC, 0.05),
        (STATIC, 0.05), (INT16, 0.02),
    ],
    ids=lambda one: one.name if isinstance(one, Spec) else "",
)  # fmt: skip
def test_every_kind_runs_under_the_models_names(
    litert, model, samples, exact, tmp_path, spec, allowed
):
    artifact = litert.lower(model, RPI4, spec, samples)
    assert (artifact.runtime, artifact.entry) == ("litert", "model.tflite")
    session = opened(artifact, tmp_path)
    assert session.inputs == (
        TensorSpec(name="image", datatype="FP32", shape=(1, 3, 12, 12)),
    )
    assert session.outputs == (
        TensorSpec(name="scores", datatype="FP32", shape=(1, 5)),
    )
    scale = max(np.abs(one).max() for one in exact)
    for feed, wanted in zip(samples, exact, strict=True):
        assert np.abs(session.predict(feed)["scores"] - wanted).max() < allowed * scale


def test_quantized_ones_are_smaller_and_made_alike(litert, model, samples):
    sizes = {}
    for spec in (Spec("fp32", "fp32"), STATIC, INT16):
        one, other = (litert.lower(model, RPI4, spec, samples) for _ in range(2))
        assert one.files == other.files
        weights = Inside(one.files[one.entry])
        sizes[spec.name] = sum(
            tensor.dtype is np.int8 and tensor.name.endswith("/weight")
            for tensor in weights.tensors.values()
        )
    assert sizes == {"fp32": 0, "int8": 3, "int16": 3}


def test_the_candidates_of_a_pi(litert, model):
    specs = litert.specs(model, RPI4, QuantizeOptions())
    assert [spec.name for spec in specs] == [
        "fp32", "fp16", "int8 aeq dynamic", "int8 aeq default", "int8 aeq minmax",
        "int8 aeq percentile", "int8 aeq minmax int16",
    ]  # fmt: skip
    assert {spec.precision for spec in specs} <= set(RPI4.precisions)


def test_a_large_model_is_not_tried_with_int16(litert, model, monkeypatch):
    monkeypatch.setattr("edgeml.backends.litert.INT16_MACS", 100)
    names = [spec.name for spec in litert.specs(model, RPI4, QuantizeOptions())]
    assert "int8 aeq minmax" in names
    assert not any("int16" in name for name in names)


def test_dynamic_int8_is_never_a_candidate_for_armv7(litert, model):
    for options in (QuantizeOptions(), QuantizeOptions(precisions=("int8-dynamic",))):
        specs = litert.specs(model, ARMV7, options)
        able = [spec for spec in specs if not spec.refused]
        assert "int8-dynamic" not in {spec.precision for spec in able}
    assert any("armv7 (litert) has fp32" in spec.refused for spec in specs)


def test_what_a_recipe_names_and_nobody_does_is_a_refusal(litert, model):
    options = QuantizeOptions(methods=("entropy",), quantizers=("ort",))
    refused = [one for one in litert.specs(model, RPI4, options) if one.refused]
    assert "rpi4 (litert) is quantized for with aeq" in refused[0].refused
    options = QuantizeOptions(methods=("percentile",), percentile=99.0, keep=("first",))
    specs = litert.specs(model, RPI4, options)
    static = [spec for spec in specs if spec.precision == "int8"]
    assert {spec.parameters["percentile"] for spec in static} == {99.0}
    assert all(spec.keep == ("first",) for spec in specs if spec.precision != "fp32")


@pytest.mark.long
def test_attention_brings_candidates_with_its_softmax_in_float(litert):
    names = [
        spec.name
        for spec in litert.specs(networks_onnx.attention(), RPI4, QuantizeOptions())
    ]
    assert {"int8 aeq minmax core", "int8 aeq percentile core"} <= set(names)


def test_kept_layers_are_named_by_their_onnx_nodes(litert, model, samples):
    artifact = litert.lower(model, RPI4, replace(STATIC, keep=("bend",)), samples)
    inside = Inside(artifact.files[artifact.entry])
    weights = {
        tensor.name: tensor.dtype
        for tensor in inside.tensors.values()
        if tensor.name.endswith("/weight")
    }
    assert weights["first/weight"] is np.float32
    assert weights["second/weight"] is np.int8
    with pytest.raises(BackendError, match="'lost', which is no node"):
        litert.lower(model, RPI4, replace(STATIC, keep=("lost",)), samples)


class TestLayerErrors:
    def test_layers_have_the_names_of_onnx_nodes(self, litert, model, samples):
        artifact = litert.lower(model, RPI4, STATIC, samples)
        errors = litert.layer_errors(model, artifact, samples[:4])
        found = {error.node: error.op for error in errors}
        assert found["first"] == found["second"] == "Conv"
        assert found["dense"] == "Gemm"
        added = [error.added_db for error in errors]
        assert added == sorted(added, reverse=True)
        assert all(error.sqnr_db > 15 for error in errors)

    def test_a_layer_kept_in_float_adds_no_error(self, litert, model, samples):
        kept = replace(STATIC, keep=("second",))
        artifact = litert.lower(model, RPI4, kept, samples)
        errors = litert.layer_errors(model, artifact, samples[:4])
        assert "second" not in {error.node for error in errors}

    def test_every_layer_named_can_be_kept(self, litert, model, samples):
        """What the rescue does: the worst layers back to float."""
        artifact = litert.lower(model, RPI4, STATIC, samples)
        errors = litert.layer_errors(model, artifact, samples[:4])
        keep = tuple(error.node for error in errors[:-1])
        mixed = replace(STATIC, precision="mixed", keep=keep)
        rescued = litert.lower(model, RPI4, mixed, samples)
        left = litert.layer_errors(model, rescued, samples[:4])
        assert {error.node for error in left} == {errors[-1].node}

    def test_float_artifacts_have_none(self, litert, model, samples):
        for spec in (Spec("fp32", "fp32"),):
            artifact = litert.lower(model, RPI4, spec, samples)
            assert litert.layer_errors(model, artifact, samples[:2]) == []


class TestHost:
    def test_the_report_says_what_ran_it(self, litert, monkeypatch):
        monkeypatch.setattr(machine, "arch", lambda: "x86_64")
        version = runtime("litert").version()
        assert litert.host(RPI4) == Host(validated_on=f"x86_64 by litert {version}")
        assert armv7.RELEASE in litert.host(ARMV7).validated_on

    def test_on_a_pi_it_is_the_device(self, litert, monkeypatch):
        monkeypatch.setattr(machine, "arch", lambda: "aarch64")
        assert litert.host(RPI4) == Host()

    def test_no_more_threads_than_cores(self, litert, monkeypatch):
        monkeypatch.setattr(machine, "cores", lambda: 2)
        assert litert.host_options(RPI4, {"threads": 4})["threads"] == 2
        assert litert.host_options(RPI4, {"threads": 1})["threads"] == 1

    def test_armv7_runs_from_its_own_release_on(self, litert):
        assert litert.oldest(ARMV7) == "0.2.14"
        assert litert.oldest(RPI4) is None


class TestRefusals:
    def test_a_good_model_is_not_refused(self, litert, model):
        for target in (RPI4, ARMV7):
            assert litert.refusals(model, target) == []

    def test_another_runtime_or_level(self, litert, model):
        other = load_target("cpu-x86_64")
        assert "runs onnxruntime" in litert.refusals(model, other)[0]
        module = replace(model, level="module")
        assert "level graph is needed" in litert.refusals(module, RPI4)[0]

    def test_an_operator_that_torch_has_not(self, litert):
        model = networks_onnx.convolutional()
        model.payload.graph.node[2].op_type = "Wobble"
        model.payload.graph.node[2].domain = "com.acme"
        (refusal,) = litert.refusals(model, RPI4)
        assert "Wobble" in refusal

    def test_an_operator_that_armv7_has_not(self, litert, model, monkeypatch):
        fewer = {**armv7.OPERATORS, "CONV_2D": 0}
        monkeypatch.setattr(armv7, "OPERATORS", fewer)
        assert litert.refusals(model, RPI4) == []
        (refusal,) = litert.refusals(model, ARMV7)
        assert "has no operator CONV_2D version 1 (it has 0)" in refusal

    def test_another_quantizer(self, litert, model, samples):
        with pytest.raises(BackendError, match="no quantizer 'ort' for litert"):
            litert.lower(model, RPI4, replace(STATIC, quantizer="ort"), samples)


def learned(proto, inputs):
    """The graph as if something had been learned, and what computes it in torch."""
    torch = pytest.importorskip("torch")
    made, draw = Simulation(proto, inputs), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for one in made.module.parameters():
            by = one.std() if one.ndim else 1.0
            one += 0.1 * by * torch.randn(one.shape, generator=draw)

    def run(feed):
        with torch.no_grad():
            outputs = made.module(*(torch.from_numpy(one) for one in feed.values()))
        return {name: one.numpy() for name, one in outputs.items()}

    return made.written(), run


class TestQat:
    """What is trained is LiteRT's arithmetic, and LiteRT computes what was trained."""

    QAT = Spec("int8 qat", "int8", "qat")

    def trained(self, litert, model, spec, samples):
        graph = litert.trainable(model, RPI4, spec, None, samples)
        after, run = learned(graph, model.inputs)
        base = Base(model, spec, samples)
        given = replace(model, payload=after)
        return after, run, litert.retrained(given, RPI4, self.QAT, base)

    @pytest.mark.parametrize(
        ("network", "spec"),
        [
            pytest.param(lambda: networks_onnx.pooling("MaxPool"), STATIC, id="max"),
            pytest.param(
                lambda: networks_onnx.pooling("AveragePool"), STATIC,
                id="average", marks=pytest.mark.long,
            ),
            pytest.param(
                networks_onnx.branches, STATIC, id="branches", marks=pytest.mark.long
            ),
            pytest.param(
                networks_onnx.convolutional, replace(STATIC, keep=("norm",)),
                id="first in float", marks=pytest.mark.long,
            ),
            pytest.param(
                networks_onnx.convolutional,
                replace(STATIC, parameters={"kind": "static"}),
                id="moving average", marks=pytest.mark.long,
            ),
        ],
    )  # fmt: skip
    @pytest.mark.long
    def test_the_artifact_gives_the_numbers_of_the_training(
        self, litert, tmp_path, network, spec
    ):
        model = network()
        calibration = networks_onnx.feeds(model, 24)
        _, run, artifact = self.trained(litert, model, spec, calibration)
        session = opened(artifact, tmp_path)
        inside = Inside(artifact.files[artifact.entry])
        step = next(
            one.scales[0] for one in inside.tensors.values() if one.name == "scores"
        )
        for feed in networks_onnx.feeds(model, 100, seed=1):
            apart = session.predict(feed)["scores"] - run(feed)["scores"]
            assert np.abs(apart).max() <= 1.001 * step

    @pytest.mark.long
    def test_weights_and_biases_are_the_trained_integers(self, litert, model, samples):
        proto, _, artifact = self.trained(litert, model, STATIC, samples)
        values = {
            one.name: numpy_helper.to_array(one) for one in proto.graph.initializer
        }
        nodes = {node.name: node for node in proto.graph.node}
        makers = {node.output[0]: node for node in proto.graph.node}
        inside = Inside(artifact.files[artifact.entry])
        layers = {inside.tensors[op.outputs[0]].name: op for op in inside.ops}
        moved = {"first": (0, 2, 3, 1), "second": (1, 2, 3, 0), "dense": (0, 1)}
        for layer, axes in moved.items():
            x, weight, bias = nodes[layer].input
            weight = weight.removesuffix("/rounded")
            op = layers["scores" if layer == "dense" else layer]
            wanted = values[f"{weight}/int8"].transpose(axes)
            assert np.array_equal(inside.stored(op.inputs[1]), wanted)
            step = values[f"{weight}/scale"] * values[makers[x].input[1]]
            found = inside.stored(op.inputs[2])
            assert np.abs(found - values[bias] / step).max() < 0.01

    @pytest.mark.long
    def test_what_is_learned_changes_the_file_and_is_made_alike(
        self, litert, model, samples
    ):
        *_, one = self.trained(litert, model, STATIC, samples)
        *_, other = self.trained(backend("litert"), model, STATIC, samples)
        assert one.files == other.files
        assert one.files != litert.lower(model, RPI4, STATIC, samples).files

    def test_only_static_int8_can_be_trained(self, litert, model, samples):
        for spec in (Spec("fp32", "fp32"), Spec("fp16", "fp16"), DYNAMIC, INT16):
            assert litert.trainable(model, RPI4, spec, None, samples) is None

    @pytest.mark.long
    def test_attention_is_off_by_what_the_softmax_of_litert_is(self, litert, tmp_path):
        model = networks_onnx.attention()
        calibration = networks_onnx.feeds(model, 24)
        _, run, artifact = self.trained(litert, model, STATIC, calibration)
        session = opened(artifact, tmp_path)
        inside = Inside(artifact.files[artifact.entry])
        step = next(
            one.scales[0] for one in inside.tensors.values() if one.name == "out"
        )
        for feed in networks_onnx.feeds(model, 50, seed=1):
            apart = session.predict(feed)["out"] - run(feed)["out"]
            assert np.abs(apart).max() <= 2.001 * step


@pytest.mark.skipif(
    armv7.python() is None, reason=f"{armv7.SETUP} makes the environment"
)
class TestArmv7:
    """The release itself, on this processor."""

    @pytest.mark.parametrize(
        "spec", [Spec("fp32", "fp32"), Spec("fp16", "fp16"), STATIC, INT16],
        ids=lambda one: one.name,
    )  # fmt: skip
    def test_what_it_may_run_it_runs_right(
        self, litert, model, samples, spec, tmp_path
    ):
        assert _apart(litert, model, samples, spec, tmp_path) < 0.05

    def test_dynamic_int8_would_be_garbage_and_that_is_what_is_judged(
        self, litert, model, samples, tmp_path
    ):
        """Per channel, in a matrix product: it loads, and its answers are noise."""
        assert _apart(litert, model, samples, DYNAMIC, tmp_path) > 0.3


def _apart(litert, model, samples, spec, folder: Path) -> float:
    """How far what answers for armv7 is from LiteRT, in parts of the largest value."""
    tolerances = {**ARMV7.tolerances, "int8-dynamic": Tolerance(0.05, 0.05)}
    target = replace(ARMV7, tolerances=tolerances)
    artifact = litert.lower(model, target, spec, samples)
    path = folder / artifact.entry
    path.write_bytes(artifact.files[artifact.entry])
    answers = []
    for session in (runtime("litert").load(path, {}), litert.opened(path, target, {})):
        runs = [session.predict(feed) for feed in samples]
        answers.append(np.stack([next(iter(run.values())) for run in runs]))
        session.close()
    here, there = answers
    return float(np.abs(here - there).max() / np.abs(here).max())
