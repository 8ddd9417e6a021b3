"""ONNX Runtime's quantizers: static (QDQ) and dynamic int8.

The rules it keeps:

1. Calibration is apart from quantization: the ranges of one method serve every choice
   of types, and nothing is run twice.
2. Samples are calibrated one by one (batch 1): Entropy and Percentile cannot merge
   batches of unequal size. ``Distribution`` is not offered, it gives garbage for int8.
3. :func:`quantize_default` is what ``quantize_static`` does when it is told nothing.
4. A result in which nothing was quantized is an error.
"""

import io
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from device_agent.contract.tensors import Feeds

from ..errors import BackendError
from ..graphs import preparation
from ..graphs.protos import graphs, nodes

METHODS = ("minmax", "entropy", "percentile")
CHUNK = 16
"""Samples whose activations are in memory at the same time."""
DYNAMIC_OPERATORS = ("MatMul", "Gemm", "LSTM", "Attention")
"""Dynamic convolutions are left out: ConvInteger is slower than float on every CPU."""
QUANTIZED = frozenset(
    {"QuantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeLSTM"}
)


def calibrate(
    prepared: Any,
    calibration: Sequence[Feeds],
    method: str,
    percentile: float = 99.99,
) -> bytes:
    """The range of every tensor of ``prepared`` over the samples, as JSON.

    Args:
        prepared: the float graph from :func:`edgeml.graphs.preparation.prepare`.
        calibration: the samples, batch 1.
        method: ``minmax``, ``entropy`` (TensorRT's KL divergence) or ``percentile``.
        percentile: share in percent that the range covers; other methods ignore it.

    Raises:
        BackendError: no samples, an unknown method, or the graph does not run on them.
    """
    if method not in METHODS:
        raise BackendError(f"calibration method {method!r}; known: {METHODS}")
    if not calibration:
        raise BackendError("static int8 needs calibration samples; there are none")
    from onnxruntime.quantization import CalibrationMethod, create_calibrator
    from onnxruntime.quantization.calibrate import save_tensors_data

    kind = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }[method]
    options = {"percentile": percentile} if method == "percentile" else {}
    with _tool(f"calibration ({method})") as folder:
        given, ranges = folder / "given.onnx", folder / "ranges.json"
        given.write_bytes(preparation.to_bytes(prepared))
        calibrator = create_calibrator(
            given, _all_operators(), str(folder / "augmented.onnx"), kind,
            extra_options=options,
        )  # fmt: skip
        for start in range(0, len(calibration), CHUNK):
            calibrator.collect_data(_reader(calibration[start : start + CHUNK]))
        save_tensors_data(calibrator.compute_data(), ranges)
        written = ranges.read_text()
    return json.dumps(json.loads(written), sort_keys=True).encode()


def quantize_static(
    prepared: Any,
    ranges: bytes,
    *,
    activation: str = "u8",
    weight: str = "s8",
    per_channel: bool = True,
    reduce_range: bool = False,
    operators: Sequence[str] | None = None,
    constant_only: bool = False,
    tensorrt: bool = False,
    keep: Sequence[str] = (),
) -> Any:
    """The QDQ graph of ``prepared`` for these ranges.

    Args:
        prepared: the float graph that ``ranges`` were made of.
        ranges: from :func:`calibrate`.
        activation: ``u8`` or ``s8``.
        weight: ``s8`` or ``u8``; u8 weights need u8 activations.
        per_channel: one scale per output channel of a weight.
        reduce_range: weights in 7 bits, for CPUs that add products in 16 bits.
        operators: operator types that are quantized; None: all that the tool knows.
        constant_only: of the matrix products those with weights alone; those of two
            activations (attention) stay in float.
        tensorrt: what TensorRT takes: zero points 0, biases in float, and only what
            goes into the operators is quantized, not what comes out.
        keep: names of nodes left in float.

    Raises:
        BackendError: the tool failed, or found nothing to quantize.
    """
    from onnxruntime.quantization import quantize_static as quantize

    types = list(operators) if operators else _all_operators()
    with _tool("quantize_static") as folder:
        cache, made = folder / "ranges.json", folder / "made.onnx"
        cache.write_bytes(ranges)
        quantize(
            prepared,
            made,
            calibration_cache_path=cache,
            calibrate_method=_method(ranges),
            activation_type=_type(activation),
            weight_type=_type(weight),
            per_channel=per_channel,
            reduce_range=reduce_range,
            op_types_to_quantize=types,
            nodes_to_exclude=list(keep),
            extra_options=_placement(types, constant_only, tensorrt),
        )
        quantized = _read(made)
    return _checked(quantized)


def _placement(
    types: Sequence[str], constant_only: bool, tensorrt: bool
) -> dict[str, Any]:
    """What the tool is told of where pairs go and what they look like."""
    options: dict[str, Any] = {"MatMulConstBOnly": True} if constant_only else {}
    if tensorrt:
        options |= {
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": list(types),
        }
    return options


def quantize_default(
    model: Any, calibration: Sequence[Feeds], keep: Sequence[str] = ()
) -> Any:
    """What ``onnxruntime.quantization.quantize_static`` does without options.

    The graph is not pre-processed, as the tool does not do it by itself.

    Raises:
        BackendError: the tool failed, or found nothing to quantize.
    """
    if not calibration:
        raise BackendError("static int8 needs calibration samples; there are none")
    from onnxruntime.quantization import quantize_static as quantize

    with _tool("quantize_static (defaults)") as folder:
        made = folder / "made.onnx"
        kept = {"nodes_to_exclude": list(keep)} if keep else {}
        quantize(preparation.normalized(model), made, _reader(calibration), **kept)
        quantized = _read(made)
    return _checked(quantized)


def quantize_dynamic(
    prepared: Any,
    *,
    per_channel: bool = True,
    reduce_range: bool = False,
    keep: Sequence[str] = (),
) -> Any:
    """Int8 weights, activations quantized as they come: MatMul, Gemm, LSTM, Attention.

    Subgraphs (If, Loop) are quantized too.

    Raises:
        BackendError: the tool failed, or found nothing to quantize.
    """
    from onnxruntime.quantization import quantize_dynamic as quantize

    inner = sum(1 for _ in graphs(prepared)) > 1
    with _tool("quantize_dynamic") as folder:
        made = folder / "made.onnx"
        quantize(
            prepared,
            made,
            op_types_to_quantize=list(DYNAMIC_OPERATORS),
            per_channel=per_channel,
            reduce_range=reduce_range,
            nodes_to_exclude=list(keep),
            extra_options={"EnableSubgraph": True} if inner else None,
        )
        quantized = _read(made)
    return _checked(quantized)


def _method(ranges: bytes) -> Any:
    """The method that the tool wants to hear again, out of the ranges themselves."""
    from onnxruntime.quantization import CalibrationMethod

    found = json.loads(ranges)["calibration_method"]
    return CalibrationMethod[found["value"].removeprefix("CalibrationMethod.")]


def _type(word: str) -> Any:
    from onnxruntime.quantization import QuantType

    return {"u8": QuantType.QUInt8, "s8": QuantType.QInt8}[word]


def _all_operators() -> list[str]:
    """All that the tool quantizes, in an order that does not depend on hashing."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return sorted({*QDQRegistry, *QLinearOpsRegistry})


def _reader(calibration: Sequence[Feeds]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Gives the samples one by one."""

        def __init__(self) -> None:
            self._left = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            """The next sample, None at the end."""
            feeds = next(self._left, None)
            return None if feeds is None else dict(feeds)

    return Reader()


def _read(path: Path) -> Any:
    return preparation.from_bytes(path.read_bytes())


def _checked(quantized: Any) -> Any:
    if not any(node.op_type in QUANTIZED for node in nodes(quantized)):
        raise BackendError(
            "nothing was quantized: no operator that int8 supports is left "
            "(they are kept in float, or inside If or Loop)"
        )
    return preparation.normalized(quantized)


@contextmanager
def _tool(what: str) -> Iterator[Path]:
    """A folder for the tool, its log silent, its errors ours."""
    import onnxruntime as ort

    from device_agent.runtimes.onnxruntime import reason

    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    ort.set_default_logger_severity(4)
    try:
        # The histogram calibrators print their progress.
        with (
            tempfile.TemporaryDirectory(prefix="edgeml.") as folder,
            redirect_stdout(io.StringIO()),
        ):
            yield Path(folder)
    except BackendError:
        raise
    except Exception as error:
        raise BackendError(f"ONNX Runtime {what} failed: {reason(error)}") from error
    finally:
        logging.disable(disabled)
        ort.set_default_logger_severity(2)  # its own default: warnings
