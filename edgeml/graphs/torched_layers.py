"""ONNX operators with weights as layers of ``torch.nn``: same numbers, trainable.

A weight that is computed, or quantized (``edgeml/training/simulation.py``), goes
through the function of the same name instead.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .torched_site import Computed, Constant, Site, Value
from .torched_windows import edges, is_symmetric, pad_ends

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORM = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_CONVOLVE = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_UNCONVOLVE = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def conv(at: Site) -> Value:
    """Conv; uneven padding becomes a padding of its own."""
    kernel = at.shape(1)[2:]
    rank = len(kernel)
    if rank not in _CONV:
        raise at.refusal(f"it has {rank} spatial dimensions; torch has 1 to 3")
    stride, dilation = (tuple(at.get(k, [1] * rank)) for k in ("strides", "dilations"))
    pads, x, groups = edges(at, kernel), at.arg(0), at.get("group", 1)
    if not is_symmetric(pads):
        x, pads = at.call(functional.pad, x, pad_ends(pads)).node, [0] * 2 * rank
    sizes = (stride, tuple(pads[:rank]), dilation)
    if not (at.layers and at.fixed(1, 2)):
        return at.call(_CONVOLVE[rank], x, at.arg(1), at.arg(2), *sizes, groups)
    weight = at.constant(1)
    made = _CONV[rank](
        weight.shape[1] * groups, weight.shape[0], kernel, *sizes, groups, at.has(2)
    )
    return at.layer(_filled(made, weight=weight, bias=at.constant(2)), x)


def conv_transpose(at: Site) -> Value:
    """ConvTranspose; uneven padding crops the output."""
    kernel = at.shape(1)[2:]
    rank, groups, x = len(kernel), at.get("group", 1), at.arg(0)
    if rank not in _TRANSPOSED:
        raise at.refusal(f"it has {rank} spatial dimensions; torch has 1 to 3")
    stride, dilation = (tuple(at.get(k, [1] * rank)) for k in ("strides", "dilations"))
    pads, extra = _transposed_edges(at, kernel, stride, dilation)
    if min(pads) < 0:
        raise at.refusal("its output_shape is larger than what it computes")
    even, output_padding = is_symmetric(pads), tuple(extra)
    padding = tuple(pads[:rank]) if even else (0,) * rank
    if at.layers and at.fixed(1, 2):
        weight = at.constant(1)
        made = _TRANSPOSED[rank](
            weight.shape[0], weight.shape[1] * groups, kernel, stride, padding,
            output_padding, groups, at.has(2), dilation,
        )  # fmt: skip
        found = at.layer(_filled(made, weight=weight, bias=at.constant(2)), x)
    else:
        found = at.call(
            _UNCONVOLVE[rank], x, at.arg(1), at.arg(2), stride, padding,
            output_padding, groups, dilation,
        )  # fmt: skip
    if even:
        return found
    return at.call(functional.pad, found.node, pad_ends([-one for one in pads]))


def _transposed_edges(
    at: Site, kernel: Any, stride: Any, dilation: Any
) -> tuple[list[int], list[int]]:
    """What is cut off at the starts and the ends, and what is added at the ends."""
    rank = len(kernel)
    extra = list(at.get("output_padding", [0] * rank))
    auto = at.get("auto_pad", b"NOTSET").decode()
    wanted = at.get("output_shape")
    if wanted is None and not auto.startswith("SAME"):
        return list(at.get("pads", [0] * 2 * rank)), extra
    starts, ends = [], []
    for place, size in enumerate(at.shape(0)[2:]):
        goal = size * stride[place] if wanted is None else wanted[-rank:][place]
        full = stride[place] * (size - 1) + dilation[place] * (kernel[place] - 1) + 1
        total = full + extra[place] - goal
        half = total // 2 if auto == "SAME_UPPER" else total - total // 2
        starts.append(half)
        ends.append(total - half)
    return starts + ends, extra


def gemm(at: Site) -> Value:
    """Gemm: a linear layer when its matrices are constants."""
    alpha, beta = at.get("alpha", 1.0), at.get("beta", 1.0)
    left, flip = at.arg(0), at.get("transB", 0)
    if at.get("transA", 0):
        left = at.call(torch.t, left).node
    size = at.shape(1)[0 if flip else 1]
    if at.layers and at.fixed(1, 2) and _is_row(at, size):
        weight = at.constant(1) if flip else at.constant(1).t()
        bias = at.constant(2)
        if bias is not None:
            bias = (beta * bias).reshape(-1).expand(size)
        return _linear(at, alpha * weight, bias, left)
    right = at.arg(1) if flip else at.call(torch.t, at.arg(1)).node
    if alpha == beta == 1 and _is_row(at, size):
        return at.call(functional.linear, left, right, _row(at, size))
    product = at.call(functional.linear, left, right).node
    if alpha != 1:
        product = at.call(torch.mul, product, alpha).node
    if not at.has(2):
        return Computed(product)
    added = at.arg(2) if beta == 1 else at.call(torch.mul, at.arg(2), beta).node
    return at.call(torch.add, product, added)


def _is_row(at: Site, size: int) -> bool:
    """Whether what is added is the same for every row."""
    if not at.has(2):
        return True
    shape = at.shape(2)
    return not shape or shape in ((1,), (size,), (1, 1), (1, size))


def _row(at: Site, size: int) -> Any:
    if not at.has(2) or at.shape(2) == (size,):
        return at.arg(2)
    flat = at.call(torch.reshape, at.arg(2), (-1,)).node
    return at.call(torch.Tensor.expand, flat, size).node


def matmul(at: Site) -> Value:
    """MatMul; with a constant matrix on the right a linear layer without bias."""
    if at.layers and at.fixed(1) and len(at.shape(1)) == 2 and not at.fixed(0):
        return _linear(at, at.constant(1).t(), None, at.arg(0))
    return at.call(torch.matmul, at.arg(0), at.arg(1))


def _linear(at: Site, weight: Any, bias: Any, x: Any) -> Computed:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    return at.layer(_filled(made, weight=weight, bias=bias), x)


def absorbed_bias(at: Site) -> Value | None:
    """Add: the bias of the convolution or linear layer before it, if it is one.

    Such pairs come of exporters that write the bias as a node of its own.
    """
    for place, other in ((0, 1), (1, 0)):
        value, bias = at.value(place), at.value(other)
        if not (isinstance(value, Computed) and isinstance(bias, Constant)):
            continue
        if value.node.op != "call_module" or not at.read_once(place):
            continue
        layer = at.building.root.get_submodule(value.node.target)
        axis = 1 if isinstance(layer, tuple(_CONV.values())) else -1
        if not isinstance(layer, nn.Linear) and axis == -1:
            continue
        if layer.bias is None and _is_bias(bias.tensor, value.example, axis):
            layer.bias = nn.Parameter(bias.tensor.reshape(-1).clone())
            return value
    return None


def _is_bias(tensor: Any, example: Any, axis: int) -> bool:
    """Whether the tensor has a number for each channel, and no other axis."""
    if tensor.dim() > example.dim() or tensor.numel() != example.shape[axis]:
        return False
    place = axis - example.dim() if axis > 0 else axis
    return bool(tensor.dim() >= -place and tensor.shape[place] == tensor.numel())


def batch_norm(at: Site) -> Value:
    """BatchNormalization, as it is at inference."""
    if at.get("training_mode", 0):
        raise at.refusal("it is in training mode; export the model for inference")
    rank, eps = len(at.shape(0)), at.get("epsilon", 1e-5)
    if not (at.layers and at.fixed(1, 2, 3, 4) and rank in _NORM):
        scale, bias, mean, variance = (at.arg(place) for place in (1, 2, 3, 4))
        return at.call(
            functional.batch_norm, at.arg(0), mean, variance, scale, bias, eps=eps
        )
    scale, bias, mean, variance = (at.constant(place) for place in (1, 2, 3, 4))
    made = _NORM[rank](len(scale), eps=eps, momentum=1 - at.get("momentum", 0.9))
    _filled(made, weight=scale, bias=bias)
    made.running_mean, made.running_var = mean.clone(), variance.clone()
    return at.layer(made, at.arg(0))


def instance_norm(at: Site) -> Value:
    """InstanceNormalization."""
    x, scale, bias = at.args()
    return at.call(
        functional.instance_norm, x, weight=scale, bias=bias,
        eps=at.get("epsilon", 1e-5),
    )  # fmt: skip


def group_norm(at: Site) -> Value:
    """GroupNormalization, with one scale per channel."""
    groups, eps = at.get("num_groups"), at.get("epsilon", 1e-5)
    if at.opset < 21:
        raise at.refusal("before opset 21 it had one scale per group")
    if at.layers and at.fixed(1, 2):
        made = nn.GroupNorm(groups, at.shape(0)[1], eps)
        filled = _filled(made, weight=at.constant(1), bias=at.constant(2))
        return at.layer(filled, at.arg(0))
    return at.call(functional.group_norm, at.arg(0), groups, at.arg(1), at.arg(2), eps)


def layer_norm(at: Site) -> Value:
    """LayerNormalization; its second and third output are not made."""
    shape = at.shape(0)[at.axis(-1) :]
    eps = at.get("epsilon", 1e-5)
    whole = at.shape(1) == shape and (not at.has(2) or at.shape(2) == shape)
    if at.layers and at.fixed(1, 2) and whole:
        made = nn.LayerNorm(shape, eps, bias=at.has(2))
        return at.layer(
            _filled(made, weight=at.constant(1), bias=at.constant(2)), at.arg(0)
        )
    found = at.call(functional.layer_norm, at.arg(0), shape, eps=eps).node
    found = at.call(torch.mul, found, at.arg(1))
    return at.call(torch.add, found.node, at.arg(2)) if at.has(2) else found


def rms_norm(at: Site) -> Value:
    """RMSNormalization."""
    shape = at.shape(0)[at.axis(-1) :]
    eps = at.get("epsilon", 1e-5)
    found = at.call(functional.rms_norm, at.arg(0), shape, eps=eps).node
    return at.call(torch.mul, found, at.arg(1))


def prelu(at: Site) -> Value:
    """PRelu: one slope per channel is a layer."""
    x, slope = at.arg(0), at.value(1)
    rank = len(at.shape(0))
    if isinstance(slope, Constant) and at.layers and rank > 1:
        shape, channels = tuple(slope.tensor.shape), at.shape(0)[1]
        if slope.tensor.numel() == 1 or (
            slope.tensor.numel() == channels and len(shape) >= rank - 1
            and shape[-(rank - 1)] == channels
        ):  # fmt: skip
            made = nn.PReLU(slope.tensor.numel())
            return at.layer(_filled(made, weight=slope.tensor.reshape(-1)), x)
    return at.call(leaky, x, at.arg(1))


def leaky(x: Any, slope: Any) -> Any:
    """Negative numbers times their slope."""
    return torch.where(x < 0, x * slope, x)


def lstm(at: Site) -> Value | list[Value]:
    """LSTM without peepholes."""
    # ONNX has the gates in the order i o f c, torch i f c o
    return _recurrent(at, nn.LSTM, (0, 2, 3, 1), "Tanh")


def gru(at: Site) -> Value | list[Value]:
    """GRU as torch knows it (``linear_before_reset``)."""
    if not at.get("linear_before_reset", 0):
        raise at.refusal("torch's GRU is linear_before_reset=1, this one is not")
    # ONNX has the gates in the order z r h, torch r z n
    return _recurrent(at, nn.GRU, (1, 0, 2), "Tanh")


def _recurrent(
    at: Site, kind: Any, order: tuple[int, ...], last: str
) -> Value | list[Value]:
    directions = _directions(at, last)
    if not at.fixed(1, 2, 3) or at.has(4) or at.has(7):
        raise at.refusal(
            "weights have to be constants; sequence_lens and peepholes are unknown"
        )
    hidden, size = at.get("hidden_size"), at.shape(1)[2]
    made = kind(size, hidden, bias=at.has(3), bidirectional=directions == 2)
    for place, suffix in enumerate(("", "_reverse")[:directions]):
        for name, rows in (("ih", at.constant(1)), ("hh", at.constant(2))):
            _fill(made, f"weight_{name}_l0{suffix}", _ordered(rows[place], order))
        if at.has(3):
            both = at.constant(3)[place].chunk(2)
            _fill(made, f"bias_ih_l0{suffix}", _ordered(both[0], order))
            _fill(made, f"bias_hh_l0{suffix}", _ordered(both[1], order))
    states = [at.arg(place) for place in (5, 6) if at.has(place)]
    if kind is nn.LSTM and len(states) == 1:
        raise at.refusal("it has one of its two initial states")
    given: list[Any] = [tuple(states)] if kind is nn.LSTM and states else states
    outputs, after = at.parts(at.layer(made, at.arg(0), *given), 2)
    assert isinstance(outputs, Computed) and isinstance(after, Computed)
    found: list[Value] = [at.call(by_direction, outputs.node, directions)]
    return found + (at.parts(after, 2) if kind is nn.LSTM else [after])


def _directions(at: Site, last: str) -> int:
    gates = [b"Sigmoid", last.encode()] + (
        [b"Tanh"] if at.node.op_type == "LSTM" else []
    )
    direction = at.get("direction", b"forward").decode()
    count = 2 if direction == "bidirectional" else 1
    usual = at.get("activations") in (None, gates * count)
    odd = {"reverse": direction == "reverse", "layout": bool(at.get("layout", 0)),
           "activations": not usual, "clip": at.get("clip") is not None,
           "input_forget": bool(at.get("input_forget", 0))}  # fmt: skip
    if any(odd.values()):
        raise at.refusal(f"torch has no {', '.join(k for k, v in odd.items() if v)}")
    return count


def _ordered(rows: Any, order: tuple[int, ...]) -> Any:
    parts = rows.chunk(len(order))
    return torch.cat([parts[place] for place in order])


def by_direction(x: Any, directions: int) -> Any:
    """[T, B, D·H] as ONNX has it: [T, D, B, H]."""
    split = x.reshape(x.size(0), x.size(1), directions, x.size(2) // directions)
    return split.permute(0, 2, 1, 3)


def embedding(at: Site) -> Value:
    """Gather of rows of a constant matrix."""
    rows = at.constant(0)
    made = nn.Embedding(*rows.shape)
    places = at.call(wrapped, at.arg(1), len(rows))
    return at.layer(_filled(made, weight=rows), places.node)


def wrapped(places: Any, size: int) -> Any:
    """Places that count from the end become places that count from the start."""
    return torch.where(places < 0, places + size, places)


def _filled(module: Any, **tensors: Any) -> Any:
    for name, tensor in tensors.items():
        if tensor is not None:
            _fill(module, name, tensor)
    return module


def _fill(module: Any, name: str, tensor: Any) -> None:
    assert getattr(module, name).shape == tensor.shape, (name, tensor.shape)
    setattr(module, name, nn.Parameter(tensor.detach().clone().contiguous()))


LAYERS = {
    "BatchNormalization": batch_norm, "Conv": conv, "ConvTranspose": conv_transpose,
    "GRU": gru, "Gemm": gemm, "GroupNormalization": group_norm,
    "InstanceNormalization": instance_norm, "LSTM": lstm,
    "LayerNormalization": layer_norm, "MatMul": matmul, "PRelu": prelu,
    "RMSNormalization": rms_norm,
}  # fmt: skip
