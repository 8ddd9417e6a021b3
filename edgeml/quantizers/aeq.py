"""AI Edge Quantizer: a float ``.tflite`` → float16 weights, dynamic or static int8.

The rules it keeps:

1. Called without options it does what the tool does without options; only inputs and
   outputs stay in float, as the model declares them.
2. Weights of convolutions are always per channel; those of matrix products may be per
   tensor. Activations are int8 with a zero point, or int16 without.
3. Every bias of the float model is in the quantized one, within one step of its scale,
   or it is an error: an official MLPerf Tiny file lost them all, and nobody noticed.
4. The model that came in is not changed, the same inputs give the same bytes, nothing
   is printed.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from device_agent.contract.tensors import Array, Feeds

from ..errors import BackendError, MachineLacks, one_line
from ..graphs.tflite import SIGNATURE, Inside, aligned, silence

METHODS = ("minmax", "percentile")
"""Calibration methods of our own, besides the tool's moving average of ranges."""
CORE = (
    "CONV_2D", "CONV_2D_TRANSPOSE", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED",
    "BATCH_MATMUL",
)  # fmt: skip
"""Operators with weights, in the tool's words."""
BIASED = frozenset(
    {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"}
)
_BIAS = {"TRANSPOSE_CONV": 3}
"""Which input of an operator its bias is; 2 for all others."""
_BINS = 2048

Ranges = dict[str, dict[str, Array]]
"""Tensor → least and greatest value, in the tool's own form."""
Method = Literal["minmax", "percentile"]


def calibrate(
    raw: bytes,
    calibration: Sequence[Feeds],
    method: Method | None = None,
    percentile: float = 99.99,
) -> Ranges:
    """The range of every activation.

    Args:
        raw: a float model of :func:`..graphs.lowering.lower`.
        calibration: the samples; all of them are used, in their order.
        method: None: the tool's own, a moving average over the samples, which forgets
            the first ones; ``minmax``: all that was seen; ``percentile``: so much of it
            in the middle that ``percentile`` percent of the values are inside.
        percentile: see above.

    Raises:
        BackendError: there are no samples, or the tool failed.
        MachineLacks: ai-edge-quantizer is not installed.
    """
    if not calibration:
        raise BackendError("static int8 needs calibration samples; there are none")
    feeds = [dict(one) for one in (calibration if method is None else calibration[:1])]
    with silence():
        quantizer = _quantizer(raw, _recipe(_static(8, True), None, ()))
        try:
            found: Ranges = quantizer.calibrate({SIGNATURE: feeds}, num_threads=1)
        except Exception as error:
            raise BackendError(f"ai-edge-quantizer: {one_line(error)}") from error
    if method is None:
        return found
    share = 100.0 if method == "minmax" else percentile
    return replaced(found, _seen(raw, calibration, share))


def replaced(
    ranges: Ranges,
    seen: Mapping[str, tuple[float, float]],
    constants: Mapping[str, tuple[Array, Array]] | None = None,
) -> Ranges:
    """Ranges with others for some tensors.

    Args:
        ranges: from :func:`calibrate`.
        seen: computed tensor → least and greatest value; those that the tool does not
            ask for are left out.
        constants: those whose scales are known, in the shape of these.
    """
    made = copy.deepcopy(ranges)
    for name, (low, high) in seen.items():
        if name in made and "min" in made[name]:
            for key, value in (("min", low), ("max", high)):
                made[name][key] = np.full_like(made[name][key], value)
    for name, (least, most) in (constants or {}).items():
        made[name] = {
            "min": least.astype(np.float32), "max": most.astype(np.float32),
        }  # fmt: skip
    return made


def quantize_static(
    raw: bytes,
    ranges: Ranges,
    *,
    activation: Literal["int8", "int16"] = "int8",
    per_channel: bool = True,
    operators: Sequence[str] | None = None,
    keep: Sequence[str] = (),
) -> bytes:
    """Weights in int8 and activations in int8 or int16, biases in int32 or int64.

    Args:
        raw: the float model that ``ranges`` were made of.
        ranges: from :func:`calibrate`.
        activation: the type of what is computed.
        per_channel: one scale per output channel, for matrix products too.
        operators: those quantized, in the tool's words; None: all that it can.
        keep: tensors whose operators stay in float.

    Raises:
        BackendError: the tool failed, quantized nothing, or lost a bias.
    """
    config = _static(16 if activation == "int16" else 8, per_channel)
    made = _made(raw, _recipe(config, operators, keep), ranges)
    check_biases(raw, made)
    return made


def quantize_dynamic(
    raw: bytes, *, per_channel: bool = True, keep: Sequence[str] = ()
) -> bytes:
    """Weights in int8, activations quantized as they come.

    Raises:
        BackendError: the tool failed or quantized nothing.
    """
    config = {
        "weight_tensor_config": _tensor(8, per_channel),
        "compute_precision": "INTEGER",
        "explicit_dequantize": False,
    }
    made = _made(raw, _recipe(config, None, keep), None)
    check_biases(raw, made)
    return made


def half(raw: bytes, *, keep: Sequence[str] = ()) -> bytes:
    """Weights in float16; what is computed stays float32.

    Raises:
        BackendError: the tool failed, or the model has no weights.
    """
    config = {
        "weight_tensor_config": {**_tensor(16, False), "dtype": "FLOAT"},
        "compute_precision": "FLOAT",
        "explicit_dequantize": True,
    }
    recipe = [
        _rule(".*", operator, "float_casting", config)
        for operator in CORE
        if operator != "BATCH_MATMUL"
    ]
    made = _made(raw, [*recipe, *map(_kept, keep)], None)
    check_biases(raw, made)
    return made


def check_biases(before: bytes, after: bytes) -> None:
    """Nothing, when every bias of a float model is in what was made of it.

    Raises:
        BackendError: one is missing or far off; names its layer.
    """
    old, new = Inside(before), Inside(after)
    there = {new.tensors[op.outputs[0]].name: op for op in new.ops if op.name in BIASED}
    for op in old.ops:
        place = _BIAS.get(op.name, 2)
        if op.name not in BIASED or len(op.inputs) <= place or op.inputs[place] < 0:
            continue
        name, wanted = old.tensors[op.outputs[0]].name, old.constant(op.inputs[place])
        if not wanted.any():
            continue
        twin = there.get(name)
        if twin is None or len(twin.inputs) <= place or twin.inputs[place] < 0:
            raise BackendError(f"the bias of {name} is lost")
        _compare_bias(name, wanted, new, twin.inputs[place])


def _compare_bias(name: str, wanted: Array, new: Inside, index: int) -> None:
    found = new.constant(index)
    scales = new.tensors[index].scales
    step = scales.max() if scales.size else 0.0
    off = np.abs(found.ravel() - wanted.ravel()).max()
    if off > step + 1e-3 * np.abs(wanted).max():
        raise BackendError(
            f"the bias of {name} is off by {off:.3g}; its largest value is "
            f"{np.abs(wanted).max():.3g}"
        )


def _made(raw: bytes, recipe: list[dict[str, Any]], ranges: Ranges | None) -> bytes:
    with silence():
        quantizer = _quantizer(raw, recipe)
        try:
            result = quantizer.quantize(
                copy.deepcopy(ranges),
                enable_progress_bar=False,
                enable_progress_report=False,
            )
        except Exception as error:
            raise BackendError(f"ai-edge-quantizer: {one_line(error)}") from error
        made = aligned(bytes(result.quantized_model))
    if not _is_quantized(made):
        raise BackendError(
            "nothing was quantized: no operator that it supports is left "
            "(they are kept in float, or the model has none)"
        )
    return made


def _is_quantized(raw: bytes) -> bool:
    inside = Inside(raw)
    return any(
        one.scales.size or one.dtype is np.float16 for one in inside.tensors.values()
    )


def _quantizer(raw: bytes, recipe: list[dict[str, Any]]) -> Any:
    """The tool with a recipe.

    Raises:
        MachineLacks: ai-edge-quantizer is not installed.
    """
    try:
        from ai_edge_quantizer import quantizer
    except ImportError as error:
        raise MachineLacks(
            f"the quantizer aeq cannot be imported ({error}); "
            "install it with: pip install 'edgeml[litert]'"
        ) from error
    try:
        return quantizer.Quantizer(bytearray(raw), recipe)
    except Exception as error:
        raise BackendError(f"ai-edge-quantizer: {one_line(error)}") from error


def _recipe(
    config: Mapping[str, Any], operators: Sequence[str] | None, keep: Sequence[str]
) -> list[dict[str, Any]]:
    """The tool's recipe: later rules win."""
    rules = [
        _rule(".*", operator, "min_max_uniform_quantize", config)
        for operator in operators or ("*",)
    ]
    ports = [
        {"regex": ".*", "operation": port, "algorithm_key": "no_quantize"}
        for port in ("INPUT", "OUTPUT")
    ]
    # after a rule for all operators the tool drops the others of the same expression
    ports = [{**one, "regex": "(.*)"} for one in ports]
    return [*rules, *ports, *map(_kept, keep)]


def _rule(
    regex: str, operator: str, algorithm: str, config: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "regex": regex,
        "operation": operator,
        "algorithm_key": algorithm,
        "op_config": dict(config),
    }


def _kept(tensor: str) -> dict[str, Any]:
    """The rule that leaves the operator in float whose first output has this name."""
    return {
        "regex": f"^{re.escape(tensor)}(;|$)",
        "operation": "*",
        "algorithm_key": "no_quantize",
    }


def _static(bits: int, per_channel: bool) -> dict[str, Any]:
    return {
        "activation_tensor_config": {
            "num_bits": bits, "symmetric": bits == 16,
            "granularity": "TENSORWISE", "dtype": "INT",
        },
        "weight_tensor_config": _tensor(8, per_channel),
        "compute_precision": "INTEGER",
        "explicit_dequantize": False,
    }  # fmt: skip


def _tensor(bits: int, per_channel: bool) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "symmetric": True,
        "granularity": "CHANNELWISE" if per_channel else "TENSORWISE",
        "dtype": "INT",
    }


def _seen(
    raw: bytes, calibration: Sequence[Feeds], percentile: float
) -> dict[str, tuple[float, float]]:
    """Tensor → range; ``percentile`` percent of its values are inside."""
    inside = Inside(raw)
    indices = {
        inside.tensors[index].name: index
        for index in (*inside.inputs.values(), *inside.made)
    }
    low = dict.fromkeys(indices, np.inf)
    high = dict.fromkeys(indices, -np.inf)
    for feed in calibration:
        read = inside.run(feed)
        for name, index in indices.items():
            values = read(index)
            if values.size and values.dtype.kind == "f":
                low[name] = min(low[name], float(values.min()))
                high[name] = max(high[name], float(values.max()))
    spans = {
        name: (low[name], high[name])
        for name in indices
        if np.isfinite(low[name]) and np.isfinite(high[name])
    }
    if percentile >= 100:
        return spans
    counts = {name: np.zeros(_BINS) for name in spans}
    for feed in calibration:
        read = inside.run(feed)
        for name, span in spans.items():
            values = read(indices[name])
            counts[name] += np.histogram(values, _BINS, _wide(span))[0]
    return {
        name: _middle(counts[name], _wide(span), percentile)
        for name, span in spans.items()
    }


def _wide(span: tuple[float, float]) -> tuple[float, float]:
    low, high = span
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _middle(
    counts: Array, span: tuple[float, float], percentile: float
) -> tuple[float, float]:
    """The part of a histogram that leaves the same share out on both sides."""
    left_out = (1 - percentile / 100) / 2 * counts.sum()
    edges = np.linspace(*span, len(counts) + 1)
    below = np.searchsorted(np.cumsum(counts), left_out, side="right")
    above = np.searchsorted(np.cumsum(counts[::-1]), left_out, side="right")
    return float(edges[below]), float(edges[len(counts) - above])
