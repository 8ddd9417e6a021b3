"""A quantized graph in torch computes what ONNX Runtime does, and learns."""

from functools import cache
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxgraphs import graph, node, random
from sklearn.datasets import load_digits

from edgeml.errors import ModelError
from edgeml.graphs.preparation import prepare
from edgeml.model import Model
from edgeml.quantizers import nncf, ort

torch = pytest.importorskip("torch")

from edgeml.training.simulation import (  # noqa: E402
    RANGES,
    Simulation,
    dequantize,
    fitted,
    quantize,
)

IMAGES = (load_digits().images / 16).astype(np.float32)[:, None]
WAYS = ("u8s8", "s8s8", "u8s8 7 bit", "per tensor", "default", "nncf", "nncf 7 bit")


@cache
def network() -> Model:
    """All that quantizers treat in a way of their own, on pictures of 8x8.

    But no AveragePool: its averages of few integers lie between two steps so often
    that how a kernel rounds its floats decides a part of them.
    """
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="depthwise",
                         group=8, pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "r1"], ["sum"], name="residual"),
        node("Sigmoid", ["sum"], ["s"]), node("Mul", ["s", "sum"], ["swish"]),
        node("MaxPool", ["swish"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Transpose", ["p"], ["q"], perm=[0, 1, 3, 2]),
        node("Concat", ["p", "q"], ["both"], axis=1),
        node("GlobalAveragePool", ["both"], ["g"]), node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["h"], name="hidden", transB=1),
        helper.make_node("Relu", ["h"], ["rh"], name="relu2"),
        node("MatMul", ["rh", "w4"], ["y"]),
    ]  # fmt: skip
    weights = {
        "w1": random(8, 1, 3, 3), "b1": random(8, seed=1) / 10,
        "w2": random(8, 1, 3, 3, seed=2), "b2": random(8, seed=3) / 10,
        "w3": random(12, 16, seed=4), "b3": random(12, seed=5) / 10,
        "w4": random(12, 10, seed=6),
    }  # fmt: skip
    return graph(nodes, {"x": [1, 1, 8, 8]}, ["y"], weights)


@cache
def quantized(way: str) -> Any:
    feeds = [{"x": image[None]} for image in IMAGES[:64]]
    if way.startswith("nncf"):
        nncf.load_nncf()
        given = network().payload
        return nncf.quantize_onnx(given, feeds, overflow_safe=way.endswith("7 bit"))
    if way == "default":
        return ort.quantize_default(network().payload, feeds)
    prepared = prepare(network().payload)
    ranges = ort.calibrate(prepared, feeds, "minmax")
    return ort.quantize_static(
        prepared, ranges, activation=way[:2] if way[0] in "us" else "u8",
        per_channel=way != "per tensor", reduce_range=way.endswith("7 bit"),
    )  # fmt: skip


def simulation(way: str) -> Simulation:
    return Simulation(quantized(way), network().inputs)


def of_torch(module: Any, count: int = 300) -> Any:
    with torch.no_grad():
        return module(torch.from_numpy(IMAGES[-count:]))["y"].numpy()


def of_onnx(proto: Any, count: int = 300) -> Any:
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return np.concatenate(
        [session.run(None, {"x": one[None]})[0] for one in IMAGES[-count:]]
    )


def values(proto: Any) -> dict[str, Any]:
    return {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}


def step_of_output(proto: Any) -> float:
    """One step of the output's quantizer, or what it would be where it is float."""
    makers = {name: one for one in proto.graph.node for name in one.output}
    last = makers[proto.graph.output[0].name]
    if last.op_type == "DequantizeLinear":
        return float(values(proto)[last.input[1]])
    return float(np.ptp(of_onnx(proto))) / 255


def disturb(module: Any, share: float = 0.2) -> None:
    """As if something had been learned."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for one in module.parameters():
            size = one.abs().mean() if one.dim() else torch.tensor(0.5)
            one += share * size * torch.randn(one.shape, generator=generator)


# --- the arithmetic


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.data(), st.sampled_from(["int8", "uint8", "int16", "uint16"]),
       st.booleans())  # fmt: skip
def test_quantizing_is_what_onnx_says(data: Any, kind: str, channels: bool) -> None:
    low, high = RANGES[kind]
    count = 3 if channels else 1
    scale = np.array([data.draw(st.sampled_from([0.25, 0.1, 3e-3, 7.0]))
                      for _ in range(count)], np.float32)  # fmt: skip
    zero = np.array([data.draw(st.integers(int(low), int(high)))
                     for _ in range(count)], kind)  # fmt: skip
    steps = data.draw(st.lists(st.integers(-600, 600), min_size=12, max_size=12))
    # halves: where rounding to even differs from rounding up
    x = (np.array(steps, np.float32) / 2).reshape(2, 3, 2) * scale.reshape(1, -1, 1)
    made = graph(
        [node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=1),
         node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=1)],
        {"x": [2, 3, 2]}, ["y"],
        {"s": scale if channels else scale[0], "z": zero if channels else zero[0]},
        opset=21,
    ).payload  # fmt: skip
    wanted = onnxruntime.InferenceSession(made.SerializeToString()).run(None, {"x": x})
    axis = 1 if channels else None
    numbers = [torch.from_numpy(one.astype(np.float32)) for one in (x, scale, zero)]
    found = quantize(*numbers, axis, low, high)
    found = dequantize(found, *numbers[1:], axis)
    assert np.array_equal(found.numpy(), wanted[0])


@pytest.mark.parametrize(("scale", "learned"), [
    (0.1, ["s_growth"]), (1.0, []),
])  # fmt: skip
def test_scales_of_what_is_bounded_and_of_integers_stay(
    scale: float, learned: list[str]
) -> None:
    given = graph(
        [
            node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
            node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
            node("Sigmoid", ["xd"], ["p"]),
            node("QuantizeLinear", ["p", "t", "z"], ["pq"]),
            node("DequantizeLinear", ["pq", "t", "z"], ["y"]),
        ],
        {"x": [1, 4]}, ["y"],
        {
            "s": np.float32(scale), "t": np.float32(1 / 256),
            "z": np.array(-128, np.int8),
        },
    )  # fmt: skip
    made = Simulation(given.payload, given.inputs)
    assert [name for name, _ in made.module.named_parameters()] == learned


def test_the_gradient_goes_straight_through_but_not_where_it_saturates() -> None:
    x = torch.tensor([-200.0, -1.3, 0.2, 0.5, 200.0], requires_grad=True)
    one, zero = torch.ones(()), torch.zeros(())
    quantize(x, one, zero, None, -128, 127).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_the_gradient_of_a_scale_is_that_of_learned_step_sizes() -> None:
    x = torch.tensor([0.3, 0.9, 100.0, -100.0])
    scale = torch.ones((), requires_grad=True)
    zero = torch.zeros(())
    found = dequantize(quantize(x, scale, zero, None, -8, 7), scale, zero, None)
    found.sum().backward()
    # Esser et al. 2020, equation 3: round(x) - x inside, the ends outside
    wanted = (0 - 0.3) + (1 - 0.9) + 7 - 8
    assert scale.grad.item() == pytest.approx(wanted, abs=1e-6)


def test_a_scale_follows_its_weight_and_leaves_room_for_the_bias() -> None:
    weight = torch.tensor([[0.5, -2.54], [0.0, 0.0], [1e-12, 0.0]])
    before = torch.tensor([1.0, 0.7, 1.0])
    bias, step = torch.tensor([1.0, 1.0, 4.0]), torch.tensor(0.1)
    limit = torch.tensor([127.0, 127.0, 127.0])
    plain = fitted(weight, before, limit, 0, None, None)
    assert plain[:2].tolist() == pytest.approx([0.02, 0.7])
    roomy = fitted(weight, before, limit, 0, bias, step)
    assert (bias / (step * roomy)).abs().max() <= 2**30
    assert torch.equal(roomy[:2], plain[:2])


# --- whole graphs


@pytest.mark.parametrize("way", WAYS)
def test_it_begins_with_the_numbers_of_onnx_runtime(way: str) -> None:
    proto = quantized(way)
    apart = np.abs(of_torch(simulation(way).module) - of_onnx(proto))
    assert apart.max() <= 1.001 * step_of_output(proto)
    assert (apart > 0.5 * step_of_output(proto)).mean() < 0.01


@pytest.mark.parametrize("way", WAYS)
def test_what_it_learned_onnx_runtime_reproduces(way: str) -> None:
    made = simulation(way)
    disturb(made.module)
    proto = made.written()
    assert np.abs(of_onnx(proto) - of_onnx(quantized(way))).max() > 0.1
    apart = np.abs(of_torch(made.module) - of_onnx(proto))
    assert apart.max() <= 1.001 * step_of_output(proto)
    assert (apart > 0.5 * step_of_output(proto)).mean() < 0.01


@pytest.mark.parametrize("way", WAYS)
def test_nodes_and_types_stay(way: str) -> None:
    before, made = quantized(way), simulation(way)
    disturb(made.module)
    after = made.written()
    assert [(one.op_type, one.name, one.input, one.output) for one in
            after.graph.node] == [(one.op_type, one.name, one.input, one.output)
                                  for one in before.graph.node]  # fmt: skip
    old, new = values(before), values(after)
    assert {k: (v.dtype, v.shape) for k, v in old.items()} == {
        k: (v.dtype, v.shape) for k, v in new.items()
    }
    zeros = [name for name in old if "zero_point" in name]
    assert zeros
    assert all(np.array_equal(old[name], new[name]) for name in zeros)


@pytest.mark.parametrize("way", ["u8s8", "s8s8", "per tensor"])
def test_untrained_it_writes_what_it_read(way: str) -> None:
    old, new = values(quantized(way)), values(simulation(way).written())
    for name, wanted in old.items():
        if wanted.dtype.kind == "f":
            assert np.allclose(wanted, new[name], rtol=1e-6, atol=0), name
        else:
            assert np.array_equal(wanted, new[name]), name


def test_weights_of_7_bits_stay_in_7_bits() -> None:
    made = simulation("u8s8 7 bit")
    disturb(made.module, 1.0)
    written = values(made.written())
    weights = [one for one in written.values() if one.dtype == np.int8 and one.ndim > 1]
    assert weights
    assert max(np.abs(one.astype(int)).max() for one in weights) <= 64


def test_the_scale_of_a_bias_is_input_times_weight() -> None:
    made = simulation("u8s8")
    disturb(made.module)
    proto = made.written()
    found, makers = values(proto), {n.output[0]: n for n in proto.graph.node}
    convs = [one for one in proto.graph.node if one.op_type in ("Conv", "Gemm")]
    assert len(convs) == 3
    for one in convs:
        x, weight, bias = (found[makers[name].input[1]] for name in one.input)
        assert np.allclose(bias, x * weight, rtol=1e-6)
        assert found[makers[one.input[2]].input[0]].dtype == np.int32


def test_a_bias_in_float_is_rounded_as_the_runtime_does() -> None:
    made = simulation("nncf")
    disturb(made.module)
    proto = made.written()
    found, makers = values(proto), {n.output[0]: n for n in proto.graph.node}
    first = next(one for one in proto.graph.node if one.op_type == "Conv")
    x, weight = (found[makers[name].input[1]] for name in first.input[:2])
    steps = found[first.input[2]] / (x * weight)
    assert np.abs(steps).max() > 1
    assert np.allclose(steps, np.round(steps), atol=1e-2)


def test_every_kind_of_parameter_learns() -> None:
    module = simulation("u8s8").module
    module(torch.from_numpy(IMAGES[:16]))["y"].square().mean().backward()
    names = {name for name, one in module.named_parameters() if one.grad is not None}
    assert names == {name for name, _ in module.named_parameters()}
    assert any(name.endswith("_growth") for name in names)
    assert any("w1" in name for name in names)
    assert any("b1" in name for name in names)


def test_statistics_of_batch_normalization_are_not_trained() -> None:
    weights = {"s": random(3), "b": random(3), "m": random(3), "v": np.ones(3, "f4"),
               "scale": np.float32(0.1), "zero": np.uint8(128)}  # fmt: skip
    made = graph(
        [node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
         node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
         node("BatchNormalization", ["d", "s", "b", "m", "v"], ["y"])],
        {"x": [1, 3, 4, 4]}, ["y"], weights,
    )  # fmt: skip
    module = Simulation(made.payload, made.inputs).module
    learned = {n for n, one in module.named_parameters() if one.requires_grad}
    assert learned == {"s", "b", "scale_growth"}


def test_constants_that_are_nodes_are_learned_as_well() -> None:
    proto = type(quantized("u8s8"))()
    proto.CopyFrom(quantized("u8s8"))
    first = proto.graph.initializer[0]
    constant = helper.make_node("Constant", [], [first.name], value=first)
    del proto.graph.initializer[0]
    proto.graph.node.insert(0, constant)
    made = Simulation(proto, network().inputs)
    assert first.name in values(made.written())
    assert np.array_equal(of_torch(made.module), of_torch(simulation("u8s8").module))


def test_scales_that_are_computed_or_of_blocks_are_refused() -> None:
    zero = {"z": np.uint8(0)}
    computed = graph(
        [node("ReduceMax", ["x"], ["s"], keepdims=0),
         node("QuantizeLinear", ["x", "s", "z"], ["q"]),
         node("DequantizeLinear", ["q", "s", "z"], ["y"])],
        {"x": [1, 4]}, ["y"], zero,
    )  # fmt: skip
    with pytest.raises(ModelError, match="the scale 's' is computed"):
        Simulation(computed.payload, computed.inputs)
    blocks = graph(
        [node("DequantizeLinear", ["w", "s"], ["d"], block_size=2, axis=0),
         node("MatMul", ["x", "d"], ["y"])],
        {"x": [1, 4]}, ["y"],
        {"w": np.ones((4, 3), np.int8), "s": np.ones((2, 3), np.float32)}, opset=21,
    )  # fmt: skip
    with pytest.raises(ModelError, match="quantizes in blocks"):
        Simulation(blocks.payload, blocks.inputs)


def test_other_kinds_of_integers_are_refused() -> None:
    four = helper.make_tensor("z", TensorProto.INT4, [], [0])
    made = graph(
        [node("QuantizeLinear", ["x", "s", "z"], ["q"]),
         node("DequantizeLinear", ["q", "s", "z"], ["y"])],
        {"x": [1, 4]}, ["y"], {"s": np.float32(1), "z": np.int8(0)}, opset=21,
    )  # fmt: skip
    made.payload.graph.initializer[1].CopyFrom(four)
    with pytest.raises(ModelError, match="int4"):
        Simulation(made.payload, made.inputs)
