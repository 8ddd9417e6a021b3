"""GPU targets on a machine without a GPU: what is made, what is said, what is not said.

Numbers are checked on the CPU in place of the GPU, as a build does it; where CUDA is,
the last tests run there.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from benches import reference, subject
from onnx import TensorProto, helper, numpy_helper
from timings import Timings

from device_agent.check import LACKS, check
from device_agent.contract.bundle import read_bundle
from device_agent.contract.machine import arch
from device_agent.contract.tensors import Feeds
from device_agent.runtimes import runtime
from device_agent.runtimes.base import Runtime
from edgeml.backends.onnxruntime import OnnxRuntimeBackend
from edgeml.bundling.packing import bundle_of
from edgeml.cache import Cache
from edgeml.candidate import Artifact, QuantizeOptions, Spec
from edgeml.errors import BackendError
from edgeml.graphs import gpu, preparation
from edgeml.graphs.protos import real_inputs, spec_of
from edgeml.model import Model
from edgeml.progress import Silent
from edgeml.quantizers import ort
from edgeml.recipes.recipe import Budget
from edgeml.trial import Trial, Verdict
from edgeml.workbench import Workbench
from targets.profile import load_target

from ..bundling.test_packing import Shipment, shipment, static

TARGETS = ("gpu-cuda", "gpu-tensorrt", "jetson-orin")
ONE = QuantizeOptions(methods=("minmax",))


@pytest.fixture(scope="module")
def backend() -> OnnxRuntimeBackend:
    found = OnnxRuntimeBackend()
    if found.host(load_target("gpu-cuda")).timed:
        pytest.skip("this machine has a GPU; what stands in for one is not asked")
    return found


def as_model(proto: onnx.ModelProto) -> Model:
    return Model(
        "graph", proto,
        tuple(map(spec_of, real_inputs(proto.graph))),
        tuple(map(spec_of, proto.graph.output)),
    )  # fmt: skip


def graph(
    nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray],
    inputs: list[object], outputs: list[object],
) -> Model:  # fmt: skip
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes, "net",
        [value("x", TensorProto.FLOAT, inputs)],
        [value("y", TensorProto.FLOAT, outputs)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 17)]
    return as_model(helper.make_model(made, opset_imports=opset, ir_version=8))


def flattening() -> Model:
    """A variable batch, and a Reshape whose shape is computed from it."""
    random = np.random.default_rng(0)
    make = helper.make_node
    return graph(
        [
            make("Conv", ["x", "w"], ["c"], "conv"),
            make("Shape", ["c"], ["s"], "shape"),
            make("Gather", ["s", "zero"], ["n"], "gather", axis=0),
            make("Concat", ["n", "rest"], ["t"], "concat", axis=0),
            make("Reshape", ["c", "t"], ["f"], "reshape"),
            make("Gemm", ["f", "v", "b"], ["y"], "head"),
        ],
        {
            "w": random.standard_normal((4, 1, 3, 3)).astype(np.float32),
            "zero": np.array([0]), "rest": np.array([-1]),
            "v": random.standard_normal((64, 5)).astype(np.float32),
            "b": random.standard_normal(5).astype(np.float32),
        },
        ["batch", 1, 6, 6], ["batch", 5],
    )  # fmt: skip


def samples(model: Model, count: int = 8) -> list[Feeds]:
    random = np.random.default_rng(1)
    return [
        {
            one.name: random.standard_normal((1, *one.shape[1:])).astype(np.float32)
            for one in model.inputs
        }
        for _ in range(count)
    ]


def proto_of(artifact: Artifact) -> onnx.ModelProto:
    return preparation.from_bytes(artifact.files[artifact.entry])


def answers(artifact: Artifact, feeds: list[Feeds], folder: Path) -> np.ndarray:
    path = folder / "model.onnx"
    path.write_bytes(artifact.files[artifact.entry])
    session = runtime("onnxruntime").load(path, {})
    return np.concatenate([session.predict(one)["y"] for one in feeds])


def by_name(specs: list[Spec]) -> dict[str, Spec]:
    return {one.name: one for one in specs}


@pytest.mark.parametrize("name", TARGETS)
def test_the_cpu_stands_in_and_is_named(backend, name):
    target = load_target(name)
    host = backend.host(target)
    assert host.validated_on == f"CPUExecutionProvider of this {arch()} machine"
    assert not host.timed
    assert backend.refusals(flattening(), target) == []
    options = backend.host_options(target, {**target.runtime_options, "fp16": True})
    assert options["provider"] == "cpu"
    assert not {"fp16", "engine_cache", "cpu_fallback", "tf32"} & options.keys()


def test_a_cpu_target_needs_no_stand_in(backend):
    target = load_target("cpu-x86_64")
    assert backend.host(target).timed
    assert backend.host(target).validated_on == ""
    options = dict(target.runtime_options)
    assert backend.host_options(target, options) == options


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_offered(backend, name):
    specs = by_name(backend.specs(flattening(), load_target(name), QuantizeOptions()))
    assert list(specs)[:2] == ["fp32", "fp16"]
    quantized = [one for one in specs.values() if one.precision == "int8"]
    assert {one.parameters["method"] for one in quantized} == set(ort.METHODS)
    assert all(one.parameters["activation"] == "s8" for one in quantized)
    assert not any("nncf" in one for one in specs), "its activations are u8"


def test_what_the_recipe_names_and_a_gpu_has_not_is_a_reason(backend):
    options = QuantizeOptions(precisions=("int4",), quantizers=("nncf",))
    specs = backend.specs(flattening(), load_target("gpu-tensorrt"), options)
    reasons = [one.refused for one in specs if one.refused]
    assert any("has fp32, fp16, int8" in one for one in reasons)
    assert any("is quantized for with ort" in one for one in reasons)


@pytest.mark.parametrize("name", TARGETS)
def test_every_artifact_has_fixed_shapes_and_computes_none(backend, name, tmp_path):
    model, target = flattening(), load_target(name)
    feeds = samples(model)
    specs = backend.specs(model, target, ONE)
    exact = answers(backend.lower(model, target, specs[0], feeds), feeds, tmp_path)
    for spec in specs:
        artifact = backend.lower(model, target, spec, feeds)
        proto = proto_of(artifact)
        assert not {"Shape", "Gather"} & preparation.op_counts(proto).keys()
        for value in (*proto.graph.input, *proto.graph.output):
            dims = value.type.tensor_type.shape.dim
            assert all(dim.HasField("dim_value") for dim in dims), spec.name
        found = answers(artifact, feeds, tmp_path)
        slack = {"fp32": 1e-6, "fp16": 5e-3}.get(spec.precision, 0.1)
        assert np.abs(found - exact).max() <= slack * np.abs(exact).max(), spec.name


def test_the_model_that_came_in_keeps_its_variable_batch(backend):
    model, target = flattening(), load_target("gpu-cuda")
    before = model.payload.SerializeToString()
    backend.lower(model, target, Spec("fp32", "fp32"), [])
    assert model.payload.SerializeToString() == before


def test_another_variable_dimension_is_refused_with_what_to_do(backend):
    node = helper.make_node("Relu", ["x"], ["y"], "act")
    model = graph([node], {}, ["batch", "length", 4], ["batch", "length", 4])
    (reason,) = backend.refusals(model, load_target("gpu-tensorrt"))
    assert "x [?, ?, 4]" in reason
    assert "[model] inputs" in reason


def test_options_say_what_the_engine_may_compute_in(backend):
    model, feeds = flattening(), samples(flattening())
    for name, wanted in (
        ("gpu-tensorrt", [{}, {"fp16": True}, {"int8": True}]),
        ("gpu-cuda", [{}, {}, {}]),
    ):
        target = load_target(name)
        made = [
            backend.lower(model, target, spec, feeds).options
            for spec in backend.specs(model, target, ONE)
        ]
        assert made == wanted


@pytest.mark.long
@pytest.mark.parametrize("kind", ["depthwise", "transformer"])
def test_int8_of_real_networks_keeps_tensorrts_rules(backend, kind):
    pytest.importorskip("torch")
    from kinds import network

    from edgeml.passes import load_pass

    model, target = load_pass("export")(network(kind)), load_target("gpu-tensorrt")
    specs = by_name(backend.specs(model, target, ONE))
    if kind == "transformer":
        assert "int8 ort minmax s8s8 dense" in specs
    feeds = samples(model)
    for name, spec in specs.items():
        if spec.precision != "int8":
            continue
        artifact = backend.lower(model, target, spec, feeds)
        assert gpu.tensorrt_faults(proto_of(artifact)) == []
        kinds = preparation.op_counts(proto_of(artifact))
        assert kinds["QuantizeLinear"] >= 5, name
        assert backend.layer_errors(model, artifact, feeds[:2]), name


def test_what_onnx_runtime_makes_by_itself_breaks_them(backend):
    """The check can fail: u8, zero points, integer biases."""
    model = flattening()
    plain = ort.quantize_default(gpu.pinned(model.payload), samples(model))
    prepared = preparation.prepare(gpu.pinned(model.payload))
    ranges = ort.calibrate(prepared, samples(model), "minmax")
    unsigned = ort.quantize_static(prepared, ranges, activation="u8")
    for proto in (plain, unsigned):
        faults = " ".join(gpu.tensorrt_faults(proto))
        assert "zero point" in faults
        assert "reads a quantized bias" in faults
    assert "uint8" in " ".join(gpu.tensorrt_faults(unsigned))
    turned = ort.quantize_static(
        prepared, ranges, activation="s8", tensorrt=True, operators=["Conv", "Gemm"]
    )
    assert gpu.tensorrt_faults(turned) == []
    for node in turned.graph.node:
        for one in node.attribute:
            if node.op_type == "DequantizeLinear" and one.name == "axis":
                one.i = 1 - one.i
    assert "has scales along dimension" in " ".join(gpu.tensorrt_faults(turned))


def exploding() -> Model:
    """Its middle reaches 300 · 300 = 90,000; its answer is small again."""
    make = helper.make_node
    eye = np.eye(4, dtype=np.float32)
    return graph(
        [
            make("MatMul", ["x", "w"], ["a"], "first"),
            make("MatMul", ["a", "w"], ["b"], "second"),
            make("MatMul", ["b", "v"], ["y"], "third"),
        ],
        {"w": eye * 300, "v": eye * 1e-4},
        ["batch", 4], ["batch", 4],
    )  # fmt: skip


def test_what_float16_cannot_hold_is_found_though_a_cpu_hides_it(backend, tmp_path):
    model, target = exploding(), load_target("gpu-cuda")
    feeds: list[Feeds] = [{"x": np.ones((1, 4), np.float32)}]
    spec = Spec("fp16", "fp16")
    on_cpu = backend.lower(model, load_target("cpu-x86_64"), spec, feeds)
    np.testing.assert_allclose(answers(on_cpu, feeds, tmp_path), 9, rtol=1e-2)
    with pytest.raises(BackendError, match=r"second reaches 9e\+04.*quantize. keep"):
        backend.lower(model, target, spec, feeds)
    half_kept = replace(spec, keep=("second",))
    with pytest.raises(BackendError, match="third reaches"):
        backend.lower(model, target, half_kept, feeds)
    kept = replace(spec, keep=("second", "third"))
    made = backend.lower(model, target, kept, feeds)
    np.testing.assert_allclose(answers(made, feeds, tmp_path), 9, rtol=1e-2)
    casts = [n for n in proto_of(made).graph.node if n.op_type == "Cast"]
    assert not any("b" in node.input for node in casts), "90,000 is never rounded"


def test_tokens_are_not_rounded_to_float16(backend, tmp_path):
    """3001 is no float16: the row beside it would be read."""
    table = np.random.default_rng(0).standard_normal((4096, 8)).astype(np.float32)
    make = helper.make_node
    nodes = [
        make("Cast", ["x"], ["i"], "cast", to=TensorProto.INT64),
        make("Gather", ["table", "i"], ["y"], "gather"),
    ]
    model = graph(nodes, {"table": table}, [1, 3], [1, 3, 8])
    feeds: list[Feeds] = [{"x": np.array([[5, 3001, 4095]], np.float32)}]
    made = backend.lower(model, load_target("gpu-cuda"), Spec("fp16", "fp16"), feeds)
    found = answers(made, feeds, tmp_path)
    np.testing.assert_allclose(found[0], table[[5, 3001, 4095]], atol=2e-3)


def tried(name: str, folder: Path, budget: Budget) -> tuple[Verdict, Workbench]:
    work = Workbench(
        subject(), load_target(name), OnnxRuntimeBackend(), Cache(folder), Timings(),
        Silent(),
    )  # fmt: skip
    return Trial(work, reference(), budget, ONE).run(), work


@pytest.mark.parametrize(
    ("name", "first"), [("gpu-cuda", "fp16"), ("gpu-tensorrt", "int8")]
)
def test_nothing_is_timed_and_the_profile_chooses(backend, tmp_path, name, first):
    limits = Budget(
        max_accuracy_drop=0.05, max_latency_ms=1e-9, max_memory_bytes=1,
        max_fallback_share=0.0,
    )  # fmt: skip
    verdict, work = tried(name, tmp_path, limits)
    outcome = verdict.outcome
    assert outcome.validated_on == backend.host(load_target(name)).validated_on
    assert set(outcome.unchecked) == {
        "max_latency_ms", "max_memory_bytes", "max_fallback_share",
    }  # fmt: skip
    for one in outcome.candidates:
        assert one.latency is None and one.peak_memory_bytes is None
        assert one.coverage is None
        assert one.evaluation is not None and one.status in ("fits", "chosen")
    chosen = next(one for one in outcome.candidates if one.status == "chosen")
    assert chosen.precision == first
    assert "not timed here" in outcome.choice_reason
    assert verdict.artifact is not None
    assert work.options(verdict.artifact)["provider"] == name.removeprefix("gpu-")


def test_accuracy_is_gated_all_the_same(backend, tmp_path):
    strict = Budget(max_flip_rate=0.0, max_accuracy_drop=0.0)
    verdict, _ = tried("gpu-tensorrt", tmp_path, strict)
    int8 = next(o for o in verdict.outcome.candidates if o.precision == "int8")
    assert int8.status == "missed"
    assert verdict.outcome.chosen in ("fp16", "fp32")


def test_the_bundle_is_the_gpus_and_no_cpu_runs_it(backend, tmp_path):
    """Packed here, portable, and refused where the GPU is not."""
    for part in ("packed", "cache"):
        (tmp_path / part).mkdir()
    ship, _ = shipment(tmp_path / "packed", static("int8 minmax u8s8"))
    verdict, work = tried("gpu-tensorrt", tmp_path / "cache", Budget())
    assert verdict.artifact is not None
    chosen = next(o for o in verdict.outcome.candidates if o.status == "chosen")
    ship = replace(
        ship, outcome=verdict.outcome, candidate=chosen, artifact=verdict.artifact
    )
    assert isinstance(ship, Shipment)
    raw = bundle_of(ship, work)
    assert bundle_of(ship, work) == raw
    bundle = read_bundle_of(tmp_path, raw)
    manifest = bundle.manifest
    assert manifest.metrics.latency is None
    assert manifest.runtime.options["provider"] == "tensorrt"
    assert manifest.runtime.options["engine_cache"] == "device"
    assert manifest.runtime.options["cpu_fallback"] is False
    assert all(size > 0 for one in manifest.inputs for size in one.shape)
    card = bundle.member("card.md").decode()
    assert "not on the target's own device; not timed" in card
    report = check(tmp_path / "it.edgeml")
    assert (report.exit_code, report.failure and report.failure.step) == (LACKS, "load")
    assert report.failure and "TensorrtExecutionProvider" in report.failure.reason


def read_bundle_of(folder: Path, raw: bytes):
    path = folder / "it.edgeml"
    path.write_bytes(raw)
    return read_bundle(path)


def cuda() -> bool:
    return OnnxRuntimeBackend().host(load_target("gpu-cuda")).timed


@pytest.mark.skipif(not cuda(), reason="CUDAExecutionProvider does not start here")
class TestOnARealGpu:
    @pytest.fixture
    def engine(self) -> Runtime:
        return runtime("onnxruntime")

    def test_the_numbers_are_those_of_the_cpu(self, engine: Runtime, tmp_path: Path):
        backend, target = OnnxRuntimeBackend(), load_target("gpu-cuda")
        model = flattening()
        feeds = samples(model)
        for spec in backend.specs(model, target, ONE):
            artifact = backend.lower(model, target, spec, feeds)
            exact = answers(artifact, feeds, tmp_path)
            session = engine.load(
                tmp_path / "model.onnx", {**target.runtime_options, **artifact.options}
            )
            found = np.concatenate([session.predict(one)["y"] for one in feeds])
            bound = target.tolerances[spec.precision]
            np.testing.assert_allclose(
                found, exact, rtol=bound.rtol, atol=bound.atol, err_msg=spec.name
            )

    def test_a_build_times_it_there(self, tmp_path: Path):
        verdict, _ = tried("gpu-cuda", tmp_path, Budget(max_accuracy_drop=0.05))
        assert verdict.outcome.validated_on == ""
        assert verdict.outcome.unchecked == ()
        floating = verdict.outcome.candidates[0]
        assert floating.latency is not None and floating.coverage is not None
        assert floating.coverage.fallback == ()
