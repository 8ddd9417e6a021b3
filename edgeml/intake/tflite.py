"""Facts of a TensorFlow Lite file, read without any runtime.

1. Reads the FlatBuffers of the public schema as the device does
   (:mod:`device_agent.runtimes.tflite`): a hostile file is a :class:`ModelError` and
   never a crash or a hang.
2. ``problems`` lists what the LiteRT interpreter would refuse: custom operators and
   quantization that contradicts the tensor, with operator, tensor and reason.
"""

import struct
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from device_agent.runtimes.tflite import IDENTIFIER, Damaged, Table, root

from ..errors import ModelError

MAX_FILE_BYTES = 2**30

TYPES = (
    "FP32", "FP16", "INT32", "UINT8", "INT64", "STRING", "BOOL", "INT16", "COMPLEX64",
    "INT8", "FP64", "COMPLEX128", "UINT64", "RESOURCE", "VARIANT", "UINT32", "UINT16",
    "INT4", "BF16",
)  # fmt: skip
CUSTOM = 32
_NAMES = (
    "ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE "
    "DEQUANTIZE EMBEDDING_LOOKUP FLOOR FULLY_CONNECTED HASHTABLE_LOOKUP "
    "L2_NORMALIZATION L2_POOL_2D LOCAL_RESPONSE_NORMALIZATION LOGISTIC LSH_PROJECTION "
    "LSTM MAX_POOL_2D MUL RELU RELU_N1_TO_1 RELU6 RESHAPE RESIZE_BILINEAR RNN SOFTMAX "
    "SPACE_TO_DEPTH SVDF TANH CONCAT_EMBEDDINGS SKIP_GRAM CALL CUSTOM "
    "EMBEDDING_LOOKUP_SPARSE PAD UNIDIRECTIONAL_SEQUENCE_RNN GATHER BATCH_TO_SPACE_ND "
    "SPACE_TO_BATCH_ND TRANSPOSE MEAN SUB DIV SQUEEZE UNIDIRECTIONAL_SEQUENCE_LSTM "
    "STRIDED_SLICE BIDIRECTIONAL_SEQUENCE_RNN EXP TOPK_V2 SPLIT LOG_SOFTMAX DELEGATE "
    "BIDIRECTIONAL_SEQUENCE_LSTM CAST PRELU MAXIMUM ARG_MAX MINIMUM LESS NEG PADV2 "
    "GREATER GREATER_EQUAL LESS_EQUAL SELECT SLICE SIN TRANSPOSE_CONV SPARSE_TO_DENSE "
    "TILE EXPAND_DIMS EQUAL NOT_EQUAL LOG SUM SQRT RSQRT SHAPE POW ARG_MIN FAKE_QUANT "
    "REDUCE_PROD REDUCE_MAX PACK LOGICAL_OR ONE_HOT LOGICAL_AND LOGICAL_NOT UNPACK "
    "REDUCE_MIN FLOOR_DIV REDUCE_ANY SQUARE ZEROS_LIKE FILL FLOOR_MOD RANGE "
    "RESIZE_NEAREST_NEIGHBOR LEAKY_RELU SQUARED_DIFFERENCE MIRROR_PAD ABS SPLIT_V "
    "UNIQUE CEIL REVERSE_V2 ADD_N GATHER_ND COS WHERE RANK ELU REVERSE_SEQUENCE "
    "MATRIX_DIAG QUANTIZE MATRIX_SET_DIAG ROUND HARD_SWISH IF WHILE "
    "NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5 SCATTER_ND SELECT_V2 DENSIFY "
    "SEGMENT_SUM BATCH_MATMUL PLACEHOLDER_FOR_GREATER_OP_CODES CUMSUM CALL_ONCE "
    "BROADCAST_TO RFFT2D CONV_3D IMAG REAL COMPLEX_ABS HASHTABLE HASHTABLE_FIND "
    "HASHTABLE_IMPORT HASHTABLE_SIZE REDUCE_ALL CONV_3D_TRANSPOSE VAR_HANDLE "
    "READ_VARIABLE ASSIGN_VARIABLE BROADCAST_ARGS RANDOM_STANDARD_NORMAL BUCKETIZE "
    "RANDOM_UNIFORM MULTINOMIAL GELU DYNAMIC_UPDATE_SLICE RELU_0_TO_1 "
    "UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_MAX UNSORTED_SEGMENT_SUM ATAN2 "
    "UNSORTED_SEGMENT_MIN SIGN BITCAST BITWISE_XOR RIGHT_SHIFT STABLEHLO_LOGISTIC "
    "STABLEHLO_ADD STABLEHLO_DIVIDE STABLEHLO_MULTIPLY STABLEHLO_MAXIMUM "
    "STABLEHLO_RESHAPE STABLEHLO_CLAMP STABLEHLO_CONCATENATE "
    "STABLEHLO_BROADCAST_IN_DIM STABLEHLO_CONVOLUTION STABLEHLO_SLICE "
    "STABLEHLO_CUSTOM_CALL STABLEHLO_REDUCE STABLEHLO_ABS STABLEHLO_AND "
    "STABLEHLO_COSINE STABLEHLO_EXPONENTIAL STABLEHLO_FLOOR STABLEHLO_LOG "
    "STABLEHLO_MINIMUM STABLEHLO_NEGATE STABLEHLO_OR STABLEHLO_POWER "
    "STABLEHLO_REMAINDER STABLEHLO_RSQRT STABLEHLO_SELECT STABLEHLO_SUBTRACT "
    "STABLEHLO_TANH STABLEHLO_SCATTER STABLEHLO_COMPARE STABLEHLO_CONVERT "
    "STABLEHLO_DYNAMIC_SLICE STABLEHLO_DYNAMIC_UPDATE_SLICE STABLEHLO_PAD "
    "STABLEHLO_IOTA STABLEHLO_DOT_GENERAL STABLEHLO_REDUCE_WINDOW STABLEHLO_SORT "
    "STABLEHLO_WHILE STABLEHLO_GATHER STABLEHLO_TRANSPOSE DILATE "
    "STABLEHLO_RNG_BIT_GENERATOR REDUCE_WINDOW STABLEHLO_COMPOSITE "
    "STABLEHLO_SHIFT_LEFT STABLEHLO_CBRT STABLEHLO_CASE"
)
BUILTINS = tuple(_NAMES.split())


@dataclass(frozen=True)
class TfliteTensor:
    """One tensor; -1 in its shape is a variable dimension, no scales means float."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    quantized_dimension: int = 0


@dataclass(frozen=True)
class TfliteFacts:
    """What a file holds; ``operators`` counts by name over all subgraphs."""

    version: int
    description: str
    subgraphs: int
    tensors: int
    inputs: tuple[TfliteTensor, ...]
    outputs: tuple[TfliteTensor, ...]
    operators: dict[str, int] = field(default_factory=dict)
    custom_operators: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    """Why an interpreter would refuse it, one line each; empty: nothing seen."""


def read_tflite(raw: bytes, name: str) -> TfliteFacts:
    """The facts of a ``.tflite`` file's bytes; ``name`` is for messages.

    Raises:
        ModelError: too big, no TensorFlow Lite, or damaged; one line.
    """
    if len(raw) > MAX_FILE_BYTES:
        raise ModelError(
            f"{name} has {len(raw)} bytes, more than the {MAX_FILE_BYTES} allowed"
        )
    if raw[4:8] != IDENTIFIER:
        raise ModelError(f"{name} is no TensorFlow Lite file (no TFL3 at byte 4)")
    try:
        return _facts(raw)
    except (struct.error, Damaged) as error:
        raise ModelError(f"{name} is damaged: {error}") from error


def operator_versions(raw: bytes) -> dict[str, int]:
    """Operator → the highest version of it that a sound file asks for."""
    found: dict[str, int] = {}
    for code in root(raw).tables(1):
        name, _ = _operator(code)
        found[name] = max(found.get(name, 0), code.scalar(2, "i", 1))
    return dict(sorted(found.items()))


def _facts(data: bytes) -> TfliteFacts:
    model = root(data)
    codes = [_operator(code) for code in model.tables(1)]
    graphs = model.tables(2)
    if not graphs:
        raise Damaged("it has no subgraph")
    counts: Counter[str] = Counter()
    problems: list[str] = []
    tensors = [[_tensor(table) for table in graph.tables(0)] for graph in graphs]
    for graph, found in zip(graphs, tensors, strict=True):
        users = _count(graph, codes, found, counts, problems)
        problems += _contradictions(found, users)
    main = tensors[0]
    return TfliteFacts(
        version=model.scalar(0, "I"),
        description=model.text(3),
        subgraphs=len(graphs),
        tensors=sum(map(len, tensors)),
        inputs=_ports(model, main, graphs[0].vector(1, "i"), 0),
        outputs=_ports(model, main, graphs[0].vector(2, "i"), 1),
        operators=dict(sorted(counts.items())),
        custom_operators=tuple(sorted({name for name, custom in codes if custom})),
        problems=tuple(problems),
    )


def _operator(code: Table) -> tuple[str, bool]:
    """Name of an operator code, and whether it is custom."""
    # the byte field is full at 127; files with newer operators use the wide one
    number = max(code.scalar(0, "b"), code.scalar(3, "i"))
    if number == CUSTOM:
        return code.text(1) or "CUSTOM", True
    if 0 <= number < len(BUILTINS):
        return BUILTINS[number], False
    return f"BUILTIN_{number}", False


def _tensor(table: Table) -> TfliteTensor:
    kind = table.scalar(1, "b")
    quantization = table.table(4)
    return TfliteTensor(
        name=table.text(3),
        datatype=TYPES[kind] if 0 <= kind < len(TYPES) else f"TYPE_{kind}",
        shape=table.vector(7, "i") or table.vector(0, "i"),
        scales=quantization.vector(2, "f") if quantization else (),
        zero_points=quantization.vector(3, "q") if quantization else (),
        quantized_dimension=quantization.scalar(6, "i") if quantization else 0,
    )


def _ports(
    model: Table, tensors: list[TfliteTensor], places: tuple[int, ...], field: int
) -> tuple[TfliteTensor, ...]:
    """Inputs (field 0 of a signature) or outputs (1), by the names that callers use:
    those of the first signature, where there is one for all of them."""
    found = [_at(tensors, place, "tensor") for place in places]
    signatures = [one for one in model.tables(7) if one.scalar(4, "I") == 0]
    if not signatures:
        return tuple(found)
    first = min(signatures, key=lambda one: one.text(2))
    names = {one.scalar(1, "I"): one.text(0) for one in first.tables(field)}
    if not set(places) <= names.keys():
        return tuple(found)
    return tuple(
        replace(one, name=names[place])
        for place, one in zip(places, found, strict=True)
    )


def _at(items: list[Any], index: int, what: str) -> Any:
    if not 0 <= index < len(items):
        raise Damaged(f"{what} {index} of {len(items)}")
    return items[index]


def _count(
    graph: Table,
    codes: list[tuple[str, bool]],
    tensors: list[TfliteTensor],
    counts: Counter[str],
    problems: list[str],
) -> dict[int, str]:
    """Count the operators of a subgraph; gives which operator first uses a tensor."""
    users: dict[int, str] = {}
    for place, operator in enumerate(graph.tables(3)):
        name, custom = _at(codes, operator.scalar(0, "I"), "operator code")
        counts[name] += 1
        made = operator.vector(2, "i")
        for index in (*operator.vector(1, "i"), *made):
            if index != -1:
                _at(tensors, index, "tensor")
                users.setdefault(index, f"{name} (node {place})")
        if custom:
            first = tensors[made[0]].name if made and made[0] >= 0 else ""
            problems.append(
                f"operator {name} (node {place}, output {first!r}) is a custom "
                "operator, which no runtime here has"
            )
    return users


def _contradictions(tensors: list[TfliteTensor], users: dict[int, str]) -> list[str]:
    """Tensors whose quantization does not fit their shape, as LiteRT checks it."""
    found = []
    for index, tensor in enumerate(tensors):
        rank, axis = len(tensor.shape), tensor.quantized_dimension
        if not tensor.scales or not rank:
            continue
        where = f"operator {users.get(index, '?')}, tensor {tensor.name!r}"
        if not 0 <= axis < rank:
            found.append(
                f"{where}: quantized_dimension must be in range [0, {rank}), is {axis}"
            )
        elif len(tensor.scales) not in (1, tensor.shape[axis]):
            found.append(
                f"{where}: {len(tensor.scales)} scales for "
                f"{tensor.shape[axis]} channels"
            )
    return found
