"""Open Inference Protocol v2: infer requests into arrays, outputs into answers.

The rules it keeps:

1. A request is right or refused with one sentence: what was expected, what came.
2. JSON values are taken exactly: no text for numbers, no fractions for integers, no
   value that the datatype cannot hold.
3. Binary tensors follow the JSON in the order of the inputs, little endian, sizes
   as the shapes say.
4. The arrays own their memory, aligned and contiguous.

References:
    Open Inference Protocol v2, REST; Triton's extensions ``binary_tensor_data`` and
    its parameters ``timeout`` (microseconds) and ``binary_data_output``.
"""

import reprlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any

import numpy as np

from ..contract.tensors import Array
from ..errors import RequestError, TooLargeError
from ..serving.signature import Signature, Slot
from . import codec

Bytes = bytes | bytearray | memoryview
_WIDE_BYTES = 1 << 20
"""JSON of fewer bytes cannot hold so many values that it matters."""
_VALUES_MAX = 1 << 20
"""Values in JSON for a model whose shapes do not say how many there may be."""
_NESTED_MAX = 1 << 18
_ENVELOPE_VALUES = 4096
"""Names, parameters and the like."""
_LETTERS_MAX = 64
_FEW = 64
_LARGEST = {2: 65520.0, 4: 2.0**128 - 2.0**103, 8: float("inf")}
"""By itemsize: what is as large is rounded to infinity (largest and half a step)."""


@dataclass(slots=True)
class InferRequest:
    """A request that fits the model.

    ``outputs`` pairs the names asked for with whether they are wanted as binary data.
    """

    feeds: dict[str, Array]
    rows: int
    outputs: list[tuple[str, bool]]
    id: str | None = None
    timeout_s: float | None = None


def parse(
    body: bytes | bytearray, header_bytes: int | None, signature: Signature
) -> InferRequest:
    """Read an infer request.

    Args:
        body: the decompressed body.
        header_bytes: value of Inference-Header-Content-Length, None without one;
            0: the body is the one input's raw bytes.
        signature: of the model that is asked.

    Raises:
        RequestError: it is not a request, or does not fit the model.
    """
    if header_bytes == 0:
        return _raw(body, signature)
    if header_bytes is None:
        head, binary = body, memoryview(b"")
    elif header_bytes > len(body):
        raise RequestError(
            f"Inference-Header-Content-Length is {header_bytes}; "
            f"the body has {len(body)} bytes"
        )
    else:
        head, binary = body[:header_bytes], memoryview(body)[header_bytes:]
    if len(head) > _WIDE_BYTES:
        _check_width(head, signature)
    document = codec.loads(head)
    if type(document) is not dict:
        raise RequestError("expected a JSON object with inputs, found another value")
    feeds = _feeds(document.get("inputs"), binary, signature)
    _check_truths(head, document["inputs"], signature)
    name = document.get("id")
    if name is not None and not isinstance(name, str):
        raise RequestError(f"id: expected text, found {_word(name)}")
    parameters = _parameters(document, "the request")
    return InferRequest(
        feeds,
        _rows(feeds, signature),
        _wanted(document.get("outputs"), parameters, signature),
        name,
        _timeout_s(parameters),
    )


def build(
    request: InferRequest, outputs: Mapping[str, Array], name: str, version: str
) -> tuple[bytes, int | None]:
    """The answer's body, and the length of its JSON where binary data follows.

    Raises:
        UnwritableError: an output holds NaN or infinities and was asked for as JSON.
    """
    written: list[dict[str, Any]] = []
    blobs: list[memoryview] = []  # joined without a copy of each
    for wanted, binary in request.outputs:
        value = outputs[wanted]
        item: dict[str, Any] = {
            "name": wanted,
            "datatype": _word_of(value),
            "shape": list(value.shape),
        }
        if binary:
            item["parameters"] = {"binary_data_size": value.nbytes}
            blobs.append(np.ascontiguousarray(_little(value)).data)
        else:
            item["data"] = np.ascontiguousarray(value).reshape(-1)
        written.append(item)
    document: dict[str, Any] = {"model_name": name, "model_version": version}
    if request.id is not None:
        document["id"] = request.id
    document["outputs"] = written
    head = codec.dumps(document)
    if not blobs:
        return head, None
    return b"".join((head, *blobs)), len(head)


def _check_width(head: Bytes, signature: Signature) -> None:
    """Refuse JSON of more values than any right request has.

    A value takes two bytes on the wire and sixty in memory.
    """
    values, nested = 1, 0
    signs = np.frombuffer(head, np.uint8)
    for start in range(0, len(signs), _WIDE_BYTES):
        part = signs[start : start + _WIDE_BYTES]
        values += int(np.count_nonzero(part == ord(",")))
        nested += int(np.count_nonzero((part == ord("[")) | (part == ord("{"))))
    most = signature.values
    most_values = _VALUES_MAX if most is None else most + _ENVELOPE_VALUES
    if values > most_values or nested > min(most_values, _NESTED_MAX):
        raise TooLargeError(
            f"the JSON has {values} values in {nested} lists; at most {most_values} in "
            f"{min(most_values, _NESTED_MAX)}; send large tensors as binary data"
        )


def _feeds(inputs: Any, binary: memoryview, signature: Signature) -> dict[str, Array]:
    if type(inputs) is not list or not inputs:
        raise RequestError(
            f"inputs: expected a list of {_names(signature.inputs)}, "
            f"found {_word(inputs)}"
        )
    feeds: dict[str, Array] = {}
    at = 0
    for item in inputs:
        if type(item) is not dict:
            raise RequestError(f"inputs: expected objects, found {_word(item)}")
        name = item.get("name")
        slot = signature.inputs.get(name) if isinstance(name, str) else None
        if slot is None:
            raise RequestError(
                f"there is no input {_word(name)}; "
                f"the model takes {_names(signature.inputs)}"
            )
        if slot.name in feeds:
            raise RequestError(f"input {slot.name!r} is there twice")
        shape = _shape(item, slot)
        parameters = _parameters(item, f"input {slot.name!r}")
        if "binary_data_size" in parameters:
            size = _size(item, parameters, slot, shape)
            if size > len(binary) - at:
                raise RequestError(
                    f"input {slot.name!r}: binary_data_size is {size}; "
                    f"{len(binary) - at} bytes are left in the body"
                )
            feeds[slot.name] = _from_bytes(binary[at : at + size], slot, shape)
            at += size
        else:
            feeds[slot.name] = _from_json(item.get("data"), slot, shape)
    if len(feeds) < len(signature.inputs):
        missing = [name for name in signature.inputs if name not in feeds]
        raise RequestError(f"input {_names(missing)} is missing")
    if at != len(binary):
        raise RequestError(
            f"{len(binary) - at} bytes follow the tensors; binary_data_size of the "
            "inputs and Inference-Header-Content-Length must cover the body"
        )
    return feeds


def _shape(item: Mapping[str, Any], slot: Slot) -> tuple[int, ...]:
    datatype = item.get("datatype")
    if datatype != slot.datatype:
        raise RequestError(
            f"input {slot.name!r}: expected datatype {slot.datatype}, "
            f"found {_word(datatype)}"
        )
    given = item.get("shape")
    if type(given) is list and len(given) == len(slot.shape):
        for want, got in zip(slot.shape, given, strict=True):
            if type(got) is not int or got < 1 or (want != got and want != -1):
                break
        else:
            return tuple(given)
    raise RequestError(
        f"input {slot.name!r}: expected shape {list(slot.shape)} (-1: any from 1), "
        f"found {_word(given)}"
    )


def _from_json(data: Any, slot: Slot, shape: tuple[int, ...]) -> Array:
    if type(data) is not list:
        raise RequestError(
            f"input {slot.name!r}: expected data (a list) or a binary_data_size, "
            f"found {_word(data)}"
        )
    if data and type(data[0]) is list:
        data = _flat(data, slot, shape)
    if len(data) != prod(shape):
        raise RequestError(
            f"input {slot.name!r}: shape {list(shape)} takes {prod(shape)} values, "
            f"found {len(data)}"
        )
    try:
        values = np.frombuffer(array(slot.typecode, data), slot.typecode)
    except (TypeError, OverflowError) as error:
        raise RequestError(
            f"input {slot.name!r}: a value is no {slot.datatype}: {error}"
        ) from error
    if slot.dtype.kind == "b":
        values = values.astype(slot.dtype)
    elif slot.dtype.kind == "f":
        if slot.typecode == "d" and slot.dtype.itemsize == 2:
            with np.errstate(over="ignore"):
                values = values.astype(slot.dtype)
        if not _finite(values, data):
            raise RequestError(
                f"input {slot.name!r}: a value is beyond {slot.datatype}"
            )
    return values.reshape(shape)


def _finite(values: Array, data: list[Any]) -> bool:
    """Whether no value became infinite on its way from JSON (which has none)."""
    if len(data) <= _FEW:  # numpy takes longer to begin than Python to look
        limit = _LARGEST[values.dtype.itemsize]
        return bool(-limit < min(data) and max(data) < limit)
    return bool(np.isfinite(values).all())


def _check_truths(
    head: bytes | bytearray, inputs: list[Any], signature: Signature
) -> None:
    """Booleans are numbers to Python and so to ``array``; to the protocol they are not.

    The JSON is searched first: most requests hold no such word.
    """
    spoken = _holds(head, b"true", 2) or _holds(head, b"false", 3)
    for item in inputs:
        slot = signature.inputs[item["name"]]
        boolean = slot.dtype.kind == "b"
        if not (spoken or boolean) or "data" not in item:
            continue
        for value in _leaves(item["data"]):
            if (type(value) is bool) is not boolean:
                raise RequestError(
                    f"input {slot.name!r}: a value is no {slot.datatype}: {value!r}"
                )


def _holds(head: bytes | bytearray, word: bytes, at: int) -> bool:
    """Whether ``word`` is in ``head``, looked for by its letter ``at``.

    Numbers do not have that letter, and one letter is found twenty times as fast.
    """
    letter = word[at : at + 1]
    found = head.find(letter)
    for _ in range(_LETTERS_MAX):
        if found < 0:
            return False
        if head.startswith(word, max(found - at, 0)):
            return True
        found = head.find(letter, found + 1)
    return word in head


def _leaves(data: list[Any]) -> Iterator[Any]:
    for value in data:
        if type(value) is list:
            yield from _leaves(value)
        else:
            yield value


def _flat(data: list[Any], slot: Slot, shape: tuple[int, ...]) -> list[Any]:
    """Nested rows as one list; every level as long as the shape says."""
    expected = shape[0]
    for length in shape[1:]:
        if len(data) != expected or not all(
            type(row) is list and len(row) == length for row in data
        ):
            raise RequestError(
                f"input {slot.name!r}: the nested data is not of shape {list(shape)}"
            )
        data = list(chain.from_iterable(data))
        expected *= length
        if data and type(data[0]) is not list:
            break
    return data


def _size(
    item: Mapping[str, Any], parameters: Mapping[str, Any], slot: Slot,
    shape: tuple[int, ...],
) -> int:  # fmt: skip
    size = parameters["binary_data_size"]
    if "data" in item:
        raise RequestError(f"input {slot.name!r} has both data and binary_data_size")
    wanted = prod(shape) * slot.dtype.itemsize
    if type(size) is not int or size != wanted:
        raise RequestError(
            f"input {slot.name!r}: {slot.datatype} of shape {list(shape)} has {wanted} "
            f"bytes, binary_data_size is {_word(size)}"
        )
    return wanted


def _from_bytes(raw: Bytes, slot: Slot, shape: tuple[int, ...]) -> Array:
    if slot.dtype.kind == "b":
        return np.frombuffer(raw, np.uint8).astype(np.bool_).reshape(shape)
    little = slot.dtype.newbyteorder("<")
    return np.frombuffer(raw, little).astype(slot.dtype).reshape(shape)


def _raw(body: Bytes, signature: Signature) -> InferRequest:
    if len(signature.inputs) != 1:
        raise RequestError(
            "a raw body (Inference-Header-Content-Length: 0) needs a model with one "
            f"input; this one takes {_names(signature.inputs)}"
        )
    (slot,) = signature.inputs.values()
    shape = list(slot.shape)
    known = prod(size for size in shape if size != -1) * slot.dtype.itemsize
    if shape.count(-1) > 1:
        raise RequestError(f"the shape {shape} cannot be told from a raw body")
    if -1 in shape and known and body and len(body) % known == 0:
        shape[shape.index(-1)] = len(body) // known
    elif -1 in shape or len(body) != known:
        raise RequestError(
            f"a raw body for {slot.datatype} {shape} has {known} bytes"
            + (" times the variable dimension" if -1 in shape else "")
            + f"; found {len(body)}"
        )
    feeds = {slot.name: _from_bytes(body, slot, tuple(shape))}
    # whoever sends raw bytes has no JSON to read, so the answer is binary too
    wanted = [(name, True) for name in signature.outputs]
    return InferRequest(feeds, _rows(feeds, signature), wanted)


def _rows(feeds: Mapping[str, Array], signature: Signature) -> int:
    if not signature.batches:
        return 1
    sizes = {len(value) for value in feeds.values()}
    if len(sizes) != 1:
        raise RequestError(f"the inputs have {sorted(sizes)} rows; expected as many")
    (rows,) = sizes
    if rows > signature.max_rows:
        raise TooLargeError(
            f"the request has {rows} rows; at most {signature.max_rows} (max_rows)"
        )
    return rows


def _wanted(
    outputs: Any, parameters: Mapping[str, Any], signature: Signature
) -> list[tuple[str, bool]]:
    default = _flag(parameters, "binary_data_output", "the request")
    if outputs is None or outputs == []:
        return [(name, default) for name in signature.outputs]
    if type(outputs) is not list:
        raise RequestError(f"outputs: expected a list, found {_word(outputs)}")
    wanted: dict[str, bool] = {}
    for item in outputs:
        name = item.get("name") if type(item) is dict else item
        if (
            type(item) is not dict
            or type(name) is not str
            or name not in signature.outputs
        ):
            raise RequestError(
                f"there is no output {_word(name)}; "
                f"the model gives {_names(signature.outputs)}"
            )
        if name in wanted:
            raise RequestError(f"output {name!r} is asked for twice")
        own = _parameters(item, f"output {name!r}")
        if own.get("classification"):
            raise RequestError(
                f"output {name!r}: the classification extension is not offered; "
                "ask /v1/models/…/predict for labels"
            )
        binary = "binary_data" in own
        wanted[name] = _flag(own, "binary_data", name) if binary else default
    return list(wanted.items())


def _parameters(item: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    found = item.get("parameters")
    if found is None:
        return {}
    if type(found) is not dict:
        raise RequestError(
            f"parameters of {where}: expected an object, found {_word(found)}"
        )
    return found


def _flag(parameters: Mapping[str, Any], key: str, where: str) -> bool:
    value = parameters.get(key, False)
    if type(value) is not bool:
        raise RequestError(
            f"{key} of {where}: expected true or false, found {_word(value)}"
        )
    return value


def _timeout_s(parameters: Mapping[str, Any]) -> float | None:
    timeout_us = parameters.get("timeout")
    if timeout_us is None or timeout_us == 0:  # Triton: 0 is no timeout
        return None
    if type(timeout_us) is not int or not 0 < timeout_us < 2**63:
        raise RequestError(
            f"timeout: expected microseconds above 0, found {_word(timeout_us)}"
        )
    return timeout_us / 1e6


def _word_of(value: Array) -> str:
    return _DATATYPES[value.dtype.char]


_DATATYPES = {
    "?": "BOOL", "B": "UINT8", "H": "UINT16", "I": "UINT32", "L": "UINT64",
    "Q": "UINT64", "b": "INT8", "h": "INT16", "i": "INT32", "l": "INT64",
    "q": "INT64", "e": "FP16", "f": "FP32", "d": "FP64",
}  # fmt: skip


def _little(value: Array) -> Array:
    return value.astype(value.dtype.newbyteorder("<"), copy=False)


def _names(names: Any) -> str:
    return ", ".join(repr(name) for name in names)


def _word(value: Any) -> str:
    return "nothing" if value is None else reprlib.repr(value)
