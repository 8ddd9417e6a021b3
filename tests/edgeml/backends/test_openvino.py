import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("device_agent.runtimes.openvino")

from device_agent.contract.tensors import TensorSpec, datatype_of
from device_agent.runtimes import runtime
from edgeml.backends import backend
from edgeml.backends.base import Base
from edgeml.candidate import QuantizeOptions, Spec
from edgeml.errors import BackendError
from edgeml.model import Model
from targets.profile import Target, Tolerance

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT.parent / "shared" / "data"
INT8 = Spec("int8", "int8", "nncf", {"fast_bias_correction": False})
TARGET = Target(
    name="here",
    title="OpenVINO on a CPU with VNNI",
    arch="x86_64",
    isa=("avx512_vnni",),
    runtime="openvino",
    runtime_options={"device": "CPU", "precision_hint": "f32"},
    threads=1,
    memory_bytes=1 << 32,
    storage_bytes=1 << 32,
    precisions=("fp32", "fp16", "int8", "mixed"),
    compatible=("here",),
    channel_multiple=16,
    qemu_cpu=None,
    tolerances={"fp32": Tolerance(1e-5, 1e-4)},
)


def graph_model(proto, **shapes):
    """``proto`` as a Model; ``shapes`` pins inputs, as a recipe does."""
    weights = {item.name for item in proto.graph.initializer}

    def spec(item):
        kind = item.type.tensor_type
        shape = tuple(
            one.dim_value if one.HasField("dim_value") else -1 for one in kind.shape.dim
        )
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        return TensorSpec(
            name=item.name,
            datatype=datatype_of(dtype),
            shape=shapes.get(item.name, shape),
        )

    inputs = [spec(item) for item in proto.graph.input if item.name not in weights]
    outputs = [spec(item) for item in proto.graph.output]
    return Model("graph", proto, tuple(inputs), tuple(outputs))


def network(kind="Relu"):
    """x [batch, 1, 8, 8] → Conv + BatchNormalization → nameless Conv → two outputs."""
    draw = np.random.default_rng(0)
    values = {
        "w1": draw.normal(size=(4, 1, 3, 3)),
        "w2": draw.normal(size=(2, 4, 3, 3)),
        **{name: draw.uniform(0.5, 2, 4) for name in ("scale", "shift", "mean", "var")},
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "first"),
        helper.make_node(
            "BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["b"], "norm"
        ),
        helper.make_node(kind, ["b"], ["c"], "bend"),
        helper.make_node("Conv", ["c", "w2"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["pooled:0"], "pool"),
        helper.make_node("Identity", ["d"], ["map"], "same"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [
            helper.make_tensor_value_info("map", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("pooled:0", TensorProto.FLOAT, None),
        ],
        [
            numpy_helper.from_array(value.astype(np.float32), name)
            for name, value in values.items()
        ],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )


@pytest.fixture(scope="module")
def openvino():
    return backend("openvino")


@pytest.fixture(scope="module")
def model():
    return graph_model(network())


@pytest.fixture(scope="module")
def samples():
    draw = np.random.default_rng(1)
    return [{"x": draw.normal(size=(1, 1, 8, 8)).astype(np.float32)} for _ in range(6)]


def opened(artifact, folder):
    for name, data in artifact.files.items():
        (folder / name).write_bytes(data)
    return runtime("openvino").load(folder / artifact.entry, TARGET.runtime_options)


@pytest.mark.parametrize(
    ("spec", "allowed"),
    [
        (Spec("fp32", "fp32"), 1e-5),
        (Spec("fp16", "fp16"), 1e-2),
        (INT8, 0.5),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_artifact_says_what_the_graph_says(
    openvino, model, samples, spec, allowed, tmp_path
):
    before = model.payload.SerializeToString()
    artifact = openvino.lower(model, TARGET, spec, samples)
    assert model.payload.SerializeToString() == before
    session = opened(artifact, tmp_path)
    assert [one.name for one in session.inputs] == ["x"]
    assert session.inputs[0].shape == (1, 1, 8, 8)
    assert [one.name for one in session.outputs] == ["map", "pooled:0"]
    wanted = ort.InferenceSession(before).run(None, samples[0])
    for exact, got in zip(wanted, session.predict(samples[0]).values(), strict=True):
        assert np.abs(exact - got).max() < allowed * max(1, np.abs(exact).max())


def test_int8_is_marked_in_the_artifact_and_smaller(openvino, model, samples):
    float32, half, int8 = (
        len(openvino.lower(model, TARGET, spec, samples).files["model.bin"])
        for spec in (Spec("fp32", "fp32"), Spec("fp16", "fp16"), INT8)
    )
    assert int8 < half < float32


def test_the_batch_stays_variable_when_the_samples_vary(openvino, model, tmp_path):
    feeds = [{"x": np.zeros((2, 1, 8, 8), np.float32)}]
    artifact = openvino.lower(model, TARGET, Spec("fp32", "fp32"), feeds)
    assert opened(artifact, tmp_path).inputs[0].shape == (-1, 1, 8, 8)


def test_a_history_of_other_models_does_not_change_the_bytes(openvino, model, samples):
    """OpenVINO numbers what has no name by a counter of the process."""
    one = openvino.lower(model, TARGET, INT8, samples)
    openvino.lower(graph_model(network("Sigmoid")), TARGET, INT8, samples)
    assert openvino.lower(model, TARGET, INT8, samples).digest == one.digest


@pytest.mark.long
def test_another_process_in_another_folder_gives_the_same_bytes(
    openvino, model, samples, tmp_path
):
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_openvino import *
draw = np.random.default_rng(1)
feeds = [{{"x": draw.normal(size=(1, 1, 8, 8)).astype(np.float32)}} for _ in range(6)]
made = backend("openvino").lower(graph_model(network()), TARGET, INT8, feeds)
print(made.digest)
"""
    (tmp_path / "tmp").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp"), "PYTHONHASHSEED": "7"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    here = openvino.lower(model, TARGET, INT8, samples)
    assert done.stdout.strip() == here.digest
    assert str(tmp_path).encode() not in here.files["model.xml"]


def test_layer_errors_name_the_onnx_nodes_worst_first(openvino, model, samples):
    artifact = openvino.lower(model, TARGET, INT8, samples)
    errors = openvino.layer_errors(model, artifact, samples[:2])
    assert {(error.node, error.op) for error in errors} == {
        ("first", "Conv"),
        ("d", "Conv"),
        ("pool", "GlobalAveragePool"),
    }
    assert [error.added_db for error in errors] == sorted(
        (error.added_db for error in errors), reverse=True
    )
    assert all(10 < error.sqnr_db <= 60 for error in errors)


def test_a_float_artifact_has_no_layer_errors(openvino, model, samples):
    artifact = openvino.lower(model, TARGET, Spec("fp32", "fp32"), samples)
    assert openvino.layer_errors(model, artifact, samples) == []


@pytest.mark.parametrize("keep", ["first", "norm", "a", "b"])
def test_a_layer_is_kept_by_any_name_of_what_was_fused_into_it(
    openvino, model, samples, keep
):
    artifact = openvino.lower(model, TARGET, replace(INT8, keep=(keep,)), samples)
    errors = openvino.layer_errors(model, artifact, samples[:2])
    assert {error.node for error in errors} == {"d", "pool"}


def test_keeping_every_layer_leaves_nothing_quantized(openvino, model, samples):
    artifact = openvino.lower(
        model, TARGET, replace(INT8, keep=("first", "d", "pool")), samples
    )
    assert openvino.layer_errors(model, artifact, samples[:2]) == []


def test_an_unknown_layer_to_keep_is_an_error(openvino, model, samples):
    with pytest.raises(BackendError, match="no node named nowhere in the ONNX graph"):
        openvino.lower(model, TARGET, replace(INT8, keep=("nowhere",)), samples)


def test_specs_start_with_fp32_and_have_nncfs_defaults(openvino, model):
    specs = openvino.specs(model, TARGET, QuantizeOptions(keep=("first",)))
    assert specs[0] == Spec("fp32", "fp32")
    assert Spec("int8 nncf default", "int8", "nncf", {}, ("first",)) in specs
    assert len({spec.name for spec in specs}) == len(specs)
    assert all("first" in spec.keep for spec in specs if spec.quantizer)


def test_a_target_that_saturates_gets_safe_weights(openvino, model):
    old = replace(TARGET, isa=("avx2",))
    for target, safe in ((old, True), (TARGET, False)):
        specs = openvino.specs(model, target, QuantizeOptions())
        ours = [spec for spec in specs if spec.quantizer and spec.parameters]
        assert ours
        assert all(spec.parameters["overflow_safe"] is safe for spec in ours)
        assert {spec.name: spec.ships for spec in specs} == {
            spec.name: safe is False or spec.name != "int8 nncf default"
            for spec in specs
        }


def test_options_choose_the_candidates(openvino, model):
    def names(**options):
        specs = openvino.specs(model, TARGET, QuantizeOptions(**options))
        return [spec.name for spec in specs]

    assert names(precisions=("fp16",)) == ["fp32", "fp16"]
    assert "fp16" not in names(precisions=("int8",))
    assert "int8 nncf default" in names()
    assert "int8 nncf default" not in names(per_channel=False)
    assert "int8 nncf plain percentile" in names(percentile=99.0)
    assert names(quantizers=("inc",)) == [
        "fp32", "fp16", "int8 inc minmax", "int8 inc kl",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"methods": ("entropy",)}, "entropy is a method of inc of nncf, inc"),
        ({"methods": ("entropy", "minmax")}, "entropy is a method of inc"),
        ({"methods": ("entropy",), "quantizers": ("nncf",)}, "minmax, percentile"),
        ({"methods": ("percentile",), "quantizers": ("inc",)}, "minmax, entropy"),
        ({"quantizers": ("ort",)}, "quantized for with nncf, inc"),
        ({"precisions": ("int8-dynamic",)}, "has fp32, fp16, int8, mixed"),
    ],
    ids=str,
)
def test_what_no_tool_does_is_a_candidate_that_fails_with_the_reason(
    openvino, model, samples, options, word
):
    specs = openvino.specs(model, TARGET, QuantizeOptions(**options))
    refused = [spec for spec in specs if spec.refused]
    assert refused
    with pytest.raises(BackendError, match=word):
        openvino.lower(model, TARGET, refused[0], samples)


@pytest.mark.parametrize(
    "options",
    [
        {"methods": ("minmax",)},
        {"methods": ("percentile",), "percentile": 90.0},
        {"methods": ("percentile",), "percentile": 70.0},
        {"per_channel": False},
        {"keep": ("d",)},
    ],
    ids=str,
)
def test_every_option_changes_what_is_made(openvino, model, samples, options):
    def plain(given):
        specs = openvino.specs(model, TARGET, given)
        (spec,) = (one for one in specs if one.name.startswith("int8 nncf plain"))
        return openvino.lower(model, TARGET, spec, samples).digest

    made = plain(QuantizeOptions(**options))
    assert made != plain(QuantizeOptions())
    if options.get("percentile") == 90.0:
        assert made != plain(QuantizeOptions(methods=("percentile",), percentile=80.0))


def test_every_offered_candidate_can_be_made(openvino, model, samples):
    options = QuantizeOptions(methods=("minmax", "percentile"), per_channel=False)
    for spec in openvino.specs(model, TARGET, options):
        assert openvino.lower(model, TARGET, spec, samples).size_bytes


def test_neural_compressor_needs_a_torch_model(openvino, model, samples):
    options = QuantizeOptions(quantizers=("inc",))
    spec = openvino.specs(model, TARGET, options)[-1]
    with pytest.raises(BackendError, match="this one came as ONNX"):
        openvino.lower(model, TARGET, spec, samples)


def test_attention_brings_the_transformer_preset(openvino):
    nodes = [
        helper.make_node("MatMul", ["x", "x"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"]),
        helper.make_node("MatMul", ["p", "x"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, [1, 4, 4])],
        [value("y", TensorProto.FLOAT, [1, 4, 4])],
    )
    names = [
        spec.name
        for spec in openvino.specs(
            graph_model(helper.make_model(graph)), TARGET, QuantizeOptions()
        )
    ]
    assert "int8 nncf transformer" in names
    assert "int8 nncf transformer unsmoothed" in names


def test_a_good_model_is_not_refused(openvino, model):
    assert openvino.refusals(model, TARGET) == []


def test_an_operator_that_openvino_lacks_is_named(openvino):
    proto = network()
    proto.graph.node[2].op_type = "Wobble"
    proto.graph.node[2].domain = "com.acme"
    proto.opset_import.append(helper.make_opsetid("com.acme", 1))
    (refusal,) = openvino.refusals(graph_model(proto), TARGET)
    assert refusal == "OpenVINO has no operator com.acme.Wobble (node bend)"


def test_a_gpu_that_is_not_here_is_a_refusal(openvino, model):
    import openvino as ov

    if any(name.startswith("GPU") for name in ov.Core().available_devices):
        pytest.skip("this machine has a GPU that OpenVINO finds")
    target = replace(TARGET, runtime_options={"device": "GPU"})
    (refusal,) = openvino.refusals(model, target)
    assert "computes on the GPU" in refusal


def test_another_quantizer_is_an_error(openvino, model, samples):
    with pytest.raises(BackendError, match="quantizes with nncf, inc, not ort"):
        openvino.lower(model, TARGET, replace(INT8, quantizer="ort"), samples)


def real(path):
    if not (DATA / path).exists():
        pytest.skip(f"../shared/data/{path} is absent")
    return onnx.load(str(DATA / path))


def random_feeds(model, count=2):
    draw = np.random.default_rng(0)
    return [
        {
            spec.name: draw.normal(size=[max(1, one) for one in spec.shape]).astype(
                spec.dtype
            )
            for spec in model.inputs
        }
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    "path",
    [
        "mnist/mnist-8.onnx",
        "mlperf_tiny_kws/kws_dscnn_float.onnx",
        "silero_vad/silero_vad_openvino_16k.onnx",
        pytest.param(
            "ultraface/version-slim-320_without_postprocessing.onnx",
            marks=pytest.mark.long,
        ),
        pytest.param("basic_pitch/nmp.onnx", marks=pytest.mark.long),
    ],
)
def test_real_models_convert_and_agree(openvino, path, tmp_path):
    model = graph_model(real(path))
    assert openvino.refusals(model, TARGET) == []
    (feeds, _) = samples = random_feeds(model)
    artifact = openvino.lower(model, TARGET, Spec("fp32", "fp32"), samples)
    got = opened(artifact, tmp_path).predict(feeds)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    oracle = ort.InferenceSession(model.payload.SerializeToString(), options)
    names = [item.name for item in model.payload.graph.output]
    for name, exact in zip(names, oracle.run(names, feeds), strict=True):
        assert np.abs(got[name] - exact).max() < 1e-4 * max(1, np.abs(exact).max())
    int8 = Spec("int8", "int8", "nncf", {}, keep=())
    quantized = openvino.lower(model, TARGET, int8, samples)
    assert quantized.size_bytes < artifact.size_bytes
    errors = openvino.layer_errors(model, quantized, samples[:1])
    nodes = {node.name or node.output[0] for node in model.payload.graph.node}
    assert errors
    assert {error.node for error in errors} <= nodes


def test_control_flow_over_unknown_shapes_is_refused_by_node(openvino):
    model = graph_model(real("silero_vad/silero_vad.onnx"))
    (refusal,) = openvino.refusals(model, TARGET)
    assert "Conv If_0_then_branch__Inline_0__/decoder/decoder/2/Conv: " in refusal
    assert "fixed shapes" in refusal


def test_pinned_shapes_make_a_variable_model_convertible(openvino):
    proto = real("silero_vad/silero_vad_half.onnx")
    pinned = graph_model(proto, input=(1, 576), state=(2, 1, 128))
    assert openvino.refusals(graph_model(proto), TARGET) != []
    assert openvino.refusals(pinned, TARGET) == []


def test_float_artifacts_need_no_samples(openvino, model):
    artifact = openvino.lower(model, TARGET, Spec("fp32", "fp32"), [])
    assert sorted(artifact.files) == ["model.bin", "model.xml"]
    assert artifact.entry == "model.xml"


# --- QAT


def test_each_way_of_nncf_can_be_trained_as_an_onnx_graph(openvino, model, samples):
    from edgeml.graphs.protos import is_quantized

    for spec in openvino.specs(model, TARGET, QuantizeOptions()):
        if spec.quantizer == "nncf":
            artifact = openvino.lower(model, TARGET, spec, samples)
            graph = openvino.trainable(model, TARGET, spec, artifact, samples)
            assert is_quantized(graph), spec.name
        else:
            assert openvino.trainable(model, TARGET, spec, None, samples) is None


def test_the_artifact_computes_what_was_simulated(openvino, model, samples, tmp_path):
    torch = pytest.importorskip("torch")
    from edgeml.training.simulation import Simulation

    spec = Spec("int8", "int8", "nncf", {"overflow_safe": True})
    graph = openvino.trainable(model, TARGET, spec, None, samples)
    made = Simulation(graph, model.inputs)
    with torch.no_grad():  # as if something had been learned
        for one in made.module.parameters():
            one *= 1.1
    after = replace(model, payload=made.written())
    artifact = openvino.retrained(after, TARGET, spec, Base(model, spec, samples))
    assert b'type="FakeQuantize"' in artifact.files["model.xml"]
    session = opened(artifact, tmp_path)
    for feed in samples:
        found = session.predict(feed)
        with torch.no_grad():
            wanted = made.module(*(torch.from_numpy(one) for one in feed.values()))
        for name, one in wanted.items():
            apart = np.abs(found[name] - one.numpy())
            assert apart.max() <= np.ptp(one.numpy()) / 255
    session.close()
