"""Small ``.tflite`` files made field by field, sound ones and others.

| maker | what it computes |
|---|---|
| ``added`` | ``y = a + b`` over [1, 3] |
| ``convolution`` | a 2×2 convolution over [1, 4, 4, 1] with a bias |
| ``dense`` | a matrix product of [1, 2] with or without a bias |
| ``network`` | any convolution and a Relu over [1, channels, height, width] |
"""

from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

ADD, CONV_2D, FULLY_CONNECTED, TRANSPOSE = 0, 3, 9, 39
FROM_NCHW, TO_NCHW = [0, 2, 3, 1], [0, 3, 1, 2]


def added(
    signature: tuple[str, str, str] | None = ("a", "b", "y"), variable: bool = False
) -> bytes:
    """The sum of two inputs; a signature has (input, input, output)."""
    model, graph = _model(ADD)
    graph.tensors = [_tensor(name, [1, 3]) for name in ("x0", "x1", "y")]
    if variable:
        for tensor in graph.tensors:
            tensor.shapeSignature = [-1, 3]
    graph.inputs, graph.outputs = [0, 1], [2]
    graph.operators = [_operator(0, [0, 1], 2, "Add")]
    model.buffers = [schema.BufferT()]
    if signature is not None:
        model.signatureDefs = [_signature(signature)]
    return written(model)


def convolution(
    *,
    stride: int = 1,
    padding: int = 1,
    options: bool = True,
    inputs: Sequence[int] = (0, 1, 2),
    outputs: Sequence[int] = (3,),
    shape: Sequence[int] = (1, 4, 4, 1),
    kernel: int = 16,
    buffer: int = 1,
    opcode: int = 0,
    scales: int = 0,
    zeros: int = 0,
) -> bytes:
    """Tensors: 0 the input, 1 the weight, 2 the bias, 3 the output."""
    model, graph = _model(CONV_2D)
    graph.tensors = [
        _tensor("x", shape), _tensor("w", [1, 2, 2, 1], buffer), _tensor("b", [1], 2),
        _tensor("y", [1, 3, 3, 1]),
    ]  # fmt: skip
    if scales:
        quantization = schema.QuantizationParametersT()
        quantization.scale = np.ones(scales, np.float32)
        quantization.zeroPoint = np.zeros(zeros, np.int64)
        graph.tensors[1].quantization = quantization
    graph.inputs, graph.outputs = [0], list(outputs)
    chosen = schema.Conv2DOptionsT()
    chosen.strideW = chosen.strideH = stride
    chosen.padding, chosen.dilationWFactor, chosen.dilationHFactor = padding, 1, 1
    operator = _operator(opcode, inputs, 3, "Conv2D", chosen)
    if not options:
        operator.builtinOptions, operator.builtinOptionsType = None, 0
    graph.operators = [operator]
    values = np.arange(4, dtype=np.float32).tobytes()
    model.buffers = [
        _buffer(b""), _buffer(values[:kernel]),
        _buffer(np.array([10], np.float32).tobytes()),
    ]  # fmt: skip
    model.signatureDefs = [_signature(("x", "y"), (0, 3))]
    return written(model)


def dense(bias: bool) -> bytes:
    """``y = x @ [[1, 2], [3, 4]] + [5, 6]``."""
    model, graph = _model(FULLY_CONNECTED)
    graph.tensors = [
        _tensor("x", [1, 2]), _tensor("w", [2, 2], 1), _tensor("b", [2], 2),
        _tensor("y", [1, 2]),
    ]  # fmt: skip
    graph.inputs, graph.outputs = [0], [3]
    inputs = [0, 1, 2 if bias else -1]
    graph.operators = [_operator(0, inputs, 3, "FullyConnected")]
    values = np.array([1, 3, 2, 4], np.float32), np.array([5, 6], np.float32)
    model.buffers = [_buffer(b""), *(_buffer(one.tobytes()) for one in values)]
    model.signatureDefs = [_signature(("x", "y"), (0, 3))]
    return written(model)


def network(weight: np.ndarray, bias: np.ndarray, height: int, width: int) -> bytes:
    """``y = relu(conv(x) + bias)``; the weight is [out, in, rows, columns]."""
    made, channels, rows, columns = weight.shape
    model, graph = _model(CONV_2D, TRANSPOSE)
    inner = [height - rows + 1, width - columns + 1]
    graph.tensors = [
        _tensor("x", [1, channels, height, width]),
        _tensor("from", [4], 1, schema.TensorType.INT32),
        _tensor("x nhwc", [1, height, width, channels]),
        _tensor("w", [made, rows, columns, channels], 2),
        _tensor("b", [made], 3),
        _tensor("y nhwc", [1, *inner, made]),
        _tensor("to", [4], 4, schema.TensorType.INT32),
        _tensor("y", [1, made, *inner]),
    ]
    graph.inputs, graph.outputs = [0], [7]
    options = schema.Conv2DOptionsT()
    options.strideW = options.strideH = 1
    options.padding, options.dilationWFactor, options.dilationHFactor = 1, 1, 1
    options.fusedActivationFunction = schema.ActivationFunctionType.RELU
    graph.operators = [
        _operator(1, [0, 1], 2, "Transpose"),
        _operator(0, [2, 3, 4], 5, "Conv2D", options),
        _operator(1, [5, 6], 7, "Transpose"),
    ]
    constants = [
        np.array(FROM_NCHW, np.int32), weight.transpose(0, 2, 3, 1), bias,
        np.array(TO_NCHW, np.int32),
    ]  # fmt: skip
    model.buffers = [_buffer(b""), *(_buffer(one.tobytes()) for one in constants)]
    model.signatureDefs = [_signature(("x", "y"), (0, 7))]
    return written(model)


def read(raw: bytes) -> Any:
    """A file as objects that can be changed."""
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(raw, 0))


def written(model: Any) -> bytes:
    """Objects as a file."""
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def without_bias(raw: bytes, number: int) -> bytes:
    """The file with the bias of one operator set to zero, as a bad converter does."""
    model = read(raw)
    graph = model.subgraphs[0]
    tensor = graph.tensors[graph.operators[number].inputs[2]]
    buffer = model.buffers[tensor.buffer]
    buffer.data = np.zeros_like(np.asarray(buffer.data))
    return written(model)


def _model(*codes: int) -> tuple[Any, Any]:
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.operatorCodes, model.subgraphs = 3, [], [graph]
    for code in codes:
        operator = schema.OperatorCodeT()
        operator.builtinCode = operator.deprecatedBuiltinCode = code
        operator.version = 1
        model.operatorCodes.append(operator)
    return model, graph


def _operator(
    opcode: int, inputs: Sequence[int], output: int, kind: str, options: Any = None
) -> Any:
    made = schema.OperatorT()
    made.opcodeIndex, made.inputs, made.outputs = opcode, list(inputs), [output]
    made.builtinOptionsType = getattr(schema.BuiltinOptions, f"{kind}Options")
    made.builtinOptions = options or getattr(schema, f"{kind}OptionsT")()
    return made


def _tensor(name: str, shape: Sequence[int], buffer: int = 0, kind: int = 0) -> Any:
    tensor = schema.TensorT()
    tensor.name, tensor.shape = name.encode(), list(shape)
    tensor.type, tensor.buffer = kind, buffer
    return tensor


def _buffer(data: bytes) -> Any:
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(data, np.uint8) if data else None
    return buffer


def _signature(names: Sequence[str], tensors: Sequence[int] | None = None) -> Any:
    """Names for tensors (the first ones); the last is the output."""
    made = schema.SignatureDefT()
    made.signatureKey = b"serving_default"
    ports = []
    for place, name in enumerate(names):
        port = schema.TensorMapT()
        port.name = name.encode()
        port.tensorIndex = place if tensors is None else tensors[place]
        ports.append(port)
    made.inputs, made.outputs = ports[:-1], ports[-1:]
    return made
