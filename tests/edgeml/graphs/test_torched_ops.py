"""Every operator of the table against ONNX Runtime, alone in a graph."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnxgraphs import graph, node, random

from edgeml.errors import ModelError
from edgeml.graphs.torched import module_of

torch = pytest.importorskip("torch")
from edgeml.graphs.torched_ops import OPERATORS  # noqa: E402
from edgeml.graphs.torched_windows import runs_of, taken  # noqa: E402

I64, BOOL = TensorProto.INT64, TensorProto.BOOL
X = {"x": [2, 3, 4, 5]}
CLOSE = 1e-5


def agrees(
    kind: str,
    shapes: dict[str, list[Any]],
    constants: dict[str, Any] | None = None,
    order: list[str] | None = None,
    opset: int = 17,
    out: int = TensorProto.FLOAT,
    outputs: int = 1,
    sized: list[int] | None = None,
    **attributes: Any,
) -> Any:
    """The module of one node; its numbers are those of ONNX Runtime."""
    names = [f"y{place}" for place in range(outputs)]
    inputs = order if order is not None else [*shapes, *(constants or {})]
    kinds = dict.fromkeys(names, out)
    kinds.update({name: I64 for name in shapes if name.startswith("int")})
    made = module_of(
        graph([node(kind, inputs, names, **attributes)], shapes, names, constants,
              opset, kinds, dict.fromkeys(names, sized) if sized else None)
    )  # fmt: skip
    assert made.lineage[-1].parameters["import_error"] <= CLOSE
    return made.payload


UNARY = [
    "Abs", "Atan", "Ceil", "Cos", "Cosh", "Dropout", "Elu", "Erf", "Exp", "Flatten",
    "Floor", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish",
    "Identity", "LeakyRelu", "LogSoftmax", "LpNormalization", "Mish", "Neg",
    "Reciprocal", "ReduceLogSumExp", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin",
    "Sinh", "Softmax", "Softplus", "Softsign", "Tan", "Tanh", "ThresholdedRelu",
    "Transpose",
]  # fmt: skip
BINARY = ["Add", "Div", "Max", "Mean", "Min", "Mul", "PRelu", "Sub", "Sum"]
COMPARISONS = ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"]
REDUCTIONS = [
    "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSumSquare",
]  # fmt: skip


@pytest.mark.parametrize("kind", UNARY)
def test_of_one_tensor(kind: str) -> None:
    agrees(kind, X, opset=22)


@pytest.mark.parametrize("kind", ["Log", "Sqrt", "Acos", "Asin", "IsNaN", "IsInf"])
def test_of_numbers_between_0_and_1(kind: str) -> None:
    out = BOOL if kind.startswith("Is") else TensorProto.FLOAT
    made = module_of(
        graph([node("Sigmoid", ["x"], ["s"]), node(kind, ["s"], ["y"])], X, ["y"],
              kinds={"y": out})
    )  # fmt: skip
    assert made.lineage[-1].parameters["import_error"] <= CLOSE


@pytest.mark.parametrize("kind", BINARY)
@pytest.mark.parametrize("shape", [[3, 1, 1], [1], [5], [2, 3, 4, 5]])
def test_of_two_tensors(kind: str, shape: list[int]) -> None:
    agrees(kind, X, {"c": np.abs(random(*shape)) + 1})
    agrees(kind, {**X, "z": [1, 4, 5]})


@pytest.mark.parametrize("kind", COMPARISONS)
def test_comparisons(kind: str) -> None:
    agrees(kind, X, {"c": np.zeros((), np.float32)}, out=BOOL)


def test_logic_and_choice() -> None:
    nodes = [
        node("Greater", ["x", "zero"], ["a"]), node("Less", ["x", "one"], ["b"]),
        node("And", ["a", "b"], ["and"]), node("Or", ["a", "b"], ["or"]),
        node("Xor", ["and", "or"], ["xor"]), node("Not", ["xor"], ["not"]),
        node("Where", ["not", "x", "zero"], ["y"]),
    ]  # fmt: skip
    made = module_of(
        graph(nodes, X, ["y"], {"zero": np.float32(0), "one": np.float32(1)})
    )
    assert made.lineage[-1].parameters["import_error"] <= CLOSE


@pytest.mark.parametrize("kind", REDUCTIONS)
@pytest.mark.parametrize("opset", [13, 18])
def test_reductions(kind: str, opset: int) -> None:
    for keep in (0, 1):
        if opset < 18:
            agrees(kind, X, opset=opset, axes=[-1, 1], keepdims=keep)
        else:
            agrees(kind, X, {"axes": np.array([1, -1])}, opset=opset, keepdims=keep)
    agrees(kind, X, opset=opset)


def test_sums_take_their_axes_as_an_input() -> None:
    agrees("ReduceSum", X, {"axes": np.array([2])}, opset=13)
    agrees("ReduceSum", X, opset=13, noop_with_empty_axes=1)
    nodes = [node("Exp", ["x"], ["e"]), node("ReduceLogSum", ["e"], ["y"], axes=[1])]
    assert (
        module_of(graph(nodes, X, ["y"])).lineage[-1].parameters["import_error"] < CLOSE
    )


@pytest.mark.parametrize("kind", ["ArgMax", "ArgMin"])
def test_places_of_the_most(kind: str) -> None:
    agrees(kind, X, out=I64, axis=-1, keepdims=0)
    with pytest.raises(ModelError, match="it takes the last"):
        agrees(kind, X, out=I64, select_last_index=1)


def test_odd_ones() -> None:
    agrees("Clip", X, {"lo": np.float32(-0.5), "hi": np.float32(0.5)})
    agrees("Clip", X, {"lo": np.float32(0), "hi": np.float32(6)})
    agrees("Clip", X, {"hi": np.float32(0.5)}, order=["x", "", "hi"])
    agrees("Pow", X, {"two": np.float32(2)})
    agrees("Pow", X, {"two": np.int64(3)})
    agrees("Mod", X, {"two": np.float32(1.5)}, fmod=1)
    agrees("Cast", X, to=TensorProto.DOUBLE, out=TensorProto.DOUBLE)
    agrees("CumSum", X, {"axis": np.int64(1)})
    agrees("Einsum", {"x": [2, 3], "z": [3, 4]}, equation="ij,jk->ik")
    agrees("Trilu", {"x": [1, 4, 4]}, upper=0)
    agrees("Gelu", X, opset=20)
    agrees("Gelu", X, opset=20, approximate="tanh")
    agrees("LRN", X, size=3, alpha=0.1, beta=0.6)
    agrees("Softmax", X, axis=1)
    agrees("Tile", X, {"times": np.array([1, 2, 1, 3])})
    agrees("Squeeze", {"x": [1, 3, 1, 2]}, {"axes": np.array([2])})
    agrees("Squeeze", {"x": [1, 3, 1, 2]})
    agrees("Unsqueeze", X, {"axes": np.array([1, -1])})
    agrees("Transpose", X, perm=[0, 2, 3, 1])
    agrees("Flatten", X, axis=2)
    agrees("Flatten", X, axis=0)
    agrees("Concat", {**X, "z": [2, 3, 1, 5]}, axis=-2)
    agrees("MatMul", {"x": [2, 3, 4], "z": [2, 4, 5]})
    agrees("MatMul", {"x": [3]}, {"w": random(3, 2)})
    agrees("MatMul", {"x": [3, 2]}, {"w": random(4, 3)}, order=["w", "x"])


def test_integers_divide_towards_zero() -> None:
    nodes = [
        node("Mul", ["x", "ten"], ["m"]), node("Cast", ["m"], ["i"], to=I64),
        node("Div", ["i", "three"], ["y"]),
    ]  # fmt: skip
    constants = {"ten": np.float32(10), "three": np.int64(3)}
    made = module_of(graph(nodes, X, ["y"], constants, kinds={"y": I64}))
    assert made.lineage[-1].parameters["import_error"] == 0


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_and_space(mode: str) -> None:
    agrees("DepthToSpace", {"x": [2, 8, 3, 2]}, blocksize=2, mode=mode)
    agrees("SpaceToDepth", {"x": [2, 3, 4, 6]}, blocksize=2)


def test_top_of_a_row() -> None:
    names = ["y", "places"]
    made = module_of(
        graph([node("TopK", ["x", "k"], names, axis=1)], X, names,
              {"k": np.array([2])}, kinds={"places": I64})
    )  # fmt: skip
    assert made.lineage[-1].parameters["import_error"] <= CLOSE


def test_split_in_equal_and_other_parts() -> None:
    agrees("Split", {"x": [2, 6]}, outputs=3, axis=1, opset=13)
    agrees("Split", {"x": [2, 7]}, outputs=3, axis=1, num_outputs=3, opset=18)
    agrees("Split", {"x": [2, 6]}, {"parts": np.array([1, 5])}, outputs=2, axis=1)


def test_gather_in_every_way() -> None:
    agrees("Gather", X, {"i": np.array(-1)}, axis=1)
    agrees("Gather", X, {"i": np.array([2, 0, -1])}, axis=1)
    agrees("Gather", X, {"i": np.array([[0, 1], [1, -1]])}, axis=-1)
    agrees("Gather", {"int_i": [1, 4]}, {"rows": random(6, 3)}, order=["rows", "int_i"])
    agrees("Gather", {**X, "int_i": [2]}, axis=2)
    agrees("GatherElements", {"x": [3, 2]}, {"i": np.array([[0, -1], [2, 1]])})
    agrees("GatherElements", {"x": [3, 2], "int_i": [3, 2]}, axis=1)


def test_rows_of_a_matrix_are_an_embedding() -> None:
    module = agrees("Gather", {"int_i": [1, 4]}, {"rows": random(6, 3)},
                    order=["rows", "int_i"])  # fmt: skip
    assert type(module.the_Gather).__name__ == "Embedding"
    import torch

    found = module(torch.tensor([[-1, 5, 0, 2]]))["y0"][0]
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("shape", [[2, 3, 4, 5], [1, 3, 1, 5], [7, 2, 3, 1, 1], [1]])
def test_expand(shape: list[int]) -> None:
    agrees("Expand", {"x": [2, 3, 1, 1] if len(shape) > 4 else [2, 3, 1, 5]},
           {"to": np.array(shape)})  # fmt: skip


@pytest.mark.parametrize("trans", [0, 1])
@pytest.mark.parametrize("bias", [(), (1,), (6,), (1, 6), (2, 6), None])
def test_gemm(trans: int, bias: tuple[int, ...] | None) -> None:
    constants = {"w": random(6, 4) if trans else random(4, 6)}
    if bias is not None:
        constants["b"] = random(*bias, seed=1)
    agrees("Gemm", {"x": [2, 4]}, constants, transB=trans, alpha=0.5, beta=2.0)
    agrees("Gemm", {"x": [4, 2]}, constants, transA=1, transB=trans)


def test_gemm_of_computed_matrices() -> None:
    agrees("Gemm", {"x": [2, 4], "z": [4, 3], "c": [2, 3]}, alpha=0.5, beta=3.0)
    agrees("Gemm", {"x": [2, 4], "z": [3, 4], "c": [3]}, transB=1)


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_batch_normalization(rank: int) -> None:
    module = agrees(
        "BatchNormalization", {"x": [2, 3, *[4] * rank]},
        {"s": random(3), "b": random(3, seed=1), "m": random(3, seed=2),
         "v": np.abs(random(3, seed=3)) + 0.1},
    )  # fmt: skip
    assert type(module.the_BatchNormalization).__name__ == f"BatchNorm{max(rank, 1)}d"


def test_normalizations() -> None:
    agrees("LayerNormalization", X, {"s": random(5), "b": random(5, seed=1)})
    agrees("LayerNormalization", X, {"s": random(5)})
    agrees("LayerNormalization", X, {"s": random(4, 5), "b": random(4, 5)}, axis=2)
    agrees("LayerNormalization", X, {"s": random(1)}, axis=2)
    agrees("InstanceNormalization", X, {"s": random(3), "b": random(3, seed=1)})
    agrees("GroupNormalization", {"x": [2, 6, 4]}, {"s": random(6), "b": random(6)},
           num_groups=3, opset=21, sized=[2, 6, 4])  # fmt: skip
    agrees("RMSNormalization", X, {"s": random(5)}, opset=23, sized=X["x"])


@pytest.mark.parametrize("way", ["forward", "bidirectional"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_recurrent_layers(kind: str, way: str) -> None:
    count, gates = (2 if way == "bidirectional" else 1), (4 if kind == "LSTM" else 3)
    constants = {
        "w": random(count, gates * 3, 5), "r": random(count, gates * 3, 3, seed=1),
        "b": random(count, gates * 6, seed=2),
    }  # fmt: skip
    more = {"linear_before_reset": 1} if kind == "GRU" else {}
    agrees(kind, {"x": [7, 2, 5]}, constants, hidden_size=3, direction=way,
           outputs=3 if kind == "LSTM" else 2, **more)  # fmt: skip
    states = {"h": [count, 2, 3], **({"c": [count, 2, 3]} if kind == "LSTM" else {})}
    agrees(kind, {"x": [7, 2, 5], **states}, constants, hidden_size=3, direction=way,
           order=["x", "w", "r", "b", "", *states], **more)  # fmt: skip


def test_recurrent_layers_that_torch_has_not_are_refused() -> None:
    constants = {"w": random(1, 9, 5), "r": random(1, 9, 3)}
    with pytest.raises(ModelError, match="linear_before_reset"):
        agrees("GRU", {"x": [7, 2, 5]}, constants, hidden_size=3)
    with pytest.raises(ModelError, match="torch has no reverse"):
        agrees("GRU", {"x": [7, 2, 5]}, constants, hidden_size=3,
               linear_before_reset=1, direction="reverse")  # fmt: skip


sizes = st.integers(1, 3)
quick = settings(max_examples=30, deadline=None, derandomize=True)


@quick
@given(st.data(), st.integers(1, 3), st.sampled_from(["NOTSET", "SAME_UPPER", "VALID"]))
def test_convolutions(data: Any, rank: int, auto: str) -> None:
    draw = data.draw
    kernel, strides, dilations = ([draw(sizes) for _ in range(rank)] for _ in range(3))
    groups = draw(st.sampled_from([1, 2, 4]))
    attributes = {"strides": strides, "dilations": dilations, "group": groups}
    if auto == "NOTSET":
        attributes["pads"] = [draw(st.integers(0, 2)) for _ in range(2 * rank)]
    else:
        attributes["auto_pad"] = auto
    if auto == "SAME_UPPER":
        attributes["dilations"] = [1] * rank
    constants = {"w": random(8, 4 // groups, *kernel)}
    if draw(st.booleans()):
        constants["b"] = random(8, seed=1)
    agrees("Conv", {"x": [2, 4, *[7] * rank]}, constants, **attributes)


@quick
@given(st.data(), st.integers(1, 3))
def test_transposed_convolutions(data: Any, rank: int) -> None:
    draw = data.draw
    kernel, strides, dilations = ([draw(sizes) for _ in range(rank)] for _ in range(3))
    extra = [draw(st.integers(0, one - 1)) for one in strides]
    groups = draw(st.sampled_from([1, 2]))
    pads = [draw(st.integers(0, 1)) for _ in range(2 * rank)]
    constants = {"w": random(4, 3, *kernel)}
    if draw(st.booleans()):
        constants["b"] = random(3 * groups, seed=1)
    agrees("ConvTranspose", {"x": [2, 4, *[5] * rank]}, constants, strides=strides,
           dilations=dilations, group=groups, pads=pads,
           output_padding=extra)  # fmt: skip


def test_transposed_convolutions_with_a_given_output() -> None:
    for auto in ("SAME_UPPER", "SAME_LOWER"):
        agrees("ConvTranspose", {"x": [1, 2, 5]}, {"w": random(2, 3, 4)}, strides=[2],
               auto_pad=auto)  # fmt: skip
    agrees("ConvTranspose", {"x": [1, 2, 5]}, {"w": random(2, 3, 4)}, strides=[2],
           output_shape=[11])  # fmt: skip


def test_convolutions_with_computed_weights() -> None:
    agrees("Conv", {"x": [1, 2, 5, 5], "w": [3, 2, 2, 2]}, pads=[0, 1, 1, 1])
    agrees("ConvTranspose", {"x": [1, 2, 5], "w": [2, 3, 2]}, strides=[2])


@quick
@given(st.data(), st.integers(1, 3), st.sampled_from(["MaxPool", "AveragePool"]))
def test_pooling(data: Any, rank: int, kind: str) -> None:
    draw = data.draw
    kernel, strides = ([draw(st.integers(1, 4)) for _ in range(rank)] for _ in range(2))
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides}
    pads = [draw(st.integers(0, one - 1)) for one in [*kernel, *kernel]]
    ceil = draw(st.booleans())
    # with both, ONNX Runtime itself divides by what lies beyond the padding
    assume(not (ceil and kind == "AveragePool" and any(pads)))
    attributes |= {"pads": pads, "ceil_mode": int(ceil)}
    if kind == "AveragePool" and not ceil:
        attributes["count_include_pad"] = draw(st.integers(0, 1))
    agrees(kind, {"x": [2, 3, *[7] * rank]}, opset=22, **attributes)


def test_pooling_of_the_same_size() -> None:
    for kind in ("MaxPool", "AveragePool"):
        for auto in ("SAME_UPPER", "SAME_LOWER"):
            agrees(kind, {"x": [1, 2, 7, 6]}, kernel_shape=[2, 3], strides=[2, 2],
                   auto_pad=auto)  # fmt: skip


@quick
@given(st.data(), st.sampled_from(["constant", "reflect", "edge", "wrap"]))
def test_padding(data: Any, mode: str) -> None:
    pads = np.array([data.draw(st.integers(0, 2)) for _ in range(6)])
    constants = {"pads": pads}
    if mode == "constant":
        constants["value"] = np.float32(data.draw(st.sampled_from([0, 1.5])))
        pads[0] = data.draw(st.integers(-1, 1))
    agrees("Pad", {"x": [3, 4, 5]}, constants, opset=19, mode=mode)


@quick
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_taken_by_runs_or_by_places_is_the_same(places: list[int]) -> None:
    x = torch.arange(10.0).reshape(2, 5)
    for axis, other in ((1, x), (0, x.T)):
        assert taken(other, axis, places).equal(
            other.index_select(axis, torch.tensor(places))
        )
    flat = [start + step * place for start, count, step in runs_of(places)
            for place in range(count)]  # fmt: skip
    assert flat == places


def test_a_mirrored_end_is_one_run() -> None:
    assert runs_of([2, 1, 0, 1, 2, 3, 3]) == [(2, 3, -1), (1, 3, 1), (3, 1, 1)]
    assert runs_of(np.pad(np.arange(9), (3, 2), "edge").tolist()) == [
        (0, 4, 0), (1, 8, 1), (8, 2, 0)
    ]  # fmt: skip


def test_padding_of_some_axes() -> None:
    agrees("Pad", {"x": [2, 4, 5]}, {"pads": np.array([1, 2]), "axes": np.array([-2])},
           order=["x", "pads", "", "axes"], opset=18)  # fmt: skip


@quick
@given(
    st.data(),
    st.sampled_from(
        ["asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"]
    ),
    st.sampled_from(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]),
)
def test_resizing_to_the_nearest(data: Any, way: str, rule: str) -> None:
    shape = [1, 2, 5, 4]
    to = [1, 2, data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))]
    agrees("Resize", {"x": shape}, {"to": np.array(to)}, order=["x", "", "", "to"],
           opset=19, mode="nearest", coordinate_transformation_mode=way,
           nearest_mode=rule)  # fmt: skip


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("way", ["half_pixel", "align_corners", "pytorch_half_pixel"])
@pytest.mark.parametrize("scales", [[2, 2], [1.5, 3], [0.5, 0.7], [1, 2.3]])
def test_resizing_smoothly(mode: str, way: str, scales: list[float]) -> None:
    factors = np.array([1, 1, *scales], np.float32)
    agrees("Resize", {"x": [1, 2, 6, 4]}, {"s": factors}, order=["x", "", "s"],
           mode=mode, coordinate_transformation_mode=way, opset=13)  # fmt: skip


def test_integer_enlargements_are_torchs_own() -> None:
    module = agrees("Resize", {"x": [1, 2, 3, 4]},
                    {"s": np.array([1, 1, 2, 3], np.float32)}, order=["x", "", "s"],
                    mode="nearest", coordinate_transformation_mode="asymmetric",
                    nearest_mode="floor")  # fmt: skip
    assert "interpolate" in module.code


@quick
@given(st.data())
def test_slices(data: Any) -> None:
    shape, draw = [3, 4, 6], data.draw
    axes = draw(st.lists(st.sampled_from([-2, 1, 2, 0]), min_size=1, max_size=3,
                         unique_by=lambda one: one % 3))  # fmt: skip
    steps = [draw(st.sampled_from([1, 1, 2, -1])) for _ in axes]
    starts, ends = [], []
    for axis, step in zip(axes, steps, strict=True):
        size = shape[axis]
        low = draw(st.integers(0, size - 1))
        high = draw(st.sampled_from([low + 1, size, 2**31 - 1]))
        starts.append(size - 1 if step < 0 else low - draw(st.sampled_from([0, size])))
        ends.append(-(2**31) if step < 0 else high)
    agrees("Slice", {"x": shape}, {
        "starts": np.array(starts), "ends": np.array(ends), "axes": np.array(axes),
        "steps": np.array(steps),
    })  # fmt: skip


@quick
@given(st.permutations([2, 3, 4, 5]), st.integers(0, 3), st.booleans())
def test_reshapes(shape: list[int], open_axis: int, zero: bool) -> None:
    to = [shape[0], shape[1] * shape[2], shape[3], 1]
    if zero:
        to[0] = 0
    if to[open_axis]:
        to[open_axis] = -1
    agrees("Reshape", {"x": shape}, {"to": np.array(to)})


def test_ranges_and_constants_of_a_size() -> None:
    nodes = [
        node("Shape", ["x"], ["s"], start=0, end=1),
        node("Squeeze", ["s"], ["n"]), node("Range", ["zero", "n", "one"], ["r"]),
        node("Cast", ["r"], ["f"], to=TensorProto.FLOAT),
        node("ConstantOfShape", ["s"], ["c"]), node("Add", ["f", "c"], ["sum"]),
        node("Unsqueeze", ["sum", "one1"], ["column"]),
        node("Add", ["x", "column"], ["y"]),
    ]  # fmt: skip
    constants = {"zero": np.int64(0), "one": np.int64(1), "one1": np.array([1])}
    model = graph(nodes, {"x": ["n", 4]}, ["y"], constants)
    import torch

    module = module_of(model).payload
    assert torch.equal(module(torch.zeros(3, 4))["y"][:, 0], torch.arange(3.0))


def test_the_table_is_tested() -> None:
    """A row without a test here would be a promise."""
    words = set(re.findall(r"\w+", Path(__file__).read_text()))
    assert not set(OPERATORS) - words
