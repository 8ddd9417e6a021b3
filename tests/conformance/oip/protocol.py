"""Requests and answers of the Open Inference Protocol v2, built and checked.

:func:`answered` and :func:`refused` hold every answer to the whole protocol, so that a
case only says what is special about it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from numpy.typing import NDArray

from .wire import Answer, Server

Array = NDArray[Any]
HEADER = "Inference-Header-Content-Length"
DTYPES = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8",
    "INT8": "i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
    "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
KNOWN = {*DTYPES, "BYTES", "BF16"}


@dataclass(frozen=True)
class Tensor:
    """An input or output as the server's metadata declares it."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def sample(self, seed: int = 0, rows: int = 1) -> Array:
        """Small numbers that every datatype holds exactly; ``rows`` where it varies."""
        sizes = [rows if place == 0 else 1 for place in range(len(self.shape))]
        shape = [
            size if size != -1 else least
            for size, least in zip(self.shape, sizes, strict=True)
        ]
        numbers = np.random.default_rng(seed).integers(0, 2, shape)
        if self.datatype == "BYTES":
            return numbers.astype(str).astype(object)
        if self.datatype not in DTYPES:
            pytest.skip(f"no sample of datatype {self.datatype}")
        return numbers.astype(DTYPES[self.datatype])


@dataclass(frozen=True)
class Model:
    """A model as the server's metadata describes it."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    versions: tuple[str, ...]
    platform: str

    @property
    def path(self) -> str:
        return f"/v2/models/{quote(self.name, safe='')}"

    @property
    def batches(self) -> bool:
        """Whether rows can be given together."""
        return all(one.shape and one.shape[0] == -1 for one in self.inputs)

    def samples(self, seed: int = 0, rows: int = 1) -> dict[str, Array]:
        return {
            one.name: one.sample(seed + place, rows)
            for place, one in enumerate(self.inputs)
        }

    def body(self, arrays: Mapping[str, Array] | None = None, **more: Any) -> Any:
        """A JSON request; ``more`` are further members of it."""
        arrays = self.samples() if arrays is None else arrays
        kinds = {one.name: one.datatype for one in self.inputs}
        return {"inputs": [put(name, a, kinds[name]) for name, a in arrays.items()],
                **more}  # fmt: skip


def model_of(server: Server, name: str) -> Model:
    """Ask the server what a model is; skips the case where it is not there."""
    answer = server.get(f"/v2/models/{quote(name, safe='')}")
    if answer.status != 200:
        pytest.skip(f"the server has no model {name!r}")
    facts = answer.json
    return Model(
        facts["name"], _tensors(facts["inputs"]), _tensors(facts["outputs"]),
        tuple(facts.get("versions") or ()), facts.get("platform", ""),
    )  # fmt: skip


def _tensors(facts: Sequence[Mapping[str, Any]]) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(one["name"], one["datatype"], tuple(map(int, one["shape"])))
        for one in facts
    )


def put(name: str, array: Array, datatype: str, *, nested: bool = False) -> Any:
    """An input with its data in JSON."""
    data = array.tolist() if nested else array.reshape(-1).tolist()
    return {"name": name, "shape": list(array.shape), "datatype": datatype,
            "data": data}  # fmt: skip


@dataclass
class Binary:
    """A request with binary tensors, part by part, so that any part can be wrong."""

    document: dict[str, Any]
    tail: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> bytes:
        return json.dumps(self.document).encode()

    def post(self, server: Server, path: str, **headers: str | None) -> Answer:
        """Send it; ``headers`` take the place of those of this request."""
        sent = {HEADER: str(len(self.head)), **self.headers, **headers}
        if "Content-Type" in server.headers:
            sent.setdefault("Content-Type", "application/octet-stream")
        return server.post(path, self.head + self.tail, sent)


def raw(array: Array) -> bytes:
    """The bytes of a tensor: row-major, little-endian."""
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def binary(
    model: Model,
    arrays: Mapping[str, Array],
    *,
    json_inputs: Sequence[str] = (),
    **more: Any,
) -> Binary:
    """A request whose inputs are binary, except those of ``json_inputs``."""
    kinds = {one.name: one.datatype for one in model.inputs}
    inputs, tail = [], b""
    for name, array in arrays.items():
        one = put(name, array, kinds[name])
        if name not in json_inputs:
            del one["data"]
            one["parameters"] = {"binary_data_size": len(raw(array))}
            tail += raw(array)
        inputs.append(one)
    return Binary({"inputs": inputs, **more}, tail)


@dataclass(frozen=True)
class Inference:
    """A checked answer to infer."""

    document: dict[str, Any]
    outputs: dict[str, Array]
    """In the order of the answer."""
    binary_outputs: tuple[str, ...]


def answered(answer: Answer) -> Inference:
    """An answer to infer that keeps the protocol, taken apart."""
    assert answer.status == 200, (answer.status, answer.decoded[:500])
    length = answer.headers.get(HEADER.lower())
    payload = answer.decoded
    if length is None:
        assert answer.media_type == "application/json"
        document, tail = answer.json, b""
    else:
        assert 0 < int(length) <= len(payload)
        document = json.loads(payload[: int(length)].decode())
        tail = payload[int(length) :]
    assert isinstance(document, dict)
    assert isinstance(document["model_name"], str)
    assert isinstance(document.get("model_version"), str | None)
    assert isinstance(document["outputs"], list)
    outputs: dict[str, Array] = {}
    in_tail = []
    for one in document["outputs"]:
        size = (one.get("parameters") or {}).get("binary_data_size")
        if size is None:
            value = _json_output(one)
        else:
            assert "data" not in one, "an output is either JSON or binary"
            part, tail = tail[:size], tail[size:]
            assert len(part) == size, "the answer ends before its binary outputs do"
            value = _binary_output(one, part)
            in_tail.append(one["name"])
        assert one["name"] not in outputs, "an output came twice"
        outputs[one["name"]] = value
    assert not tail, f"{len(tail)} bytes after the last output"
    return Inference(document, outputs, tuple(in_tail))


def _json_output(one: Mapping[str, Any]) -> Array:
    shape, kind = _sized(one)
    assert isinstance(one["data"], list)
    if kind not in DTYPES:
        return np.array(one["data"], dtype=object).reshape(shape)
    items = np.array(one["data"], dtype=object).reshape(-1).tolist()
    for item in items:
        if kind == "BOOL":
            assert isinstance(item, bool)
        elif not kind.startswith("FP"):
            assert type(item) is int
        else:
            assert type(item) in (int, float)
    return np.array(items, dtype=DTYPES[kind]).reshape(shape)


def _binary_output(one: Mapping[str, Any], part: bytes) -> Array:
    shape, kind = _sized(one)
    assert kind in DTYPES, f"{kind} is not read by this suite"
    return np.frombuffer(part, dtype=DTYPES[kind]).reshape(shape)


def _sized(one: Mapping[str, Any]) -> tuple[list[int], str]:
    shape, kind = one["shape"], one["datatype"]
    assert isinstance(one["name"], str) and kind in KNOWN
    assert all(type(size) is int and size >= 0 for size in shape)
    assert math.prod(shape) >= 0
    return shape, kind


def refused(answer: Answer, *statuses: int, strict: bool = True) -> str:
    """An error that keeps the protocol; its text.

    Args:
        answer: what came.
        statuses: what our server answers; another one may take any 4xx or 5xx, for the
            protocol leaves it open.
        strict: whether to hold it to ``statuses`` and to exactly ``{"error": text}``.
    """
    assert 400 <= answer.status < 600, (answer.status, answer.decoded[:500])
    if not strict:
        if answer.media_type == "application/json":
            assert isinstance(answer.json, dict)
        return answer.decoded.decode(errors="replace")
    assert answer.status in (statuses or (400,)), (answer.status, answer.body[:500])
    assert answer.media_type == "application/json", answer.headers
    assert set(answer.json) == {"error"}, answer.body
    text = answer.json["error"]
    assert isinstance(text, str) and text.strip(), answer.body
    return text
