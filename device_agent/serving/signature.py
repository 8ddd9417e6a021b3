"""What requests to one model are checked against, taken apart once."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..contract.tensors import TensorSpec

_TYPECODES = {
    "BOOL": "b", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q",
    "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q",
    "FP16": "d", "FP32": "f", "FP64": "d",
}  # fmt: skip
"""array.array refuses what does not fit these, element by element, in C."""
_JSON_BYTES = 32
"""Bytes that one value may take in JSON: digits, exponent, separators, indentation."""
_ENVELOPE_BYTES = 64 << 10
"""Bytes that names, parameters and the rest of a request may take."""


@dataclass(frozen=True, slots=True)
class Slot:
    """An input as requests are checked against it."""

    name: str
    datatype: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    typecode: str


class Signature:
    """What requests to one model are checked against."""

    def __init__(
        self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec],
        batches: bool, max_rows: int,
    ) -> None:  # fmt: skip
        self.inputs = {spec.name: _slot(spec) for spec in inputs}
        self.outputs = {spec.name: spec.datatype for spec in outputs}
        self.batches = batches
        self.max_rows = max_rows
        self.values = self._most_values()
        """Values in the largest right request; None: the shapes do not say."""
        self.answer_bytes = sum(
            prod(max(size, 1) for size in spec.shape) * spec.dtype.itemsize
            for spec in outputs
        )
        """The outputs of one row, variable dimensions taken as 1."""

    def body_bytes(self, limit_bytes: int) -> int:
        """The largest body that can be a right one, at most ``limit_bytes``."""
        if self.values is None:
            return limit_bytes
        return min(limit_bytes, self.values * _JSON_BYTES + _ENVELOPE_BYTES)

    def _most_values(self) -> int | None:
        values = 0
        for slot in self.inputs.values():
            shape = slot.shape[1:] if self.batches else slot.shape
            if -1 in shape:
                return None
            values += prod(shape) * (self.max_rows if self.batches else 1)
        return values


def _slot(spec: TensorSpec) -> Slot:
    return Slot(
        spec.name, spec.datatype, spec.dtype, spec.shape, _TYPECODES[spec.datatype],
    )  # fmt: skip
