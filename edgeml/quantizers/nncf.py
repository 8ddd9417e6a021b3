"""NNCF: post-training int8 for ONNX graphs and OpenVINO models.

The rules it keeps:

1. Called without options it does what ``nncf.quantize`` does without options.
2. The model that came in is not changed; the same inputs give the same bytes.
3. Nothing is sent and nothing is written into the user's home: NNCF and OpenVINO take
   the absence of the ``openvino_telemetry`` package as "no telemetry", so it is made
   absent for this process before NNCF is imported. (``NNCF_CI=1`` is not enough: the
   client id file is written at import, before that variable is looked at.)
4. NNCF's log and progress bars are silent; its errors leave as ``BackendError``.
"""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, TypedDict, TypeVar, Unpack

from device_agent.contract.tensors import Feeds

from ..errors import BackendError, MachineLacks, one_line

OPSET_MIN = 13
"""From this ONNX opset on NNCF quantizes weights per channel."""

METHODS = ("minmax", "percentile")
"""Calibration methods of its own choice, besides the mean of each sample's range."""

SUBSET_SIZE = 300
"""Samples that NNCF looks at, as it does by default."""

Preset = Literal["performance", "mixed"]
Method = Literal["minmax", "percentile"]
T = TypeVar("T")


def base(saturates: bool, per_channel: bool) -> dict[str, Any]:
    """Arguments that all candidates but NNCF's defaults have."""
    options: dict[str, Any] = {"overflow_safe": saturates}
    return options if per_channel else {**options, "per_channel": False}


def ranges(methods: Sequence[str], percentile: float) -> list[dict[str, Any]]:
    """Arguments for each of the methods that NNCF has; for none, its own choice."""
    found: list[dict[str, Any]] = []
    for method in methods:
        if method in METHODS:
            share = {"percentile": percentile} if method == "percentile" else {}
            found.append({"method": method, **share})
    return found if methods else [{}]


class Settings(TypedDict, total=False):
    """What NNCF is told; what is not set is NNCF's own default.

    ``fast_bias_correction``: None leaves the biases as they are; False is the slower,
    layer by layer correction. ``preset``: ``performance`` quantizes activations
    symmetrically, ``mixed`` asymmetrically; None: by ``model_type``. ``model_type``:
    ``transformer`` adds attention patterns and SmoothQuant, which ``smooth_quant``
    False takes out again. ``overflow_safe``: True halves the range of all weights, for
    machines that add u8×s8 products in 16 bits; False never does; None does it for the
    first convolutions only. ``method``: how the ranges of activations are found; None
    is the mean over the samples of each sample's least and greatest value.
    ``percentile``: for the method of that name, the share of values inside, in %.
    ``per_channel``: False quantizes weights with one scale for the whole tensor.
    """

    fast_bias_correction: bool | None
    preset: Preset | None
    model_type: Literal["transformer"] | None
    overflow_safe: bool | None
    smooth_quant: bool
    method: Method | None
    percentile: float
    per_channel: bool


def quantize_onnx(
    model: Any,
    calibration: Sequence[Feeds],
    *,
    keep: Sequence[str] = (),
    subset_size: int = SUBSET_SIZE,
    **settings: Unpack[Settings],
) -> Any:
    """An ``onnx.ModelProto`` in QDQ form, made of a float one.

    Models below opset 13 are raised to it first. Nodes without a name of their own
    get that of their first output, in the result as well.

    Args:
        model: the float ``onnx.ModelProto``.
        calibration: the samples; the first ``subset_size`` of them are used.
        keep: nodes that stay in float, by node name or output name.
        subset_size: how many samples at most.
        settings: see :class:`Settings`.

    Raises:
        BackendError: a name in ``keep`` is unknown, there are no samples, or NNCF
            failed; the text says why.
        MachineLacks: NNCF is not installed.
    """
    named = _named(model)
    options = _options(_node_names(named, keep), **settings)
    return _quantize(lambda: named, calibration, options, subset_size)


def quantize_openvino(
    model: Any,
    calibration: Sequence[Feeds],
    *,
    keep: Sequence[str] = (),
    subset_size: int = SUBSET_SIZE,
    **settings: Unpack[Settings],
) -> Any:
    """An ``openvino.Model`` with FakeQuantize operations, made of a float one.

    ``keep`` names operations by their friendly names; the rest is as in
    :func:`quantize_onnx`.

    Raises:
        BackendError: a name in ``keep`` is unknown, there are no samples, or NNCF
            failed; the text says why.
        MachineLacks: NNCF is not installed.
    """
    _check_known(keep, {op.get_friendly_name() for op in model.get_ops()})
    options = _options(keep, **settings)
    return _quantize(lambda: _aligned(model), calibration, options, subset_size)


@cache
def load_nncf() -> Any:
    """The ``nncf`` package, silent and without telemetry; takes seconds.

    Raises:
        MachineLacks: it is not installed.
    """
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        import nncf
        import onnxruntime
        from nncf.common.logging import track_progress
    except ImportError as error:
        raise MachineLacks(
            f"the quantizer nncf cannot be imported ({error}); "
            "install it with: pip install 'edgeml[build]'"
        ) from error
    finally:
        logging.disable(disabled)
    nncf.set_log_level(logging.CRITICAL)
    onnxruntime.set_default_logger_severity(3)
    # NNCF offers no switch for its bars, and they break into ours.
    shown = track_progress.Progress
    track_progress.Progress = lambda *columns, **options: shown(
        *columns, **{**options, "disable": True}
    )
    return nncf


def _options(
    keep: Sequence[str],
    *,
    fast_bias_correction: bool | None = True,
    preset: Preset | None = None,
    model_type: str | None = None,
    overflow_safe: bool | None = None,
    smooth_quant: bool = True,
    method: Method | None = None,
    percentile: float = 99.99,
    per_channel: bool = True,
) -> dict[str, Any]:
    """Keyword arguments of ``nncf.quantize``; {} for the defaults."""
    nncf = load_nncf()
    options: dict[str, Any] = {}
    advanced: dict[str, Any] = {}
    if fast_bias_correction is None:
        advanced["disable_bias_correction"] = True
    elif not fast_bias_correction:
        options["fast_bias_correction"] = False
    if preset is not None:
        options["preset"] = nncf.QuantizationPreset(preset)
    if model_type is not None:
        options["model_type"] = nncf.ModelType(model_type)
    if keep:
        options["ignored_scope"] = nncf.IgnoredScope(names=list(keep))
    if overflow_safe is not None:
        fix = nncf.OverflowFix
        advanced["overflow_fix"] = fix.ENABLE if overflow_safe else fix.DISABLE
    if not smooth_quant:
        advanced["smooth_quant_alphas"] = nncf.AdvancedSmoothQuantParameters(
            convolution=-1, matmul=-1
        )
    if advanced:
        options["advanced_parameters"] = nncf.AdvancedQuantizationParameters(**advanced)
    _set_ranges(options, method, percentile, per_channel)
    return options


def _set_ranges(
    options: dict[str, Any], method: Method | None, percentile: float, per_channel: bool
) -> None:
    """Put how ranges are found into ``options``; nothing for NNCF's defaults."""
    if method is None and per_channel:
        return
    from nncf.quantization import range_estimator as estimator
    from nncf.quantization.advanced_parameters import QuantizationParameters

    nncf = load_nncf()
    advanced = options.setdefault(
        "advanced_parameters", nncf.AdvancedQuantizationParameters()
    )
    if not per_channel:
        advanced.weights_quantization_params = QuantizationParameters(per_channel=False)
    if method == "minmax":
        advanced.activations_range_estimator_params = (
            estimator.RangeEstimatorParametersSet.MINMAX
        )
    elif method == "percentile":
        if not 50 < percentile <= 100:
            raise BackendError(f"percentile {percentile} is not above 50 and up to 100")
        advanced.activations_range_estimator_params = _quantiles(
            estimator, 1 - percentile / 100
        )


def _quantiles(estimator: Any, tail: float) -> Any:
    """Ranges that leave the share ``tail`` of the values out at either end."""

    def end(quantile: float) -> Any:
        return estimator.StatisticsCollectorParameters(
            statistics_type=estimator.StatisticsType.QUANTILE,
            aggregator_type=estimator.AggregatorType.MEAN,
            quantile_outlier_prob=quantile,
        )

    return estimator.RangeEstimatorParameters(min=end(tail), max=end(tail))


def _quantize(
    model: Callable[[], T],
    calibration: Sequence[Feeds],
    options: dict[str, Any],
    subset_size: int,
) -> T:
    """Run ``nncf.quantize``; this is the seam where foreign errors get our name."""
    if not calibration:
        raise BackendError("NNCF needs calibration samples; it was given none")
    nncf = load_nncf()
    samples = nncf.Dataset([dict(feeds) for feeds in calibration[:subset_size]])
    try:
        quantized: T = nncf.quantize(
            model(), samples, subset_size=min(subset_size, len(calibration)), **options
        )
    except Exception as error:
        raise BackendError(f"NNCF could not quantize: {one_line(error)}") from error
    return quantized


def _named(model: Any) -> Any:
    """A copy at opset 13 or later whose nodes have names that differ."""
    import onnx

    try:
        copy = _raised(model)
    except Exception as error:
        raise BackendError(
            f"the model cannot be raised to ONNX opset {OPSET_MIN}: {one_line(error)}"
        ) from error
    _drop_unused(copy.graph)
    seen: set[str] = set()
    for node in copy.graph.node:
        if not node.name or node.name in seen:
            node.name = next(name for name in node.output if name)
        seen.add(node.name)
    copy.ir_version = max(copy.ir_version, 4)  # below 4 weights must be inputs too
    assert isinstance(copy, onnx.ModelProto)
    return copy


def _drop_unused(graph: Any) -> None:
    """Take out weights that no node reads, and inputs that are weights."""
    read = {name for node in graph.node for name in node.input}
    read.update(item.name for item in graph.output)
    if any(item.HasField("g") for node in graph.node for item in node.attribute):
        read.update(item.name for item in graph.initializer)  # bodies may read any
    weights = {item.name for item in graph.initializer}
    for field, wanted in (
        (graph.input, [item for item in graph.input if item.name not in weights]),
        (graph.initializer, [item for item in graph.initializer if item.name in read]),
    ):
        del field[:]
        field.extend(wanted)


def _raised(model: Any) -> Any:
    import onnx
    from onnx import version_converter

    opset = max(
        item.version for item in model.opset_import if item.domain in ("", "ai.onnx")
    )
    if opset < OPSET_MIN:
        return version_converter.convert_version(model, OPSET_MIN)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _aligned(model: Any) -> Any:
    """A copy in which added constants have as many dimensions as what they add to.

    NNCF's bias correction fails on a bias [8, 1, 1] beside an output [1, 8, 24, 24].
    """
    from openvino import opset13

    copy = model.clone()
    for op in copy.get_ordered_ops():
        rank = op.get_output_partial_shape(0).rank if op.get_output_size() else None
        if op.get_type_name() != "Add" or rank is None or rank.is_dynamic:
            continue
        for port in op.inputs():
            constant = port.get_source_output().get_node()
            missing = rank.get_length() - len(port.get_partial_shape())
            if (
                constant.get_type_name() == "Constant"
                and 0 < missing < rank.get_length() - 1
            ):
                data = constant.get_data()
                wide = opset13.constant(data.reshape((1,) * missing + data.shape))
                wide.set_friendly_name(constant.get_friendly_name())
                port.replace_source_output(wide.output(0))
    return copy


def _node_names(model: Any, keep: Sequence[str]) -> list[str]:
    """Node names for names of nodes or of their outputs, in the graph's order."""
    wanted = set(keep)
    known = {name for node in model.graph.node for name in (node.name, *node.output)}
    _check_known(keep, known)
    return [
        node.name
        for node in model.graph.node
        if wanted.intersection((node.name, *node.output))
    ]


def _check_known(keep: Sequence[str], known: set[str]) -> None:
    unknown = [name for name in keep if name not in known]
    if unknown:
        raise BackendError(
            f"no node named {', '.join(unknown[:5])} in the model; nodes to keep in "
            "float are named as in the ONNX graph"
        )
