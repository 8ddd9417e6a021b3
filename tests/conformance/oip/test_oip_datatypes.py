"""Every datatype, exact to the bit in JSON and in binary; what does not fit is refused.

Needs models that give back what they are given: ``identity_bool`` … ``identity_fp64``,
with an input of shape [-1, 4].
"""

import json

import numpy as np
import pytest

from .protocol import DTYPES, answered, binary, put, raw

INTEGERS = tuple(kind for kind in DTYPES if "INT" in kind)
REALS = tuple(kind for kind in DTYPES if kind.startswith("FP"))


def edges(kind):
    """Four numbers at the edges of a datatype, exact in it."""
    if kind == "BOOL":
        return np.array([[True, False, False, True]])
    dtype = np.dtype(DTYPES[kind])
    if kind in INTEGERS:
        about = np.iinfo(dtype)
        return np.array([[about.min, about.max, about.max - 1, 1]], dtype)
    about = np.finfo(dtype)
    return np.array([[about.min, about.max, about.smallest_subnormal, -0.0]], dtype)


def only(model, array):
    return {model.inputs[0].name: array}


def ask(server, model, numbers):
    """Infer with one row of JSON as it is written."""
    one = model.inputs[0]
    body = (
        f'{{"inputs": [{{"name": "{one.name}", "shape": [1, 4], '
        f'"datatype": "{one.datatype}", "data": [{numbers}]}}]}}'
    )
    return server.post(f"{model.path}/infer", body.encode())


def same(got, array):
    output = next(iter(got.outputs.values()))
    assert output.dtype == array.dtype and output.shape == array.shape
    assert raw(output) == raw(array), (output, array)


@pytest.mark.parametrize("kind", DTYPES)
def test_json_is_exact_at_the_edges(server, identity, kind):
    model, array = identity(kind), edges(kind)
    got = answered(server.post(f"{model.path}/infer", model.body(only(model, array))))
    assert got.document["outputs"][0]["datatype"] == kind
    same(got, array)


@pytest.mark.parametrize("kind", DTYPES)
def test_nested_json_is_exact(server, identity, kind):
    model = identity(kind)
    array = np.concatenate([edges(kind), edges(kind)[:, ::-1]])
    body = {"inputs": [put(model.inputs[0].name, array, kind, nested=True)]}
    same(answered(server.post(f"{model.path}/infer", body)), array)


@pytest.mark.extension("binary_tensor_data")
@pytest.mark.parametrize("kind", DTYPES)
def test_binary_is_exact(server, identity, kind):
    model, array = identity(kind), edges(kind)
    request = binary(model, only(model, array), parameters={"binary_data_output": True})
    got = answered(request.post(server, f"{model.path}/infer"))
    assert got.binary_outputs == (model.outputs[0].name,)
    same(got, array)


@pytest.mark.ours
@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("where", ["below", "above"])
def test_whole_numbers_out_of_range_are_refused(server, identity, refuses, kind, where):
    about = np.iinfo(DTYPES[kind])
    number = int(about.min) - 1 if where == "below" else int(about.max) + 1
    text = refuses(ask(server, identity(kind), f"{number}, 0, 0, 0"), 400)
    assert kind in text


@pytest.mark.ours
@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("number", ["0.5", "1.0", "1e2", "-0.0"])
def test_reals_for_whole_numbers_are_refused(server, identity, refuses, kind, number):
    refuses(ask(server, identity(kind), f"{number}, 0, 0, 0"), 400)


@pytest.mark.ours
@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize(
    "item", ['"1"', "null", "{}", "[1]"], ids=["string", "null", "object", "list"]
)
def test_what_is_no_number_is_refused(server, identity, refuses, kind, item):
    refuses(ask(server, identity(kind), f"{item}, 0, 0, 0"), 400)


@pytest.mark.ours
@pytest.mark.parametrize("kind", [*INTEGERS, *REALS])
def test_booleans_for_numbers_are_refused(server, identity, refuses, kind):
    model = identity(kind)
    refuses(ask(server, model, "true, 0, 0, 0"), 400)
    refuses(ask(server, model, "true, false, true, false"), 400)


@pytest.mark.ours
@pytest.mark.parametrize("number", ["1", "0", "2", "0.5", "-1"])
def test_numbers_for_booleans_are_refused(server, identity, refuses, number):
    model = identity("BOOL")
    refuses(ask(server, model, f"true, {number}, true, false"), 400)
    refuses(ask(server, model, ", ".join([number] * 4)), 400)


@pytest.mark.ours
@pytest.mark.parametrize(
    ("kind", "number"),
    [("FP16", "65520"), ("FP16", "-1e5"), ("FP32", "3.5e38"), ("FP32", "-1e39"),
     ("FP64", "1.8e308"), ("FP64", "-1e999"), ("FP32", "9" * 400)],
)  # fmt: skip
def test_reals_out_of_range_are_refused(server, identity, refuses, kind, number):
    refuses(ask(server, identity(kind), f"{number}, 0, 0, 0"), 400)


@pytest.mark.parametrize("kind", ["INT64", "UINT64"])
@pytest.mark.parametrize("number", [2**53 + 1, 2**63 - 1, 2**63 - 512])
def test_whole_numbers_of_64_bits_do_not_pass_through_reals(
    server, identity, kind, number
):
    got = answered(ask(server, identity(kind), f"{number}, 1, {number - 1}, 0"))
    assert got.document["outputs"][0]["data"] == [number, 1, number - 1, 0]


def test_uint64_beyond_int64_beside_small_numbers(server, identity):
    got = answered(ask(server, identity("UINT64"), f"{2**64 - 1}, 0, {2**63}, 1"))
    assert got.document["outputs"][0]["data"] == [2**64 - 1, 0, 2**63, 1]


@pytest.mark.parametrize("kind", REALS)
def test_whole_numbers_are_taken_for_reals(server, identity, kind):
    got = answered(ask(server, identity(kind), "1, -2, 3, 0"))
    assert next(iter(got.outputs.values())).tolist() == [[1, -2, 3, 0]]


def test_a_whole_number_too_long_for_float32_is_rounded(server, identity):
    got = answered(ask(server, identity("FP32"), f"{2**24 + 1}, {2**63}, 0, 0"))
    output = next(iter(got.outputs.values()))
    np.testing.assert_array_equal(
        output, np.array([[2**24 + 1, 2**63, 0, 0]], np.float32)
    )


@pytest.mark.parametrize("kind", REALS)
def test_reals_survive_the_way_through_json(server, identity, kind):
    model = identity(kind)
    bits = {"FP16": np.uint16, "FP32": np.uint32, "FP64": np.uint64}[kind]
    random = np.random.default_rng(7)
    numbers = random.integers(0, np.iinfo(bits).max, 400, bits).view(DTYPES[kind])
    array = numbers[np.isfinite(numbers)][:256].reshape(-1, 4)
    got = answered(server.post(f"{model.path}/infer", model.body(only(model, array))))
    same(got, array)


def odd_reals(kind):
    array = np.array([[np.nan, np.inf, -np.inf, -0.0]], DTYPES[kind])
    array.view({2: np.uint16, 4: np.uint32, 8: np.uint64}[array.itemsize])[0, 0] += 1
    return array


@pytest.mark.extension("binary_tensor_data")
@pytest.mark.parametrize("kind", REALS)
def test_nan_and_infinities_pass_in_binary(server, identity, kind):
    model, array = identity(kind), odd_reals(kind)
    request = binary(model, only(model, array), parameters={"binary_data_output": True})
    same(answered(request.post(server, f"{model.path}/infer")), array)


@pytest.mark.extension("binary_tensor_data")
@pytest.mark.parametrize("kind", REALS)
@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_nan_and_infinities_are_never_written_as_json(
    server, identity, refuses, ours, kind, number
):
    model = identity(kind)
    array = np.array([[0, 1, float(number), 2]], DTYPES[kind])
    answer = binary(model, only(model, array)).post(server, f"{model.path}/infer")
    if not ours and answer.status == 200:
        json.loads(answer.body, parse_constant=pytest.fail)
        return
    text = refuses(answer, 422)
    assert not ours or "binary" in text


@pytest.mark.extension("binary_tensor_data")
def test_a_boolean_of_another_byte_than_0_and_1(server, identity):
    model = identity("BOOL")
    request = binary(model, only(model, np.array([[True] * 4])))
    request.tail = b"\x02\x00\xff\x01"
    answer = request.post(server, f"{model.path}/infer")
    if answer.status == 200:
        assert answered(answer).outputs["y"].tolist() == [[True, False, True, True]]
    else:
        assert 400 <= answer.status < 500


@pytest.mark.ours
@pytest.mark.parametrize("kind", ["BYTES", "BF16", "FP8", "STRING", "TYPE_FP32", ""])
def test_datatypes_that_are_not_served_are_refused(server, identity, refuses, kind):
    model = identity("FP32")
    body = model.body()
    body["inputs"][0]["datatype"] = kind
    refuses(server.post(f"{model.path}/infer", body), 400)
