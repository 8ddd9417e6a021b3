"""An ONNX graph becomes a torch module: same names, same numbers, open for more."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxgraphs import graph, node, of, random

from edgeml.errors import ModelError
from edgeml.graphs.preparation import to_bytes
from edgeml.graphs.torched import Importer, difference, module_of
from edgeml.model import Model
from edgeml.passes import load_pass
from edgeml.passes.base import Context, digest

torch = pytest.importorskip("torch")

DATA = Path(__file__).parents[4] / "shared" / "data"
PUBLIC = {
    "mnist/mnist-8.onnx": 1e-5,
    "mlperf_tiny_kws/kws_dscnn_float.onnx": 1e-5,
    "ultraface/version-RFB-320.onnx": 1e-5,
    "ultraface/version-slim-320_without_postprocessing.onnx": 1e-5,
    # logarithms of sums near zero: float32 itself is that far from float64
    "basic_pitch/nmp.onnx": 1e-4,
    # a probability of 1e-4 out of a logit: parts of it are larger than the logit's
    "silero_vad/silero_vad_openvino_16k.onnx": 1e-4,
}

HEAVY = ("basic_pitch/nmp.onnx", "ultraface/version-RFB-320.onnx")


def net(batch: Any = "n") -> Model:
    """A convolution with its bias apart, a reshape that names sizes, a matrix."""
    return graph(
        [
            node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
            node("Add", ["c", "b"], ["cb"]),
            node("Relu", ["cb"], ["r"]),
            node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
            node("Reshape", ["p", "to"], ["f"]),
            node("MatMul", ["f", "m"], ["y"]),
        ],
        {"x": [batch, 2, 6, 6]},
        ["y"],
        {
            "w": random(4, 2, 3, 3), "b": random(4, 1, 1), "m": random(36, 5),
            "to": np.array([1 if batch == 1 else -1, 36]),
        },
    )  # fmt: skip


def test_layers_are_real_ones_named_after_nodes() -> None:
    made = module_of(net())
    layers = dict(made.payload.named_children())
    assert list(layers) == ["the_Conv", "the_MatMul"]
    assert isinstance(layers["the_Conv"], torch.nn.Conv2d)
    assert isinstance(layers["the_MatMul"], torch.nn.Linear)
    assert made.payload.meta["onnx_names"]["the_Conv"] == "the Conv"


def test_a_bias_that_was_a_node_is_the_layers_own() -> None:
    module = module_of(net()).payload
    assert module.the_Conv.bias.shape == (4,)
    assert [name for name, _ in module.named_parameters()] == [
        "the_Conv.weight", "the_Conv.bias", "the_MatMul.weight",
    ]  # fmt: skip


def test_a_bias_of_an_output_that_is_read_elsewhere_stays_a_node() -> None:
    model = graph(
        [
            node("Conv", ["x", "w"], ["c"]),
            node("Add", ["c", "b"], ["cb"]),
            node("Mul", ["cb", "c"], ["y"]),
        ],
        {"x": [1, 2, 4, 4]}, ["y"], {"w": random(4, 2, 1, 1), "b": random(4, 1, 1)},
    )  # fmt: skip
    made = module_of(model)
    assert made.payload.the_Conv.bias is None
    assert made.lineage[-1].parameters["import_error"] < 1e-5


def test_names_and_lineage_stay() -> None:
    given = net()
    made = module_of(given)
    assert (made.level, made.inputs, made.outputs) == (
        "module", given.inputs, given.outputs,
    )  # fmt: skip
    assert [step.verb for step in made.lineage] == ["torch"]
    assert list(made.payload(torch.zeros(1, 2, 6, 6))) == ["y"]
    assert not made.payload.training


def test_it_is_the_same_every_time_and_can_be_copied() -> None:
    given = net()
    before = digest(given)
    made = module_of(given)
    assert digest(made) == digest(module_of(given))
    copied = copy.deepcopy(made.payload)
    assert digest(Model("module", copied, (), ())) == digest(made)
    assert digest(given) == before


@pytest.mark.parametrize("batch", [1, "n"])
def test_it_takes_any_batch_even_if_exported_for_one(batch: Any) -> None:
    made = module_of(net(batch))
    assert made.lineage[-1].parameters["batch"] == "variable"
    assert made.payload(torch.zeros(7, 2, 6, 6))["y"].shape == (7, 5)


def test_a_batch_that_is_mixed_up_is_told() -> None:
    model = graph(
        [node("ReduceMax", ["x"], ["m"], keepdims=1), node("Sub", ["x", "m"], ["y"])],
        {"x": [1, 4]}, ["y"],
    )  # fmt: skip
    assert module_of(model).lineage[-1].parameters["batch"] == "1"


def test_a_pruned_convolution_does_not_break_the_reshape_after_it() -> None:
    module = module_of(net(1)).payload
    conv, linear = module.the_Conv, module.the_MatMul
    conv.weight = torch.nn.Parameter(conv.weight[:3])
    conv.bias = torch.nn.Parameter(conv.bias[:3])
    linear.weight = torch.nn.Parameter(linear.weight[:, :27])
    assert module(torch.zeros(2, 2, 6, 6))["y"].shape == (2, 5)


def test_sizes_read_off_a_shape_stay_open() -> None:
    model = graph(
        [
            node("Shape", ["x"], ["s"]),
            helper.make_node("Gather", ["s", "zero"], ["n"], name="first"),
            helper.make_node("Gather", ["s", "one"], ["c"], name="second"),
            node("Mul", ["c", "four"], ["k"]),
            helper.make_node("Unsqueeze", ["n", "axis"], ["n1"], name="u1"),
            helper.make_node("Unsqueeze", ["k", "axis"], ["k1"], name="u2"),
            node("Concat", ["n1", "k1"], ["to"], axis=0),
            node("Reshape", ["x", "to"], ["y"]),
        ],
        {"x": ["n", 3, 2, 2]}, ["y"],
        {"zero": np.array(0), "one": np.array(1), "four": np.array(4),
         "axis": np.array([0])},
    )  # fmt: skip
    module = module_of(model).payload
    assert module(torch.zeros(5, 6, 2, 2))["y"].shape == (5, 24)


def test_torch_export_takes_it_with_a_variable_batch() -> None:
    made = load_pass("export")(module_of(net(1)), Context())
    assert made.lineage[-1].parameters["batch"] == "variable"
    assert made.outputs[0].shape == (-1, 5)


def test_an_unknown_operator_is_named() -> None:
    model = graph([node("NonZero", ["x"], ["y"])], {"x": [1, 4]}, ["y"],
                  kinds={"y": TensorProto.INT64})  # fmt: skip
    with pytest.raises(
        ModelError, match=r"NonZero \(node 'the NonZero'\) has no count"
    ):
        module_of(model)


def test_a_computed_input_where_torch_needs_a_constant_is_named() -> None:
    model = graph(
        [node("Tile", ["x", "times"], ["y"])],
        {"x": [1, 4], "times": [2]}, ["y"], kinds={"times": TensorProto.INT64},
    )  # fmt: skip
    with pytest.raises(ModelError, match="input 'times' has to be a constant"):
        module_of(model)


def test_a_variable_size_that_is_no_batch_is_refused() -> None:
    model = graph([node("Relu", ["x"], ["y"])], {"x": [1, "t"]}, ["y"])
    with pytest.raises(ModelError, match=r"'x' has the shape \[1, -1\]"):
        module_of(model)


def test_other_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeml.graphs import torched_ops

    wrong = torched_ops.plain(torch.neg)
    monkeypatch.setitem(torched_ops.OPERATORS, "Relu", wrong)
    model = graph([node("Relu", ["x"], ["y"])], {"x": [1, 4]}, ["y"])
    with pytest.raises(ModelError, match="gives other numbers"):
        module_of(model)


def test_constants_are_parameters_where_they_can_be_learned() -> None:
    model = graph(
        [node("Mul", ["x", "gain"], ["m"]), node("Add", ["m", "one"], ["y"])],
        {"x": [1, 4]}, ["y"], {"gain": random(4), "one": np.float32(1)},
    )  # fmt: skip
    module = module_of(model).payload
    assert [name for name, _ in module.named_parameters()] == ["gain"]
    assert [name for name, _ in module.named_buffers()] == ["one"]


def test_operators_may_be_replaced() -> None:
    model = net()
    made = Importer(
        model.payload, model.inputs, {"Relu": lambda at: at.call(torch.neg, at.arg(0))}
    ).module()
    names = [str(node.target) for node in made.graph.nodes]
    assert any("neg" in name for name in names)
    assert not any("relu" in name for name in names)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long if name in HEAVY else ())
        for name in PUBLIC
    ],
)
def test_public_models_give_the_numbers_of_onnx_runtime(name: str) -> None:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{name} is not here")
    import onnxruntime

    model = of(onnx.load(path))
    made = module_of(model)
    session = onnxruntime.InferenceSession(
        to_bytes(model.payload), providers=["CPUExecutionProvider"]
    )
    feed = {spec.name: random(*map(abs, spec.shape), seed=11) for spec in model.inputs}
    wanted = session.run([spec.name for spec in model.outputs], feed)
    with torch.no_grad():
        found = made.payload(*(torch.from_numpy(one) for one in feed.values()))
    assert list(found) == [spec.name for spec in model.outputs]
    for one, other in zip(wanted, found.values(), strict=True):
        assert difference(one, other.numpy()) <= PUBLIC[name]
    torch.export.export(
        made.payload, tuple(torch.from_numpy(one) for one in feed.values())
    )
