"""What is offered for a target, what is refused, and what becomes of real models."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from device_agent.runtimes import runtime
from edgeml.backends.onnxruntime import OnnxRuntimeBackend
from edgeml.candidate import QuantizeOptions, Spec
from edgeml.errors import BackendError
from edgeml.graphs.protos import real_inputs, spec_of
from edgeml.model import Model
from targets.profile import Target, load_target

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"


def as_model(proto: onnx.ModelProto) -> Model:
    return Model(
        "graph", proto,
        tuple(map(spec_of, real_inputs(proto.graph))),
        tuple(map(spec_of, proto.graph.output)),
    )  # fmt: skip


def network(op: str = "Relu", domain: str = "") -> Model:
    random = np.random.default_rng(0)
    weight = random.standard_normal((4, 1, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
            helper.make_node(op, ["c"], ["y"], "act", domain=domain),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 4, 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    imports = [helper.make_opsetid("", 17)]
    imports += [helper.make_opsetid(domain, 1)] if domain else []
    return as_model(helper.make_model(graph, opset_imports=imports, ir_version=8))


SAMPLES = [
    {"x": np.random.default_rng(seed).standard_normal((1, 1, 6, 6)).astype("f4")}
    for seed in range(4)
]


@pytest.fixture
def backend() -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend()


@pytest.fixture(scope="module")
def plain() -> Target:
    return load_target("cpu-x86_64")


@pytest.fixture(scope="module")
def vnni() -> Target:
    return load_target("cpu-x86_64-vnni")


def names(specs: list[Spec]) -> list[str]:
    return [spec.name for spec in specs]


def test_float_first_and_the_defaults_of_the_peers(backend, vnni):
    specs = backend.specs(network(), vnni, QuantizeOptions())
    assert specs[0].name == "fp32"
    assert {"int8 ort default", "int8 nncf default"} <= set(names(specs))
    assert len(set(names(specs))) == len(specs)


def test_seven_bits_where_products_saturate(backend, plain, vnni):
    on_plain = names(backend.specs(network(), plain, QuantizeOptions()))
    on_vnni = names(backend.specs(network(), vnni, QuantizeOptions()))
    assert any("7 bit" in name for name in on_plain)
    assert not any("7 bit" in name for name in on_vnni)


def test_arm_prefers_signed_activations(backend, vnni):
    arm = replace(vnni, arch="aarch64", isa=("asimd",))
    specs = names(backend.specs(network(), arm, QuantizeOptions(methods=("minmax",))))
    minmax = [name for name in specs if name.startswith("int8 ort minmax")]
    assert minmax[0] == "int8 ort minmax s8s8"


def test_every_restriction_of_the_recipe_reaches_the_specs(backend, vnni):
    options = QuantizeOptions(
        precisions=("int8",), methods=("percentile",), quantizers=("ort",),
        keep=("act",), percentile=99.0, per_channel=False,
    )  # fmt: skip
    specs = backend.specs(network(), vnni, options)
    assert names(specs) == [
        "fp32", "int8 ort percentile u8s8", "int8 ort percentile s8s8",
    ]  # fmt: skip
    for spec in specs[1:]:
        assert spec.keep == ("act",)
        assert spec.parameters["percentile"] == 99.0
        assert spec.parameters["per_channel"] is False


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"methods": ("entropy",), "quantizers": ("nncf",)}, "minmax, percentile"),
        ({"methods": ("percentile",), "quantizers": ("inc",)}, "minmax, entropy"),
        ({"precisions": ("fp8",)}, "has fp32, fp16, int8"),
        ({"precisions": ("int8-dynamic",), "quantizers": ("nncf",)}, "made with ort"),
        ({"precisions": ("int8",), "quantizers": ("ort",)}, "none of Conv"),
    ],
    ids=str,
)
def test_what_no_tool_does_is_a_candidate_that_fails_with_the_reason(
    backend, vnni, options, word
):
    model = network()
    if "none of" in word:
        model.payload.graph.node[0].op_type = "Foreign"
    specs = backend.specs(model, vnni, QuantizeOptions(**options))
    refused = [spec for spec in specs if spec.refused]
    assert refused
    with pytest.raises(BackendError, match=word):
        backend.lower(model, vnni, refused[0], SAMPLES)


def test_every_option_reaches_nncf_too(backend, vnni):
    def made(**options):
        given = QuantizeOptions(quantizers=("nncf",), **options)
        specs = backend.specs(network(), vnni, given)
        (spec,) = (s for s in specs if s.name.startswith("int8 nncf no bias"))
        return backend.lower(network(), vnni, spec, SAMPLES).digest

    digests = [
        made(),
        made(methods=("minmax",)),
        made(methods=("percentile",), percentile=90.0),
        made(methods=("percentile",), percentile=70.0),
        made(per_channel=False),
        made(keep=("conv",)),
    ]
    assert len(set(digests)) == len(digests)


def test_neural_compressor_needs_a_torch_model(backend, vnni):
    options = QuantizeOptions(quantizers=("inc",))
    specs = backend.specs(network(), vnni, options)
    assert names(specs) == ["fp32", "fp16", "int8 inc minmax", "int8 inc kl"]
    with pytest.raises(BackendError, match="this one came as ONNX"):
        backend.lower(network(), vnni, specs[-1], SAMPLES)


def test_neural_compressor_knows_no_nodes(backend, vnni):
    spec = Spec("q", "int8", "inc", {}, keep=("conv",))
    model = replace(network(), origin=network)
    with pytest.raises(BackendError, match="knows no graph nodes to keep"):
        backend.lower(model, vnni, spec, SAMPLES)


def test_a_target_without_int8_gets_none(backend, vnni):
    only = replace(vnni, precisions=("fp32",))
    assert names(backend.specs(network(), only, QuantizeOptions())) == ["fp32"]


def test_all_reasons_against_a_target_are_given(backend, plain):
    foreign = replace(plain, runtime="litert", arch="armv7l")
    reasons = backend.refusals(network(), foreign)
    assert len(reasons) == 2
    assert "litert" in reasons[0] and "armv7l" in reasons[1]


def test_a_matrix_that_serves_two_products_loads_where_nothing_may_saturate(
    backend, plain, vnni, tmp_path
):
    """ONNX Runtime rewrites signed weights there, and trips over shared ones."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((16, 16)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"], "one"),
            helper.make_node("Relu", ["a"], ["r"], "act"),
            helper.make_node("MatMul", ["r", "w"], ["y"], "two"),
        ],
        "tied",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16])],
        [numpy_helper.from_array(weight, "w")],
    )
    opset = [helper.make_opsetid("", 17)]
    model = as_model(helper.make_model(graph, opset_imports=opset, ir_version=8))
    feeds = [{"x": random.standard_normal((1, 16)).astype("f4")} for _ in range(8)]
    options = QuantizeOptions(methods=("minmax",), quantizers=("ort",))
    sizes = {}
    for target in (plain, vnni):
        for spec in backend.specs(model, target, options):
            artifact = backend.lower(model, target, spec, feeds)
            if spec.name == "int8 ort minmax u8s8":
                sizes[target.name] = artifact.size_bytes
                path = tmp_path / target.name
                path.write_bytes(artifact.files["model.onnx"])
                session = runtime("onnxruntime").load(path, artifact.options)
                found = session.predict(feeds[0])["y"]
                exact = np.maximum(feeds[0]["x"] @ weight, 0) @ weight
                assert np.abs(found - exact).max() < 0.05 * np.abs(exact).max()
    assert sizes["cpu-x86_64"] > sizes["cpu-x86_64-vnni"], "copied only where need be"


def test_custom_operators_are_named(backend, plain):
    (reason,) = backend.refusals(network("Frobnicate", "acme"), plain)
    assert "acme.Frobnicate" in reason and "act" in reason
    (reason,) = backend.refusals(network("Frobnicate"), plain)
    assert "Frobnicate" in reason and "\n" not in reason


def test_artifacts_are_reproducible_and_the_model_untouched(backend, plain):
    model = network()
    before = model.payload.SerializeToString()
    options = QuantizeOptions(quantizers=("ort",))
    for spec in backend.specs(model, plain, options):
        first = backend.lower(model, plain, spec, SAMPLES)
        again = OnnxRuntimeBackend().lower(network(), plain, spec, SAMPLES)
        assert first == again, spec.name
    assert model.payload.SerializeToString() == before


def test_saturating_targets_ask_for_exact_products(backend, plain, vnni):
    spec = Spec("q", "int8", "ort", {"method": "minmax"})
    made = backend.lower(network(), plain, spec, SAMPLES)
    assert made.options == {"x64quantprecision": True}
    assert backend.lower(network(), vnni, spec, SAMPLES).options == {}
    exact = backend.lower(network(), plain, Spec("fp32", "fp32"), SAMPLES)
    assert exact.options == {}


def test_exact_products_give_the_same_numbers_here(backend, plain, tmp_path):
    made = backend.lower(
        network(), plain, Spec("q", "int8", "ort", {"method": "minmax"}), SAMPLES
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(made.files["model.onnx"])
    exact = runtime("onnxruntime").load(path, {"x64quantprecision": True})
    fast = runtime("onnxruntime").load(path, {"graph_optimization": "disabled"})
    step = np.ptp(exact.predict(SAMPLES[0])["y"]) / 255
    for feeds in SAMPLES:
        difference = exact.predict(feeds)["y"] - fast.predict(feeds)["y"]
        assert abs(difference).max() <= 1.01 * step


def test_unknown_nodes_and_quantizers_are_refused(backend, vnni):
    for spec, word in (
        (Spec("q", "int8", "ort", {"method": "minmax"}, keep=("nobody",)), "nobody"),
        (Spec("q", "int8", "elsewhere", {}), "elsewhere"),
    ):
        with pytest.raises(BackendError, match=word):
            backend.lower(network(), vnni, spec, SAMPLES)


def test_fp16_takes_and_gives_float32(backend, vnni, tmp_path):
    made = backend.lower(network(), vnni, Spec("fp16", "fp16"), SAMPLES)
    path = tmp_path / "model.onnx"
    path.write_bytes(made.files["model.onnx"])
    session = runtime("onnxruntime").load(path, made.options)
    assert [spec.datatype for spec in (*session.inputs, *session.outputs)] == [
        "FP32", "FP32",
    ]  # fmt: skip


def feeds_of(model: Model) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    feeds = {}
    for spec in model.inputs:
        shape = [1 if size == -1 else size for size in spec.shape]
        if spec.name == "sr":
            feeds[spec.name] = np.array(16000, np.int64)
            continue
        if spec.shape == (-1, -1):  # Silero's frames: 64 of context and 512
            shape = [1, 576]
        feeds[spec.name] = random.standard_normal(shape).astype(spec.dtype)
    return feeds


@pytest.mark.parametrize(
    ("file", "int8"),
    [
        ("mnist/mnist-8.onnx", "int8 ort minmax u8s8"),
        ("mlperf_tiny_kws/kws_dscnn_float.onnx", "int8 ort minmax u8s8"),
        ("silero_vad/silero_vad.onnx", "int8 ort dynamic"),
        ("ultraface/version-RFB-320.onnx", "int8 ort minmax u8s8"),
        ("basic_pitch/nmp.onnx", "int8 ort minmax u8s8 core"),
    ],
)
def test_real_models_build_in_float_and_int8(backend, vnni, tmp_path, file, int8):
    path = DATA / file
    if not path.exists():
        pytest.skip(f"../shared/data/{path.parent.name} is absent")
    model = as_model(onnx.load(path))
    assert backend.refusals(model, vnni) == []
    specs = {s.name: s for s in backend.specs(model, vnni, QuantizeOptions())}
    feeds = [feeds_of(model)]
    outputs = {}
    for name in ("fp32", int8):
        made = backend.lower(model, vnni, specs[name], feeds)
        artifact = tmp_path / "model.onnx"
        artifact.write_bytes(made.files["model.onnx"])
        session = runtime("onnxruntime").load(artifact, made.options)
        outputs[name] = session.predict(feeds[0])
    for name, wanted in outputs["fp32"].items():
        noise = wanted - outputs[int8][name]
        assert np.square(noise).sum() < 0.1 * np.square(wanted).sum(), name
