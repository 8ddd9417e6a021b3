"""Tensors by name: what goes into a model and what comes out.

The datatypes are those of the Open Inference Protocol v2.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Array = NDArray[Any]
Feeds = Mapping[str, Array]
"""One run of a model: input name → array, the batch dimension included."""

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64",
    "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64",
]  # fmt: skip

_NUMPY: dict[str, str] = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32",
    "UINT64": "uint64", "INT8": "int8", "INT16": "int16", "INT32": "int32",
    "INT64": "int64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip
_OIP = {name: datatype for datatype, name in _NUMPY.items()}

Dimension = Annotated[int, Field(ge=-1, le=2**31 - 1)]


class TensorSpec(BaseModel):
    """Name, datatype and shape of one input or output; -1 is a variable dimension."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: Annotated[str, Field(min_length=1, max_length=512)]
    datatype: Datatype
    shape: Annotated[tuple[Dimension, ...], Field(max_length=16)]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype of the tensor."""
        return np.dtype(_NUMPY[self.datatype])

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of ``shape`` fits, variable dimensions taken as any."""
        return fits(self.shape, shape)


def fits(declared: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether ``shape`` is the one declared, -1 standing for any size."""
    return declared == shape or (
        len(declared) == len(shape)
        and all(want in (-1, got) for want, got in zip(declared, shape, strict=True))
    )


def datatype_of(dtype: np.dtype[Any]) -> Datatype:
    """The protocol's word for a numpy dtype.

    Raises:
        ValueError: the dtype (object, str, complex, …) has no such word.
    """
    try:
        return _OIP[dtype.name]  # type: ignore[return-value]
    except KeyError:
        raise ValueError(
            f"no tensor datatype for numpy {dtype.name}; expected one of "
            + ", ".join(_NUMPY.values())
        ) from None
