"""Weights in blocks of 4 bits, by ONNX Runtime's operator MatMulNBits.

What is multiplied is read from 4 bits and computed in float, or in 8 bits where the
activations are quantized block by block on the way (``level`` 4). The rules it keeps:

1. Matrix products with constant weights are quantized; a Gemm becomes the product and
   the sum that it is. Everything else stays float, products of two activations too.
2. Blocks lie along the summed dimension; each has a scale and, unless ``symmetric``, a
   zero point. Rounding is to the nearest.
3. The packing is that of ``onnxruntime.quantization.matmul_nbits_quantizer``, by the
   same kernel. That module itself is not imported: it needs a package that ONNX Runtime
   does not bring along, and it sets up the process's logging.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from device_agent.contract.tensors import Array

from ..errors import BackendError
from ..graphs.preparation import normalized

METHODS: tuple[str, ...] = ()
"""Calibration methods: none, it looks at no samples."""
BITS = 4
BLOCKS = (16, 32, 64, 128, 256)
LEVELS = (0, 1, 4)
"""What is computed in: 0 the operator's choice, 1 float32, 4 int8."""
DOMAIN = "com.microsoft"


def ways() -> dict[str, dict[str, Any]]:
    """Name → arguments of :func:`quantize_weights`; what its tool does untold first."""
    found: dict[str, dict[str, Any]] = {"default": {"block": 128}}
    for level, word in ((0, ""), (4, " in int8")):
        for block in (32, 128):
            for symmetric, kind in ((False, ""), (True, " symmetric")):
                found[f"blocks of {block}{kind}{word}"] = {
                    "block": block, "symmetric": symmetric, "level": level,
                }  # fmt: skip
    del found["blocks of 128"]  # that is the default
    return found


def quantize_weights(
    prepared: Any,
    *,
    block: int = 128,
    symmetric: bool = False,
    level: int = 0,
    keep: Sequence[str] = (),
) -> Any:
    """The graph of ``prepared`` with its matrices in 4 bits.

    Args:
        prepared: the float graph; every node has a name.
        block: how many weights share a scale.
        symmetric: whether blocks have no zero point.
        level: one of :data:`LEVELS`.
        keep: names of nodes left in float.

    Raises:
        BackendError: a parameter that the operator does not know, or nothing to do.
    """
    if block not in BLOCKS or level not in LEVELS:
        raise BackendError(
            f"MatMulNBits has blocks of {BLOCKS} and levels {LEVELS}; "
            f"got block {block}, level {level}"
        )
    proto = normalized(prepared)
    constants = {one.name: one for one in proto.graph.initializer}
    attributes = {"bits": BITS, "block_size": block}
    attributes |= {"accuracy_level": level} if level else {}
    made: dict[tuple[str, bool], tuple[list[str], dict[str, int]]] = {}
    result: list[Any] = []
    for node in proto.graph.node:
        turned = _is_turned(node, constants) if node.name not in keep else None
        if turned is None:
            result.append(node)
            continue
        key = node.input[1], turned
        if key not in made:  # a matrix may serve two products
            made[key] = _packed(proto, constants[key[0]], turned, block, symmetric)
        inputs, sizes = made[key]
        result += _products(node, inputs, {**sizes, **attributes})
    if not made:
        raise BackendError(
            "nothing was quantized: no MatMul or Gemm with constant weights is left "
            "(they are kept in float, or inside If or Loop)"
        )
    return _rebuilt(proto, result)


def _is_turned(node: Any, constants: dict[str, Any]) -> bool | None:
    """Whether a product's weights are stored transposed; None: it is left in float."""
    if len(node.input) < 2 or node.domain not in ("", "ai.onnx"):
        return None
    weight = constants.get(node.input[1])
    if weight is None or len(weight.dims) != 2 or weight.data_type != 1:  # float32
        return None
    if node.op_type == "MatMul":
        return False
    settings = {one.name: one.i or one.f for one in node.attribute}
    plain = (
        node.op_type == "Gemm"
        and not settings.get("transA", 0)
        and settings.get("alpha", 1) == 1
        and settings.get("beta", 1) == 1
    )
    return bool(settings.get("transB", 0)) if plain else None


def _packed(
    proto: Any, weight: Any, turned: bool, block: int, symmetric: bool
) -> tuple[list[str], dict[str, int]]:
    """Add a matrix in blocks; gives the names of its parts, and its sizes."""
    from onnx import numpy_helper

    matrix = numpy_helper.to_array(weight)
    matrix = np.ascontiguousarray(matrix.T if turned else matrix)
    packed, scales, zeros = pack(matrix, block, symmetric)
    stem = f"{weight.name}{'_T' if turned else ''}_Q{BITS}"
    parts = {stem: packed, f"{stem}_scales": scales.ravel()}
    if not symmetric:
        parts[f"{stem}_zero_points"] = zeros.ravel()
    proto.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in parts.items()
    )
    rows, columns = matrix.shape
    return list(parts), {"K": rows, "N": columns}


def pack(matrix: Array, block: int, symmetric: bool) -> tuple[Array, Array, Array]:
    """``[K, N]`` weights as MatMulNBits reads them.

    Returns:
        Nibbles ``[N, blocks, block / 2]``, scales ``[N, blocks]``, zero points as
        nibbles ``[N, blocks / 2 rounded up]``.
    """
    from onnxruntime.capi._pybind_state import quantize_matmul_4bits

    rows, columns = matrix.shape
    blocks = -(-rows // block)
    padded = np.pad(matrix, ((0, blocks * block - rows), (0, 0)))
    packed = np.zeros((columns, blocks, block // 2), np.uint8)
    scales = np.zeros((columns, blocks), np.float32)
    zeros = np.zeros((columns, (blocks + 1) // 2), np.uint8)
    quantize_matmul_4bits(
        packed, padded, scales, zeros, block, columns, rows, symmetric
    )
    return packed, scales, zeros


def _products(
    node: Any, inputs: Sequence[str], attributes: dict[str, int]
) -> list[Any]:
    """The product in 4 bits, and the sum where a Gemm has one."""
    from onnx import helper

    bias = node.input[2] if len(node.input) > 2 else ""
    output = f"{node.output[0]}_product" if bias else node.output[0]
    made = [
        helper.make_node(
            "MatMulNBits", [node.input[0], *inputs], [output], node.name,
            domain=DOMAIN, **attributes,
        )
    ]  # fmt: skip
    if bias:
        made.append(
            helper.make_node("Add", [output, bias], node.output, f"{node.name}_bias")
        )
    return made


def _rebuilt(proto: Any, nodes: Sequence[Any]) -> Any:
    from onnx import helper

    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(copies)
    if DOMAIN not in {one.domain for one in proto.opset_import}:
        proto.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return normalized(proto)
