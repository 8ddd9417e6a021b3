"""Infer requests into arrays, outputs into answers."""

import json
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from device_agent.api import codec
from device_agent.api.tensors import InferRequest, build, parse
from device_agent.contract.tensors import Datatype, TensorSpec
from device_agent.errors import RequestError, TooLargeError, UnwritableError
from device_agent.serving.signature import Signature

DATATYPES = get_args(Datatype)
X = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))
Y = TensorSpec(name="y", datatype="FP32", shape=(-1, 3))
SIGNATURE = Signature((X,), (Y,), batches=True, max_rows=4)


@pytest.fixture(params=["orjson", "msgspec", "json"])
def json_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every implementation of JSON."""
    if request.param == "msgspec":
        monkeypatch.setattr(codec, "SMALL_BYTES", 0)
    elif request.param == "json":
        monkeypatch.setattr(codec, "orjson", None)
        monkeypatch.setattr(codec, "msgspec", None)
    return str(request.param)


def fixed(datatype: Datatype, shape: tuple[int, ...]) -> Signature:
    spec = TensorSpec(name="x", datatype=datatype, shape=shape)
    return Signature((spec,), (spec.model_copy(update={"name": "y"}),), False, 1)


def body(data: Any = None, **changes: Any) -> bytes:
    item = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": data, **changes}
    return json.dumps({"inputs": [item]}).encode()


def arrays(draw: st.DrawFn) -> tuple[Datatype, np.ndarray]:
    datatype = draw(st.sampled_from(DATATYPES))
    dtype = TensorSpec(name="x", datatype=datatype, shape=()).dtype
    elements = (
        {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
    )
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=4))
    return datatype, draw(
        hnp.arrays(dtype, shape, elements=hnp.from_dtype(dtype, **elements))
    )


tensors = st.composite(arrays)()


@given(tensors, st.booleans(), st.booleans())
def test_json_comes_in_exactly(
    made: tuple[Datatype, np.ndarray], nested: bool, fast: bool
) -> None:
    datatype, array = made
    wide = array.astype(np.float64) if array.dtype.kind == "f" else array
    data = wide.tolist() if nested else wide.reshape(-1).tolist()
    raw = body(data, shape=list(array.shape), datatype=datatype)
    with pytest.MonkeyPatch.context() as patch:
        if not fast:
            patch.setattr(codec, "orjson", None)
        request = parse(raw, None, fixed(datatype, array.shape))
    found = request.feeds["x"]
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert found.flags.c_contiguous and found.flags.aligned
    np.testing.assert_array_equal(found, array)


@given(tensors)
def test_binary_comes_in_and_goes_out_exactly(
    made: tuple[Datatype, np.ndarray],
) -> None:
    datatype, array = made
    signature = fixed(datatype, array.shape)
    blob = array.tobytes()
    document = {
        "inputs": [{
            "name": "x", "shape": list(array.shape), "datatype": datatype,
            "parameters": {"binary_data_size": len(blob)},
        }],
        "parameters": {"binary_data_output": True},
    }  # fmt: skip
    head = json.dumps(document).encode()
    request = parse(head + blob, len(head), signature)
    np.testing.assert_array_equal(request.feeds["x"], array)
    payload, length = build(request, {"y": request.feeds["x"]}, "m", "1")
    assert length is not None
    (output,) = json.loads(payload[:length])["outputs"]
    assert output["parameters"] == {"binary_data_size": len(blob)}
    assert payload[length:] == blob


@given(tensors)
def test_json_goes_out_exactly(made: tuple[Datatype, np.ndarray]) -> None:
    _, array = made
    for fast in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not fast:
                patch.setattr(codec, "orjson", None)
            payload, length = build(
                InferRequest({}, 1, [("y", False)], "7"), {"y": array}, "m", "1"
            )
        assert length is None
        document = json.loads(payload)
        assert document["id"] == "7"
        (output,) = document["outputs"]
        found = np.array(output["data"], array.dtype).reshape(output["shape"])
        np.testing.assert_array_equal(found, array)


REFUSED = {
    "empty": (b"", "empty"),
    "not JSON": (b"{", "not JSON"),
    "not an object": (b"[]", "expected a JSON object"),
    "trailing": (b"{} {}", "not JSON"),
    "no inputs": (b"{}", "inputs: expected a list of 'x'"),
    "inputs no list": (b'{"inputs":{}}', "inputs: expected a list"),
    "input no object": (b'{"inputs":[1]}', "expected objects"),
    "no name": (b'{"inputs":[{}]}', "no input nothing"),
    "unknown input": (body([1, 2], name="z"), "no input 'z'; the model takes 'x'"),
    "name no text": (body([1, 2], name=[]), "no input []"),
    "twice": (
        b'{"inputs":[%s,%s]}' % ((json.dumps(
            {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
        ).encode(),) * 2), "is there twice",
    ),
    "datatype": (body([1, 2], datatype="FP64"), "expected datatype FP32, found 'FP64'"),
    "no shape": (body([1, 2], shape=None), "expected shape [-1, 2]"),
    "other shape": (body([1, 2], shape=[2, 1]), "expected shape [-1, 2]"),
    "negative": (body([1, 2], shape=[-1, 2]), "expected shape"),
    "zero rows": (body([], shape=[0, 2]), "expected shape"),
    "truth in shape": (body([1, 2], shape=[True, 2]), "expected shape"),
    "fraction in shape": (body([1, 2], shape=[1.0, 2]), "expected shape"),
    "huge": (body([1, 2], shape=[2**62, 2]), "takes 9223372036854775808 values"),
    "count": (body([1, 2, 3]), "takes 2 values, found 3"),
    "ragged": (body([[1], [2, 3]], shape=[2, 2]), "not of shape [2, 2]"),
    "ragged to the same count": (
        body([[1, 2, 3], [4]], shape=[2, 2]), "not of shape [2, 2]",
    ),
    "too deep": (body([[[1], [2]]]), "a value is no FP32"),
    "text": (body(["1", "2"]), "a value is no FP32"),
    "null": (body([None, 2]), "a value is no FP32"),
    "truth": (body([True, 2]), "a value is no FP32: True"),
    "nested truth": (body([[1, False]]), "a value is no FP32: False"),
    "no data": (body(None), "expected data"),
    "too large a number": (body([1e39, 2]), "beyond FP32"),
    "NaN": (body([float("nan"), 2]), "NaN has no place in JSON"),
    "infinity": (body([float("inf"), 2]), "Infinity has no place in JSON"),
    "too many rows": (body([1] * 10, shape=[5, 2]), "at most 4 (max_rows)"),
    "id no text": (b'{"id":5,' + body([1, 2])[1:], "id: expected text"),
    "parameters": (b'{"parameters":5,' + body([1, 2])[1:], "expected an object"),
    "timeout": (
        b'{"parameters":{"timeout":-5},' + body([1, 2])[1:], "timeout: expected micro",
    ),
    "binary_data_output": (
        b'{"parameters":{"binary_data_output":1},' + body([1, 2])[1:],
        "expected true or false",
    ),
    "outputs": (b'{"outputs":5,' + body([1, 2])[1:], "outputs: expected a list"),
    "unknown output": (
        b'{"outputs":[{"name":"q"}],' + body([1, 2])[1:], "no output 'q'",
    ),
    "output no text": (
        b'{"outputs":[{"name":[]}],' + body([1, 2])[1:], "no output []",
    ),
    "output twice": (
        b'{"outputs":[{"name":"y"},{"name":"y"}],' + body([1, 2])[1:],
        "asked for twice",
    ),
    "classification": (
        b'{"outputs":[{"name":"y","parameters":{"classification":2}}],'
        + body([1, 2])[1:], "classification extension",
    ),
    "binary without bytes": (
        body(parameters={"binary_data_size": 8}), "both data and binary_data_size",
    ),
    "nested for ever": (b'{"inputs":' + b"[" * 100_000, "not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, json_kind: str) -> None:
    raw, text = REFUSED[case]
    with pytest.raises(RequestError) as caught:
        parse(raw, None, SIGNATURE)
    assert text in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("datatype", "value"),
    [("INT8", 128), ("INT8", -129), ("UINT8", -1), ("UINT8", 256), ("INT32", 2**31),
     ("UINT64", 2**64), ("UINT64", -1), ("INT64", 2**63), ("INT32", 1.5),
     ("INT64", 1.0), ("BOOL", 1), ("BOOL", 2), ("FP16", 70_000)],
)  # fmt: skip
def test_values_that_do_not_fit(datatype: Datatype, value: Any, json_kind: str) -> None:
    with pytest.raises(RequestError, match="a value is"):
        parse(body([value], shape=[1], datatype=datatype), None, fixed(datatype, (1,)))


BINARY = {
    "short": (8, b"\0" * 7, None, "7 bytes are left"),
    "long": (8, b"\0" * 9, None, "1 bytes follow the tensors"),
    "wrong size": (4, b"\0" * 4, None, "has 8 bytes, binary_data_size is 4"),
    "size no number": ("8", b"\0" * 8, None, "binary_data_size is '8'"),
    "negative": (-8, b"\0" * 8, None, "binary_data_size is -8"),
    "header beyond the body": (8, b"\0" * 8, 10_000, "the body has"),
    "header cuts the JSON": (8, b"\0" * 8, 5, "not JSON"),
}


@pytest.mark.parametrize("case", BINARY)
def test_binary_refused(case: str) -> None:
    size, blob, header, text = BINARY[case]
    item = {"name": "x", "shape": [1, 2], "datatype": "FP32",
            "parameters": {"binary_data_size": size}}  # fmt: skip
    head = json.dumps({"inputs": [item]}).encode()
    with pytest.raises(RequestError) as caught:
        parse(head + blob, len(head) if header is None else header, SIGNATURE)
    assert text in str(caught.value)


def test_raw_body_tells_its_rows_and_gets_bytes_back() -> None:
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    request = parse(rows.tobytes(), 0, SIGNATURE)
    np.testing.assert_array_equal(request.feeds["x"], rows)
    assert request.rows == 3
    assert request.outputs == [("y", True)]


@pytest.mark.parametrize("size", [0, 7, 12])
def test_raw_body_of_another_size(size: int) -> None:
    with pytest.raises(RequestError, match="a raw body for FP32"):
        parse(b"\0" * size, 0, SIGNATURE)


def test_raw_body_needs_one_input() -> None:
    two = Signature((X, X.model_copy(update={"name": "z"})), (Y,), True, 4)
    with pytest.raises(RequestError, match="a model with one input"):
        parse(b"\0" * 8, 0, two)


def test_inputs_must_have_as_many_rows() -> None:
    two = Signature((X, X.model_copy(update={"name": "z"})), (Y,), True, 4)
    item = {"shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
    inputs = [{"name": "x", **item}, {**item, "name": "z", "shape": [2, 2],
                                      "data": [1, 2, 3, 4]}]  # fmt: skip
    with pytest.raises(RequestError, match="have \\[1, 2\\] rows"):
        parse(json.dumps({"inputs": inputs}).encode(), None, two)
    with pytest.raises(RequestError, match="input 'z' is missing"):
        parse(json.dumps({"inputs": inputs[:1]}).encode(), None, two)


def test_not_finite_goes_out_as_bytes_only(json_kind: str) -> None:
    for value in (np.nan, np.inf, -np.inf):
        outputs = {"y": np.array([[value, 1]], np.float32)}
        with pytest.raises(UnwritableError, match="binary_data"):
            build(InferRequest({}, 1, [("y", False)]), outputs, "m", "1")
        payload, length = build(InferRequest({}, 1, [("y", True)]), outputs, "m", "1")
        assert length is not None
        np.testing.assert_array_equal(
            np.frombuffer(payload[length:], np.float32).reshape(1, 2), outputs["y"]
        )


def test_a_name_with_null_in_it_is_no_nan(json_kind: str) -> None:
    outputs = {"null": np.zeros(2, np.float32)}
    request = InferRequest({}, 1, [("null", False)])
    assert b'"null"' in build(request, outputs, "null", "1")[0]


def test_the_largest_right_body_is_allowed_and_not_much_more() -> None:
    shape = (3, 96, 96)
    signature = fixed("FP32", shape)
    values = np.full(shape, -1.2345678e-38).reshape(-1).tolist()
    assert len(body(values, shape=list(shape))) < signature.body_bytes(1 << 30)
    assert signature.body_bytes(1 << 30) < 1 << 20
    assert signature.body_bytes(1000) == 1000
    free = TensorSpec(name="x", datatype="FP32", shape=(-1, -1))
    assert Signature((free,), (Y,), True, 4).body_bytes(12345678) == 12345678


def test_too_many_rows_is_too_large() -> None:
    with pytest.raises(TooLargeError):
        parse(body([1] * 10, shape=[5, 2]), None, SIGNATURE)


def test_timeout_is_in_microseconds() -> None:
    raw = b'{"parameters":{"timeout":2500000},' + body([1, 2])[1:]
    assert parse(raw, None, SIGNATURE).timeout_s == 2.5
    raw = b'{"parameters":{"timeout":0},' + body([1, 2])[1:]
    assert parse(raw, None, SIGNATURE).timeout_s is None


@pytest.mark.parametrize("count", [1, 100])
@pytest.mark.parametrize(
    ("datatype", "largest", "beyond"),
    [("FP32", 3.4028235e38, 3.402824e38), ("FP16", 65519.9, 65520),
     ("FP64", 1.7976931348623157e308, None)],
)  # fmt: skip
def test_the_largest_value_comes_in_and_no_larger_one(
    datatype: Datatype, largest: float, beyond: float | None, count: int
) -> None:
    signature = fixed(datatype, (count,))
    for sign in (1, -1):
        raw = body([sign * largest] * count, shape=[count], datatype=datatype)
        assert np.isfinite(parse(raw, None, signature).feeds["x"]).all()
        if beyond is not None:
            raw = body([sign * beyond] * count, shape=[count], datatype=datatype)
            with pytest.raises(RequestError, match="beyond"):
                parse(raw, None, signature)


@pytest.mark.parametrize("inside", [b"0,", b"[],", b"{},", b'"",', b"[[0]],"])
def test_json_that_is_wider_than_any_right_request(inside: bytes) -> None:
    free = TensorSpec(name="x", datatype="FP32", shape=(-1, -1))
    signature = Signature((free,), (Y,), True, 4)
    wide = b"[" + inside * ((4 << 20) // len(inside)) + b"0]"
    with pytest.raises(TooLargeError, match="send large tensors as binary"):
        parse(wide, None, signature)


def test_a_large_right_request_comes_in() -> None:
    shape = (3, 300, 300)
    values = np.random.default_rng(0).standard_normal(shape, np.float32)
    raw = body(values.astype(float).tolist(), shape=list(shape))
    assert len(raw) > 1 << 20
    request = parse(raw, None, fixed("FP32", shape))
    np.testing.assert_array_equal(request.feeds["x"], values)
