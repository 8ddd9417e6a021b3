"""The TensorFlow Lite file format: read without a runtime, and verified before one.

The rules it keeps:

1. Every offset and length is checked against the file and the work is bounded, so a
   hostile file is an error and never a crash or a hang; nothing but ``struct`` is used.
2. :func:`verify` looks at all that an interpreter follows when it opens a file: its
   older releases (tflite-runtime 2.14) trust the file and die of a damaged one.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

from ..contract.errors import ArtifactError

IDENTIFIER = b"TFL3"
MAX_ITEMS = 100_000
"""Most elements of one vector of numbers or tables that is read."""
MAX_READS = 5_000_000
"""Most elements in all: a small file can point to the same vector again and again."""
MAX_RANK = 8
WIDTHS = {
    0: 4, 1: 2, 2: 4, 3: 1, 4: 8, 6: 1, 7: 2, 8: 8, 9: 1, 10: 8, 11: 16, 12: 8,
    15: 4, 16: 2, 17: 0.5, 18: 2,
}  # fmt: skip
"""Number of a tensor's type in the schema → bytes of one element."""
_CUSTOM = 32
_LISTS = {22: 0, 43: 0}
"""Builtin operators whose options hold a vector (RESHAPE, SQUEEZE): its field."""
_STEPS = {
    1: (5, (1, 2, 3, 4)), 3: (1, (1, 2)), 4: (2, (1, 2)), 12: (5, (1, 2, 3, 4)),
    17: (5, (1, 2, 3, 4)), 67: (49, (1, 2)),
}  # fmt: skip
"""Pools and convolutions: which options they need, and where strides and windows are.

Interpreters take missing ones for 0, and divide by them.
"""
_PADDINGS = 2
_OPTIONAL = frozenset({_CUSTOM, 16, 24, 27, 35, 44, 46, 52})
"""Those that may go without their second input, too: recurrent ones."""


class Bytes(Protocol):
    """What a file is read from: ``bytes`` or a map of it."""

    def __len__(self) -> int: ...
    def __getitem__(self, place: slice, /) -> bytes: ...


class Damaged(Exception):  # noqa: N818 - reads as what it says of the file
    """An offset, length or index that the file does not hold."""


@dataclass
class Budget:
    """How many elements may still be read."""

    left: int = MAX_READS

    def spend(self, count: int) -> None:
        """Take so many.

        Raises:
            Damaged: there are not so many left.
        """
        self.left -= count
        if self.left < 0:
            raise Damaged(f"reading it takes more than {MAX_READS} elements")


class Table:
    """A FlatBuffers table: fields by number, each read checked against the file."""

    def __init__(self, data: Bytes, at: int, budget: Budget) -> None:
        self._data, self._at, self._budget = data, at, budget
        self._vtable = at - number(data, "<i", at)
        size = number(data, "<H", self._vtable)
        inline = number(data, "<H", self._vtable + 2)
        if size < 4 or self._vtable + size > len(data) or at + inline > len(data):
            raise Damaged(f"a table of {size} and {inline} bytes at byte {at}")
        self._fields, self._inline = (size - 4) // 2, inline

    def _place(self, field: int) -> int:
        if field >= self._fields:
            return 0
        step = number(self._data, "<H", self._vtable + 4 + 2 * field)
        if step >= max(self._inline, 4):
            raise Damaged(f"a field beyond its table at byte {self._at}")
        return self._at + step if step else 0

    def scalar(self, field: int, form: str, default: int = 0) -> int:
        """A field as a little-endian number of struct format ``form``."""
        place = self._place(field)
        return number(self._data, "<" + form, place) if place else default

    def table(self, field: int) -> "Table | None":
        """A field as a table; None when it is absent."""
        place = self._place(field)
        return self._to(place) if place else None

    def tables(self, field: int) -> list["Table"]:
        """A field as a vector of tables."""
        start, count = self._vector(field, 4)
        return [self._to(start + 4 * place) for place in range(count)]

    def vector(self, field: int, form: str) -> tuple[Any, ...]:
        """A field as a vector of numbers."""
        start, count = self._vector(field, struct.calcsize("<" + form))
        form = f"<{count}{form}"
        return struct.unpack(form, self._data[start : start + struct.calcsize(form)])

    def text(self, field: int) -> str:
        """A field as text; "" when it is absent."""
        start, count = self._vector(field, 1)
        return self._data[start : start + count].decode("utf-8", "replace")

    def extent(self, field: int) -> int:
        """How many bytes a field holds that is a vector of bytes, of any length."""
        place = self._place(field)
        if not place:
            return 0
        start = self._jump(place)
        count = number(self._data, "<I", start)
        if start + 4 + count > len(self._data):
            raise Damaged(f"{count} bytes of data at byte {start}")
        return count

    def _to(self, place: int) -> "Table":
        return Table(self._data, self._jump(place), self._budget)

    def _jump(self, place: int) -> int:
        return place + number(self._data, "<I", place)

    def _vector(self, field: int, width: int) -> tuple[int, int]:
        place = self._place(field)
        if not place:
            return 0, 0
        start = self._jump(place)
        count = number(self._data, "<I", start)
        if count > MAX_ITEMS or start + 4 + count * width > len(self._data):
            raise Damaged(f"a vector of {count} elements at byte {start}")
        self._budget.spend(count + 1)
        return start + 4, count


def number(data: Bytes, form: str, at: int) -> int:
    """One number at a byte.

    Raises:
        Damaged: the file ends before it.
    """
    width = struct.calcsize(form)
    if not 0 <= at <= len(data) - width:
        raise Damaged(f"it points to byte {at} of {len(data)}")
    value: int = struct.unpack(form, data[at : at + width])[0]
    return value


def root(data: Bytes) -> Table:
    """The table of the whole model.

    Raises:
        Damaged: this is no TensorFlow Lite file.
    """
    if data[4:8] != IDENTIFIER:
        raise Damaged("no TFL3 at byte 4")
    return Table(data, number(data, "<I", 0), Budget())


def verify(data: Bytes, name: str) -> None:
    """Nothing, when an interpreter can open the file without leaving its bounds.

    Raises:
        ArtifactError: it is no TensorFlow Lite file, or damaged; one line.
    """
    try:
        model = root(data)
        buffers = [_buffer_bytes(data, one) for one in model.tables(4)]
        codes = [_code(one) for one in model.tables(1)]
        graphs = model.tables(2)
        if not graphs:
            raise Damaged("it has no subgraph")
        counts = [_graph(graph, codes, buffers) for graph in graphs]
        _names(model, counts)
    except (Damaged, struct.error) as error:
        raise ArtifactError(f"{name} is not a sound .tflite file: {error}") from error


def _buffer_bytes(data: Bytes, buffer: Table) -> int:
    """Bytes of constant data, inside the tables or (large models) after them."""
    inside, start, size = buffer.extent(0), buffer.scalar(1, "Q"), buffer.scalar(2, "Q")
    if start > 1 and start + size > len(data):
        raise Damaged(f"{size} bytes of data at byte {start}")
    return size if start > 1 else inside


def _code(table: Table) -> int:
    table.text(1)
    found = max(table.scalar(0, "b"), table.scalar(3, "i"))
    if found < 0:
        raise Damaged(f"operator code {found}")
    return found


def _graph(graph: Table, codes: list[int], buffers: list[int]) -> int:
    """Check one subgraph; gives how many tensors it has."""
    tensors = graph.tables(0)
    for tensor in tensors:
        _tensor(tensor, buffers)
    count = len(tensors)
    inputs, outputs = graph.vector(1, "i"), graph.vector(2, "i")
    _within((*inputs, *outputs), count, 0, "tensor")
    graph.text(4)
    if any(0 in tensors[place].vector(0, "i") for place in inputs):
        raise Damaged("an input of no size")
    ready = set(inputs)
    ready |= {place for place in range(count) if _holds(tensors[place], buffers)}
    for operator in graph.tables(3):
        _operator(operator, codes, count)
        _ready(operator.vector(1, "i"), ready)
        ready.update(operator.vector(2, "i"))
    _ready(outputs, ready)
    return count


def _holds(tensor: Table, buffers: list[int]) -> bool:
    """Whether a tensor has a value before anything runs: constant, variable, empty."""
    return bool(
        buffers[tensor.scalar(2, "I")]
        or tensor.scalar(5, "B")
        or 0 in tensor.vector(0, "i")
    )


def _ready(needed: Sequence[int], ready: set[int]) -> None:
    for place in needed:
        if place >= 0 and place not in ready:
            raise Damaged(f"tensor {place} is read before anything computes it")


def _tensor(tensor: Table, buffers: list[int]) -> None:
    name, shape = tensor.text(3), tensor.vector(0, "i")
    kind, buffer = tensor.scalar(1, "b"), tensor.scalar(2, "I")
    tensor.vector(7, "i")
    if len(shape) > MAX_RANK or any(size < 0 for size in shape):
        raise Damaged(f"tensor {name!r} has shape {list(shape)}")
    _within([buffer], len(buffers), 0, "buffer")
    held, width = buffers[buffer], WIDTHS.get(kind)
    sparse = tensor.table(6) is not None
    if held and width is not None and not sparse and held < prod(shape) * width:
        raise Damaged(
            f"tensor {name!r} of shape {list(shape)} has {held} bytes of data"
        )
    quantization = tensor.table(4)
    if quantization is not None:
        _quantization(quantization, name)


def _quantization(table: Table, name: str) -> None:
    for field in (0, 1):
        table.vector(field, "f")
    scales, zeros = len(table.vector(2, "f")), len(table.vector(3, "q"))
    if scales and zeros not in (0, 1, scales):
        raise Damaged(f"tensor {name!r}: {scales} scales, {zeros} zero points")


def _operator(operator: Table, codes: list[int], tensors: int) -> None:
    index = operator.scalar(0, "I")
    _within([index], len(codes), 0, "operator code")
    inputs, outputs = operator.vector(1, "i"), operator.vector(2, "i")
    optional = -1 if codes[index] in _OPTIONAL else 0
    _within(inputs[:2], tensors, optional, "tensor")
    _within(inputs[2:], tensors, -1, "tensor")  # -1: it is left out, as a bias may be
    _within(outputs, tensors, 0, "tensor")
    _within(operator.vector(8, "i"), tensors, -1, "tensor")
    if inputs and inputs[0] < 0:
        raise Damaged("an operator without its first input")
    _options(operator, codes[index])
    if codes[index] == _CUSTOM:
        operator.extent(5)


def _options(operator: Table, code: int) -> None:
    options = operator.table(4)
    if options is not None and code in _LISTS:
        options.vector(_LISTS[code], "i")
    if code not in _STEPS:
        return
    kind, fields = _STEPS[code]
    if options is None or operator.scalar(3, "B") != kind:
        raise Damaged(f"operator {code} without its options")
    if not 0 <= options.scalar(0, "b") < _PADDINGS:
        raise Damaged(f"padding {options.scalar(0, 'b')}")
    for field in fields:
        if options.scalar(field, "i") < 1:
            raise Damaged(f"a stride or window of {options.scalar(field, 'i')}")


def _names(model: Table, tensors: list[int]) -> None:
    """The signatures: names for inputs and outputs."""
    model.text(3)
    for metadata in model.tables(6):
        metadata.text(0)
    for signature in model.tables(7):
        graph = signature.scalar(4, "I")
        _within([graph], len(tensors), 0, "subgraph")
        signature.text(2)
        for field in (0, 1):
            for named in signature.tables(field):
                named.text(0)
                _within([named.scalar(1, "I")], tensors[graph], 0, "tensor")


def _within(found: Sequence[int], count: int, least: int, what: str) -> None:
    for index in found:
        if not least <= index < count:
            raise Damaged(f"{what} {index} of {count}")
