"""A ``.tflite`` from inside: its operators, every tensor's value, other names for them.

1. Values are computed by LiteRT's own kernels with nothing fused away, on one thread.
2. What is written again keeps its numbers: names change, and constant data is aligned
   to 16 bytes as the schema asks (the FlatBuffers package for Python does not).
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np

from device_agent.contract.tensors import Array, Feeds

from ..errors import BackendError, MachineLacks, one_line

SIGNATURE = "serving_default"
_ALIGNMENT = 16
_LOG_CHARS = 2000


@dataclass(frozen=True)
class Op:
    """An operator: its name in the schema, and tensors by number (-1: left out)."""

    place: int
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """A tensor; ``scales`` is empty where it holds what it says."""

    index: int
    name: str
    dtype: Any
    shape: tuple[int, ...]
    scales: Array
    zero_points: Array
    axis: int

    def values(self, stored: Array) -> Array:
        """What stored numbers stand for, in float64."""
        wide = stored.astype(np.float64)
        if not self.scales.size:
            return wide
        shape = [1] * wide.ndim
        if self.scales.size > 1:
            shape[self.axis] = self.scales.size
        zeros = np.broadcast_to(self.zero_points, self.scales.shape)
        values: Array = (wide - zeros.reshape(shape)) * self.scales.reshape(shape)
        return values


class Inside:
    """An opened ``.tflite`` whose tensors can all be read.

    Raises:
        BackendError: LiteRT does not open it.
        MachineLacks: ai-edge-litert is not installed.
    """

    def __init__(self, raw: bytes) -> None:
        litert = _litert()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it warns of the memory this takes
                self._interpreter = litert.Interpreter(
                    model_content=raw,
                    num_threads=1,
                    experimental_preserve_all_tensors=True,
                    experimental_op_resolver_type=(
                        litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
                    ),
                )
                self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise BackendError(f"LiteRT does not open it: {one_line(error)}") from error
        # not kept: while there is a runner the interpreter refuses to run by itself
        runner = self._interpreter.get_signature_runner(SIGNATURE)
        self.inputs = _indices(runner.get_input_details())
        """Signature name → number of the tensor."""
        self.outputs = _indices(runner.get_output_details())

    @cached_property
    def tensors(self) -> dict[int, Tensor]:
        """Number → tensor."""
        return {
            item["index"]: _tensor(item)
            for item in self._interpreter.get_tensor_details()
        }

    @cached_property
    def ops(self) -> list[Op]:
        """The operators, in the order in which they run."""
        return [
            Op(
                place, item["op_name"],
                tuple(int(one) for one in item["inputs"]),
                tuple(int(one) for one in item["outputs"]),
            )
            for place, item in enumerate(self._interpreter._get_ops_details())
        ]  # fmt: skip

    @cached_property
    def made(self) -> dict[int, Op]:
        """Tensor → the operator that computes it."""
        return {index: op for op in self.ops for index in op.outputs}

    def is_constant(self, index: int) -> bool:
        """Whether a tensor is part of the file."""
        return (
            index >= 0 and index not in self.made and index not in self.inputs.values()
        )

    def constant(self, index: int) -> Array:
        """What a constant stands for, in float64."""
        return self.tensors[index].values(self.stored(index))

    def stored(self, index: int) -> Array:
        """The numbers of a constant as they are in the file."""
        numbers: Array = self._interpreter.get_tensor(index)
        return numbers

    def run(self, feeds: Feeds) -> Callable[[int], Array]:
        """Run once; gives what reads a tensor's stored numbers by its number.

        Raises:
            BackendError: LiteRT fails on these feeds.
        """
        try:
            for name, index in self.inputs.items():
                self._interpreter.set_tensor(index, feeds[name])
            self._interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise BackendError(f"LiteRT cannot run it: {one_line(error)}") from error
        read: Callable[[int], Array] = self._interpreter.get_tensor
        return read


def renamed(
    raw: bytes,
    names: Mapping[int, str],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> bytes:
    """The same model under other names.

    Args:
        raw: a model of one signature, inputs and outputs in its order.
        names: number of a tensor → its name.
        inputs: names for the signature's inputs.
        outputs: names for its outputs.
    """
    model = _unpacked(raw)
    (signature,) = model.signatureDefs
    graph = model.subgraphs[signature.subgraphIndex]
    for index, tensor in enumerate(graph.tensors):
        tensor.name = names[index].encode()
    signature.signatureKey = SIGNATURE.encode()
    for ports, places, given in (
        (signature.inputs, graph.inputs, inputs),
        (signature.outputs, graph.outputs, outputs),
    ):
        order = {int(index): name for index, name in zip(places, given, strict=True)}
        for port in ports:
            port.name = order[int(port.tensorIndex)].encode()
    return _packed(model)


def aligned(raw: bytes) -> bytes:
    """The same model, its constant data where the schema wants it."""
    return _packed(_unpacked(raw))


def main_ports(raw: bytes) -> tuple[list[int], list[int]]:
    """Numbers of the main graph's inputs and outputs, in its own order."""
    graph = _unpacked(raw).subgraphs[0]
    return [int(one) for one in graph.inputs], [int(one) for one in graph.outputs]


@contextmanager
def silence() -> Iterator[None]:
    """Without what converters print: Python's prints and logs, and those of C++.

    An error that says nothing itself takes along what was said last.
    """
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    with TemporaryFile("w+", errors="replace") as log, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with _streams_into(log), redirect_stdout(log), redirect_stderr(log):
                yield
        except Exception as error:
            log.flush()
            log.seek(0)
            said = log.read()[-_LOG_CHARS:].strip()
            if said and not str(error):
                raise BackendError(one_line(said)) from error
            raise
        finally:
            logging.disable(before)


@contextmanager
def _streams_into(log: IO[str]) -> Iterator[None]:
    """What is written to the process's own streams, by any language, goes to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {stream: os.dup(stream) for stream in (1, 2)}
    try:
        for stream in kept:
            os.dup2(log.fileno(), stream)
        yield
    finally:
        for stream, copy in kept.items():
            os.dup2(copy, stream)
            os.close(copy)


def _litert() -> Any:
    try:
        from ai_edge_litert import interpreter
    except ImportError as error:
        raise MachineLacks(
            f"ai-edge-litert is not installed ({error}); "
            "install it with: pip install 'edgeml[litert]'"
        ) from error
    return interpreter


def _schema() -> Any:
    _litert()
    from ai_edge_litert import schema_py_generated

    return schema_py_generated


def _unpacked(raw: bytes) -> Any:
    schema = _schema()
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(raw, 0))


def _packed(model: Any) -> bytes:
    import flatbuffers

    schema = _schema()
    for buffer in model.buffers:
        buffer.Pack = _pack_aligned(schema, buffer)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _pack_aligned(schema: Any, buffer: Any) -> Callable[[Any], int]:
    def pack(builder: Any) -> int:
        data = None
        if buffer.data is not None and len(buffer.data):
            content = np.asarray(buffer.data, np.uint8).tobytes()
            builder.StartVector(1, len(content), _ALIGNMENT)
            builder.head -= len(content)
            builder.Bytes[builder.head : builder.head + len(content)] = content
            data = builder.EndVector()
        schema.BufferStart(builder)
        if data is not None:
            schema.BufferAddData(builder, data)
        return int(schema.BufferEnd(builder))

    return pack


def _indices(details: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    return {name: int(item["index"]) for name, item in details.items()}


def _tensor(item: Mapping[str, Any]) -> Tensor:
    quantization = item["quantization_parameters"]
    return Tensor(
        index=int(item["index"]),
        name=item["name"],
        dtype=item["dtype"],
        shape=tuple(int(size) for size in item["shape"]),
        scales=np.asarray(quantization["scales"], np.float64),
        zero_points=np.asarray(quantization["zero_points"], np.float64),
        axis=int(quantization["quantized_dimension"]),
    )
