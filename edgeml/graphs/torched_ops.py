"""ONNX operators → what does the same in torch: the table, and the element-wise part.

Each function is given the :class:`~edgeml.graphs.torched_site.Site` of one node, adds
to the module what gives its outputs, and returns the first of them, or a list.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch.nn import functional

from .torched_layers import LAYERS, absorbed_bias
from .torched_shapes import SHAPES, shape_of
from .torched_site import Computed, Site, Value, dtype_of
from .torched_windows import WINDOWS

Operator = Callable[[Site], Value | list[Value]]


def plain(function: Callable[..., Any]) -> Operator:
    """The torch function of the same inputs."""
    return lambda at: at.call(function, *at.args())


def folded(function: Callable[..., Any]) -> Operator:
    """A torch function of two inputs, over any number of them."""

    def over_all(at: Site) -> Value:
        nodes = at.args()
        if len(nodes) == 1:
            return Computed(nodes[0])
        return Computed(reduce(lambda x, y: at.building.call(function, x, y), nodes))

    return over_all


def add(at: Site) -> Value:
    """Add; a bias goes into the layer before it."""
    found = absorbed_bias(at) if at.layers else None
    return found or at.call(torch.add, *at.args())


def div(at: Site) -> Value:
    """Div; between integers it cuts towards zero."""
    if at.example(0).is_floating_point():
        return at.call(torch.div, *at.args())
    return at.call(torch.div, *at.args(), rounding_mode="trunc")


def mod(at: Site) -> Value:
    """Mod: the sign of the divisor, or with ``fmod`` that of the dividend."""
    return at.call(torch.fmod if at.get("fmod", 0) else torch.remainder, *at.args())


def power(at: Site) -> Value:
    """Pow, of the type of its base."""
    found = at.call(torch.pow, *at.args())
    wanted = at.example(0).dtype
    if found.example.dtype == wanted:
        return found
    return at.call(torch.Tensor.to, found.node, wanted)


def clip(at: Site) -> Value:
    """Clip."""
    if at.fixed(1, 2):
        low, high = (at.constant(place) for place in (1, 2))
        bounds = [None if one is None else one.item() for one in (low, high)]
        if bounds == [0.0, 6.0]:
            return at.call(functional.relu6, at.arg(0))
        if bounds == [None, None]:
            return at.call(torch.clone, at.arg(0))
        return at.call(torch.clamp, at.arg(0), *bounds)
    return at.call(torch.clamp, at.arg(0), at.arg(1), at.arg(2))


def cast(at: Site) -> Value:
    """Cast."""
    return at.call(torch.Tensor.to, at.arg(0), dtype_of(at, at.get("to")))


def identity(at: Site) -> Value:
    """Identity; Dropout and CastLike's kin at inference."""
    value = at.value(0)
    assert value is not None, "every node has its first input"
    return value


def gelu(at: Site) -> Value:
    """Gelu, exact or by tanh."""
    way = at.get("approximate", b"none").decode()
    return at.call(functional.gelu, at.arg(0), approximate=way)


def softmax(at: Site) -> Value:
    """Softmax along one axis."""
    return at.call(torch.softmax, at.arg(0), at.axis(-1))


def log_softmax(at: Site) -> Value:
    """LogSoftmax along one axis."""
    return at.call(torch.log_softmax, at.arg(0), at.axis(-1))


def hard_sigmoid(at: Site) -> Value:
    """HardSigmoid."""
    alpha, beta = at.get("alpha", 0.2), at.get("beta", 0.5)
    return at.call(straight, at.arg(0), alpha, beta)


def straight(x: Any, alpha: float, beta: float) -> Any:
    """A line, cut at 0 and 1."""
    return torch.clamp(alpha * x + beta, 0, 1)


def leaky_relu(at: Site) -> Value:
    """LeakyRelu."""
    return at.call(functional.leaky_relu, at.arg(0), at.get("alpha", 0.01))


def elu(at: Site) -> Value:
    """Elu."""
    return at.call(functional.elu, at.arg(0), at.get("alpha", 1.0))


def thresholded(at: Site) -> Value:
    """ThresholdedRelu."""
    return at.call(functional.threshold, at.arg(0), at.get("alpha", 1.0), 0.0)


def reducing(function: Callable[..., Any]) -> Operator:
    """A reduction: ``function(x, axes, keepdim)``."""

    def over_axes(at: Site) -> Value:
        axes = at.numbers(1, "axes")
        if not axes:
            if at.get("noop_with_empty_axes", 0):
                return identity(at)
            axes = list(range(len(at.shape(0))))
        keep = bool(at.get("keepdims", 1))
        return at.call(function, at.arg(0), tuple(axes), keep)

    return over_axes


def prod(x: Any, axes: tuple[int, ...], keepdim: bool) -> Any:
    """The product over axes."""
    for axis in sorted((one % x.dim() for one in axes), reverse=True):
        x = torch.prod(x, axis, keepdim)
    return x


def l1(x: Any, axes: tuple[int, ...], keepdim: bool) -> Any:
    """The sum of magnitudes."""
    return torch.sum(torch.abs(x), axes, keepdim)


def l2(x: Any, axes: tuple[int, ...], keepdim: bool) -> Any:
    """The square root of the sum of squares."""
    return torch.sqrt(torch.sum(x * x, axes, keepdim))


def log_sum(x: Any, axes: tuple[int, ...], keepdim: bool) -> Any:
    """The logarithm of the sum."""
    return torch.log(torch.sum(x, axes, keepdim))


def sum_square(x: Any, axes: tuple[int, ...], keepdim: bool) -> Any:
    """The sum of squares."""
    return torch.sum(x * x, axes, keepdim)


def arg_most(function: Callable[..., Any]) -> Operator:
    """ArgMax and ArgMin; of equals the first."""

    def along(at: Site) -> Value:
        if at.get("select_last_index", 0):
            raise at.refusal("of equals it takes the last, torch the first")
        return at.call(function, at.arg(0), at.axis(0), bool(at.get("keepdims", 1)))

    return along


def top_k(at: Site) -> Value | list[Value]:
    """TopK: values and places."""
    count = int(at.constant(1).reshape(-1)[0])
    found = at.call(
        torch.topk, at.arg(0), count, at.axis(-1), bool(at.get("largest", 1)),
        bool(at.get("sorted", 1)),
    )  # fmt: skip
    return at.parts(found, 2)


def cumulative_sum(at: Site) -> Value:
    """CumSum, forwards and inclusive."""
    if at.get("exclusive", 0) or at.get("reverse", 0):
        raise at.refusal("exclusive and reverse sums are unknown to torch")
    return at.call(torch.cumsum, at.arg(0), int(at.constant(1)))


def einsum(at: Site) -> Value:
    """Einsum."""
    return at.call(torch.einsum, at.get("equation").decode(), at.args())


def trilu(at: Site) -> Value:
    """Trilu."""
    function = torch.triu if at.get("upper", 1) else torch.tril
    shift = at.constant(1)
    return at.call(function, at.arg(0), 0 if shift is None else int(shift))


def mean_of(at: Site) -> Value:
    """Mean of the inputs, element by element."""
    total = folded(torch.add)(at)
    assert isinstance(total, Computed), "folded gives one tensor"
    return at.call(torch.div, total.node, len(at.values))


def lp_normalization(at: Site) -> Value:
    """LpNormalization."""
    return at.call(normalized, at.arg(0), at.get("p", 2), at.axis(-1))


def normalized(x: Any, p: int, axis: int) -> Any:
    """Slices of norm 1."""
    return x / torch.norm(x, p, axis, keepdim=True)


def lrn(at: Site) -> Value:
    """LRN: over neighbouring channels."""
    return at.call(
        functional.local_response_norm, at.arg(0), at.get("size"),
        at.get("alpha", 1e-4), at.get("beta", 0.75), at.get("bias", 1.0),
    )  # fmt: skip


_PLAIN: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs, "And": torch.logical_and, "Ceil": torch.ceil, "Cos": torch.cos,
    "Cosh": torch.cosh, "Equal": torch.eq, "Erf": torch.erf, "Exp": torch.exp,
    "Floor": torch.floor, "Greater": torch.gt, "GreaterOrEqual": torch.ge,
    "HardSwish": functional.hardswish, "IsInf": torch.isinf, "IsNaN": torch.isnan,
    "Less": torch.lt, "LessOrEqual": torch.le, "Log": torch.log,
    "Mish": functional.mish, "Mul": torch.mul, "Neg": torch.neg,
    "Not": torch.logical_not, "Or": torch.logical_or,
    "Reciprocal": torch.reciprocal, "Relu": functional.relu, "Round": torch.round,
    "Selu": functional.selu, "Sigmoid": torch.sigmoid, "Sign": torch.sign,
    "Sin": torch.sin, "Sinh": torch.sinh, "Softplus": functional.softplus,
    "Softsign": functional.softsign, "Sqrt": torch.sqrt, "Sub": torch.sub,
    "Tan": torch.tan, "Tanh": torch.tanh, "Where": torch.where,
    "Xor": torch.logical_xor,
    "Atan": torch.atan, "Acos": torch.acos, "Asin": torch.asin,
}  # fmt: skip
_REDUCING: dict[str, Callable[..., Any]] = {
    "ReduceL1": l1, "ReduceL2": l2, "ReduceLogSum": log_sum,
    "ReduceLogSumExp": torch.logsumexp, "ReduceMax": torch.amax,
    "ReduceMean": torch.mean,
    "ReduceMin": torch.amin, "ReduceProd": prod, "ReduceSum": torch.sum,
    "ReduceSumSquare": sum_square,
}  # fmt: skip
OPERATORS: dict[str, Operator] = {
    **LAYERS, **SHAPES, **WINDOWS,
    **{name: plain(function) for name, function in _PLAIN.items()},
    **{name: reducing(function) for name, function in _REDUCING.items()},
    "Add": add, "ArgMax": arg_most(torch.argmax), "ArgMin": arg_most(torch.argmin),
    "Cast": cast, "Clip": clip, "CumSum": cumulative_sum, "Div": div,
    "Dropout": identity, "Einsum": einsum, "Elu": elu, "Gelu": gelu,
    "HardSigmoid": hard_sigmoid, "Identity": identity, "LRN": lrn,
    "LeakyRelu": leaky_relu, "LogSoftmax": log_softmax,
    "LpNormalization": lp_normalization, "Max": folded(torch.maximum),
    "Mean": mean_of, "Min": folded(torch.minimum), "Mod": mod, "Pow": power,
    "Shape": shape_of, "Softmax": softmax, "Sum": folded(torch.add),
    "ThresholdedRelu": thresholded, "TopK": top_k, "Trilu": trilu,
}  # fmt: skip
"""Operators of the standard domain, opset 13 to 23."""
