"""What people send, as raw samples: image, sound, CSV, JSON, or a form with these.

The rules it keeps:

1. A Content-Type that names a kind is believed; ``curl -T`` sends none and
   ``--data-binary`` a wrong one, so else the first bytes decide.
2. Limits come before memory: bytes of text and rows are known before anything is
   unpacked; files are not opened here.
3. A sample is what the model's preprocessing takes. Only where there is none may
   samples come as one array with a batch dimension.
"""

import base64
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, Self

import numpy as np

from ..contract import image
from ..contract.image import DecodeImage
from ..contract.steps import DecodeStep
from ..contract.tensors import Array, TensorSpec
from ..errors import RequestError, TooLargeError
from ..serving.served import Served
from . import codec
from .form import Part, read_form
from .table import array_of, read_csv

JSON_BYTES_MAX = 4 << 20
"""Bytes of one JSON document; as Python numbers it takes 10 times that."""
EXPECTED = "an image (JPEG, PNG, BMP, WEBP), a wav file, CSV or JSON"

Value = Array | bytes
"""Numbers, or a file that the model's first step decodes."""
Sample = Mapping[str, Value]
"""Input name → value."""
Kind = Literal["file", "csv", "json", "form"]
Wrap = Literal["one", "rows", "predictions"]


@dataclass(frozen=True)
class Samples:
    """What was asked; ``wrap`` is how the answers are put together."""

    wrap: Wrap
    items: tuple[Sample, ...]


@dataclass(frozen=True)
class Reader:
    """Reads bodies for one model."""

    name: str
    inputs: Mapping[str, TensorSpec]
    main: str
    """The input that the steps make."""
    decoder: DecodeStep | None
    """The first step, where it takes files."""
    picture: bool
    """Whether the first step takes an image's levels, ``[height, width, …]``."""
    steps: int
    max_rows: int

    @classmethod
    def of(cls, served: Served) -> Self:
        """The one for a served version."""
        steps = served.loaded.preprocess.steps
        return cls(
            name=served.name,
            inputs={spec.name: spec for spec in served.inputs},
            main=served.manifest.preprocess_input or served.inputs[0].name,
            decoder=steps[0] if steps and isinstance(steps[0], DecodeStep) else None,
            picture=bool(steps) and isinstance(steps[0], image.STEPS),
            steps=len(steps),
            max_rows=served.config.max_rows,
        )

    def read(self, body: bytes, content_type: str) -> Samples:
        """The samples in a body.

        Raises:
            RequestError: it is not understood, or is not for this model.
            TooLargeError: more bytes or rows than allowed.
        """
        kind = kind_of(body, content_type)
        if kind == "form":
            return self._form(read_form(body, content_type))
        if kind == "json":
            return self._document(_json(body))
        if kind == "csv":
            return self._table(body)
        return Samples("one", ({self.main: self._file(body)},))

    def _form(self, parts: list[Part]) -> Samples:
        """One part is a body of its own; of several, each is an input by its name.

        One of them may have another name: it is the main input (``file=@photo.jpg``).
        """
        if len(parts) == 1 and "multipart" not in parts[0].content_type:
            return self.read(parts[0].body, parts[0].content_type)
        sample: dict[str, Value] = {}
        for part in parts:
            name = part.name if part.name in self.inputs else self.main
            if name in sample:
                raise RequestError(
                    f"form: {reprlib.repr(part.name)} would be input {name!r} a "
                    f"second time; the model takes {self._names()}"
                )
            if kind_of(part.body, part.content_type) == "file":
                sample[name] = self._file(part.body)
            else:
                sample[name] = self._value(_json(part.body), name)
        return Samples("one", (sample,))

    def _file(self, body: bytes) -> bytes:
        if self.decoder is None:
            raise RequestError(
                f"{self.name} takes numbers and no files; "
                f"send CSV or JSON for {self._names()}"
            )
        return body

    def _document(self, document: Any) -> Samples:
        if not isinstance(document, dict) or document.keys() == {"b64"}:
            return self._split({self.main: self._value(document, self.main)})
        if document.keys() == {"instances"}:
            return self._instances(document["instances"])
        if document.keys() == {"inputs"}:
            return self._inputs(document["inputs"])
        raise RequestError(
            'expected a list, {"inputs": {name: values}} or {"instances": [...]}; '
            f"found an object with {reprlib.repr(sorted(document))}"
        )

    def _instances(self, items: Any) -> Samples:
        if not isinstance(items, list) or not items:
            raise RequestError(
                f"instances: expected a list of samples, found {reprlib.repr(items)}"
            )
        self._check_rows(len(items))
        return Samples("predictions", tuple(map(self._instance, items)))

    def _instance(self, item: Any) -> Sample:
        if isinstance(item, dict) and item.keys() != {"b64"}:
            return {name: self._value(value, name) for name, value in item.items()}
        return {self.main: self._value(item, self.main)}

    def _inputs(self, inputs: Any) -> Samples:
        if not isinstance(inputs, dict):
            raise RequestError(
                "inputs: expected an object, input name → values; requests of the "
                f"inference protocol go to /v2/models/{self.name}/infer"
            )
        return self._split(
            {name: self._value(value, name) for name, value in inputs.items()}
        )

    def _split(self, sample: Sample) -> Samples:
        """As many samples as every array has rows, where no step comes before."""
        arrays = {
            name: value
            for name, value in sample.items()
            if not self.steps and not isinstance(value, bytes)
            if self._has_rows(name, value)
        }
        counts = {len(value) for value in arrays.values()}
        if len(arrays) != len(sample) or len(counts) != 1 or counts == {1}:
            return Samples("one", (sample,))
        rows = counts.pop()
        self._check_rows(rows)
        items = [
            {name: array[row : row + 1] for name, array in arrays.items()}
            for row in range(rows)
        ]
        return Samples("rows", tuple(items))

    def _has_rows(self, name: str, array: Array) -> bool:
        """Whether the first dimension is the batch: variable, or one sample's 1."""
        spec = self.inputs.get(name)
        return (
            spec is not None
            and array.ndim == len(spec.shape) > 0
            and spec.shape[0] in (-1, 1)
        )

    def _value(self, value: Any, name: str) -> Value:
        """JSON as an array; ``{"b64": text}`` as the bytes of a file."""
        if isinstance(value, dict) and value.keys() == {"b64"}:
            return self._file(_base64(value["b64"], name))
        array = array_of(value, f"input {name!r}")
        if name != self.main or not isinstance(self.decoder, DecodeImage):
            return array
        # JSON knows no bytes: whole numbers from 0 to 255 are an image's levels
        levels = array.dtype.kind == "i" and array.min() >= 0 and array.max() <= 255
        return array.astype(np.uint8) if levels else array

    def _table(self, body: bytes) -> Samples:
        """A line is a sample, but where all lines together are what is taken."""
        if len(self.inputs) > 1:
            raise RequestError(
                f"CSV is for models with one input; {self.name} takes "
                f'{self._names()}: send {{"inputs": {{name: values}}}}'
            )
        shape = self.inputs[self.main].shape[1:]
        table = read_csv(body, self._lines_max(shape, len(body)))
        if self.picture or _fits(table.shape, shape):
            return Samples("one", ({self.main: table},))
        self._check_rows(len(table))
        if not self.steps and -1 not in shape and prod(shape) == table.shape[1]:
            table = table.reshape(-1, *shape)
        wrap: Wrap = "one" if len(table) == 1 else "rows"
        items = [{self.main: np.asarray(line)} for line in table]
        return Samples(wrap, tuple(items))

    def _lines_max(self, shape: tuple[int, ...], size_bytes: int) -> int:
        if self.picture or (len(shape) == 2 and shape[0] == -1):
            return size_bytes
        return max(self.max_rows, shape[0] if len(shape) == 2 else 0)

    def _check_rows(self, rows: int) -> None:
        if rows > self.max_rows:
            raise TooLargeError(
                f"{rows} rows; at most {self.max_rows} in one request (max_rows)"
            )

    def _names(self) -> str:
        return ", ".join(map(repr, self.inputs))


def kind_of(body: bytes, content_type: str) -> Kind:
    """What a body is, by its Content-Type or its first bytes.

    Raises:
        RequestError: it is none of what is taken.
    """
    word = content_type.partition(";")[0].strip().lower()
    if word == "multipart/form-data":
        return "form"
    if not body:
        raise RequestError(f"the body is empty; expected {EXPECTED}")
    if word in ("text/csv", "application/csv"):
        return "csv"
    if word in ("application/json", "text/json") or word.endswith("+json"):
        return "json"
    if word.startswith(("image/", "audio/")) or _is_file(body):
        return "file"
    head = body[:256].lstrip(b"\xef\xbb\xbf \t\r\n")
    if head[:1] in (b"[", b"{"):
        return "json"
    if head and all(byte >= 32 or byte in b"\t\r\n" for byte in head):
        return "csv"
    raise RequestError(f"expected {EXPECTED}; found bytes that begin {body[:8]!r}")


def _is_file(body: bytes) -> bool:
    if body[:4] == b"RIFF":
        return body[8:12] in (b"WEBP", b"WAVE")
    return body.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"P5", b"P6"))


def _fits(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(found) == len(wanted) and all(
        want in (-1, got) for want, got in zip(wanted, found, strict=True)
    )


def _json(body: bytes) -> Any:
    if len(body) > JSON_BYTES_MAX:
        raise TooLargeError(
            f"{len(body)} bytes of JSON; at most {JSON_BYTES_MAX}. "
            "Larger tensors go as binary data to /v2/models/…/infer"
        )
    return codec.loads(body)


def _base64(text: Any, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError) as error:  # binascii.Error is a ValueError
        raise RequestError(f"input {name!r}: b64 is not base64: {error}") from error
