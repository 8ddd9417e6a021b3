"""A step: a name, checked parameters, and one function of arrays.

The rules it keeps:

1. A step is written as a single-key mapping of JSON values, ``{"resize": [96, 96]}``.
   A bare value fills the step's ``shorthand`` field; ``true`` means all defaults.
2. Parameters are checked when they are read; data is checked when it is run.
   Both end in ``StepError`` and nothing else.
3. A step is a value: frozen, comparable, and ``written`` gives back its mapping.
4. Every size that a parameter or a body can ask for has a limit named here.
"""

import json
from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import StepError
from .tensors import Array

BODY_BYTES_MAX = 64 << 20
"""Bytes of one encoded image or wav file."""
ELEMENTS_MAX = 1 << 27
"""Elements of one array, before, between and after the steps."""
SIDE_PIXELS_MAX = 8192
"""Pixels on one side of an image that a step makes."""
LIST_LENGTH_MAX = 16_384
"""Items in one list parameter (means, columns, priors)."""

Side = Annotated[int, Field(ge=1, le=SIDE_PIXELS_MAX)]
Size = tuple[Side, Side]
"""Height, width."""
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Numbers = Annotated[tuple[Finite, ...], Field(min_length=1, max_length=LIST_LENGTH_MAX)]
Positives = Annotated[
    tuple[Positive, ...], Field(min_length=1, max_length=LIST_LENGTH_MAX)
]


class Step(BaseModel, ABC):
    """Parameters of one step; subclasses say what it does with data."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    word: ClassVar[str]
    """Its name in recipes and manifests."""
    shorthand: ClassVar[str | None] = None
    """The field that a bare value fills."""
    usage: ClassVar[str]
    """What its value looks like, for people whose value was refused."""

    @classmethod
    def read(cls, value: object) -> Self:
        """The step from the value beside its name.

        Raises:
            StepError: the value is not JSON or not what the step takes; the text
                names every wrong parameter and what is expected.
        """
        if value is True:
            value = {}
        elif not isinstance(value, dict) and cls.shorthand:
            value = {cls.shorthand: value}
        try:
            return cls.model_validate_json(json.dumps(value, allow_nan=False))
        except ValidationError as error:
            wrong = "; ".join(cls._reason(item) for item in error.errors())
            raise StepError(f"{cls.word}: {wrong}. Expected {cls.usage}") from error
        except (TypeError, ValueError, RecursionError) as error:
            raise StepError(
                f"{cls.word}: not a JSON value ({error}). Expected {cls.usage}"
            ) from error

    @classmethod
    def _reason(cls, item: Any) -> str:
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            known = ", ".join(cls.model_fields) or "none"
            return f"unknown parameter {where!r} (known: {known})"
        if item["type"] == "value_error":
            return str(item["ctx"]["error"])
        return f"{where}: {item['msg']}" if where else item["msg"]

    def written(self) -> dict[str, Any]:
        """The single-key mapping that parses to this step, every parameter stated."""
        return {self.word: self.model_dump(mode="json")}


class ArrayStep(Step):
    """Array in, array out."""

    @abstractmethod
    def __call__(self, array: Array) -> Array:
        """Run the step.

        Raises:
            StepError: the array's rank, shape or dtype is not one the step takes.
        """


class DecodeStep(Step):
    """Bytes of a file in, array out."""

    @abstractmethod
    def decode(self, body: bytes) -> Array:
        """The array that the file holds.

        Raises:
            StepError: damaged, of another kind, or over a limit.
        """

    @abstractmethod
    def admit(self, array: Array) -> Array:
        """Pass on an array that already is what ``decode`` would give.

        A data set may hold decoded samples where a device receives files.

        Raises:
            StepError: it is not.
        """


def check_rank(array: Array, ranks: tuple[int, ...], words: str) -> None:
    """Refuse another rank.

    Raises:
        StepError: the rank is not among ``ranks``; ``words`` says what is expected.
    """
    if array.ndim not in ranks:
        raise StepError(f"expected {words}, found shape {list(array.shape)}")


def check_elements(count: int) -> None:
    """Refuse an array over the limit before it is made.

    Raises:
        StepError: over ``ELEMENTS_MAX``.
    """
    if count > ELEMENTS_MAX:
        raise StepError(f"{count} elements; at most {ELEMENTS_MAX} allowed")


def check_body(body: bytes) -> None:
    """Refuse an encoded file over the limit.

    Raises:
        StepError: over ``BODY_BYTES_MAX``.
    """
    if len(body) > BODY_BYTES_MAX:
        raise StepError(f"{len(body)} bytes; at most {BODY_BYTES_MAX} allowed")


def check_finite(array: Array, what: str) -> None:
    """Refuse NaN and infinities.

    Raises:
        StepError: says how many there are and where the first one is.
    """
    if array.dtype.kind != "f":
        return
    wrong = ~np.isfinite(array)
    if wrong.any():
        first = [int(i) for i in np.unravel_index(int(np.argmax(wrong)), array.shape)]
        raise StepError(
            f"{what} holds {int(wrong.sum())} NaN or infinite values, "
            f"the first at {first}; expected finite numbers"
        )


def as_float(array: Array) -> Array:
    """Floats wide enough: float32 for up to 16 bits, else float64."""
    return array.astype(np.result_type(array.dtype, np.float32), copy=False)
