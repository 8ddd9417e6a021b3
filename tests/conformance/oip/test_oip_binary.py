"""The binary tensor extension: JSON first, then the bytes of the tensors."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from .protocol import HEADER, answered, binary, put, raw

pytestmark = pytest.mark.extension("binary_tensor_data")


@pytest.fixture
def path(model):
    return f"{model.path}/infer"


@pytest.fixture
def wanted(model, infer):
    """The outputs for the usual samples, asked for in JSON."""
    return answered(infer(model.body())).outputs


def equal(got, wanted):
    assert list(got.outputs) == list(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(got.outputs[name], array)


def test_binary_in_json_out(server, model, path, wanted):
    answer = binary(model, model.samples()).post(server, path)
    assert HEADER.lower() not in answer.headers
    equal(answered(answer), wanted)


def test_json_in_binary_out(server, model, infer, wanted):
    body = model.body(
        outputs=[{"name": one.name, "parameters": {"binary_data": True}}
                 for one in model.outputs]
    )  # fmt: skip
    got = answered(infer(body))
    assert list(got.binary_outputs) == list(wanted)
    equal(got, wanted)


def test_binary_in_binary_out(server, model, path, wanted):
    request = binary(
        model, model.samples(), parameters={"binary_data_output": True}, id="7"
    )
    got = answered(request.post(server, path))
    assert list(got.binary_outputs) == list(wanted)
    assert got.document["id"] == "7"
    equal(got, wanted)


def test_all_outputs_in_binary(model, infer, wanted):
    got = answered(infer(model.body(parameters={"binary_data_output": True})))
    assert list(got.binary_outputs) == list(wanted)
    equal(got, wanted)


def test_an_output_may_say_otherwise(model, infer, wanted):
    body = model.body(
        parameters={"binary_data_output": True},
        outputs=[{"name": one.name, "parameters": {"binary_data": False}}
                 for one in model.outputs],
    )  # fmt: skip
    got = answered(infer(body))
    assert not got.binary_outputs
    equal(got, wanted)


def test_binary_data_false_is_json(model, infer, wanted):
    body = model.body(
        outputs=[{"name": one.name, "parameters": {"binary_data": False}}
                 for one in model.outputs]
    )  # fmt: skip
    equal(answered(infer(body)), wanted)


@pytest.mark.ours
def test_the_answer_in_bytes(server):
    """The layout of the answer, byte by byte."""
    body = {
        "inputs": [put("x", np.array([[1, 2, 3, 4]], np.float32), "FP32")],
        "parameters": {"binary_data_output": True},
    }
    answer = server.post("/v2/models/identity_fp32/infer", body)
    assert answer.media_type == "application/octet-stream"
    length = int(answer.headers[HEADER.lower()])
    assert int(answer.headers["content-length"]) == len(answer.body) == length + 16
    document = json.loads(answer.body[:length])
    assert document["outputs"] == [
        {"name": "y", "datatype": "FP32", "shape": [1, 4],
         "parameters": {"binary_data_size": 16}}
    ]  # fmt: skip
    assert answer.body[length:].hex() == "0000803f000000400000404000008040"


@pytest.mark.ours
def test_json_says_what_the_bytes_say(server):
    """Little-endian in, too."""
    document = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "INT32",
                            "parameters": {"binary_data_size": 16}}]}  # fmt: skip
    head = json.dumps(document).encode()
    tail = bytes([1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 128, 255, 255, 255, 255])
    answer = server.post(
        "/v2/models/identity_int32/infer", head + tail, {HEADER: str(len(head))}
    )
    data = answered(answer).document["outputs"][0]["data"]
    assert np.ravel(data).tolist() == [1, 256, -(2**31), -1]


@pytest.mark.parametrize("turned", [False, True], ids=["in_order", "turned"])
def test_two_inputs_are_in_the_order_of_the_json(server, pair, turned):
    arrays = pair.samples(seed=3)
    want = answered(server.post(f"{pair.path}/infer", pair.body(arrays)))
    names = [one.name for one in pair.inputs]
    given = {name: arrays[name] for name in (reversed(names) if turned else names)}
    equal(
        answered(binary(pair, given).post(server, f"{pair.path}/infer")), want.outputs
    )


@pytest.mark.parametrize("place", [0, 1])
def test_one_input_in_json_the_other_in_binary(server, pair, place):
    arrays = pair.samples(seed=4)
    want = answered(server.post(f"{pair.path}/infer", pair.body(arrays)))
    request = binary(pair, arrays, json_inputs=[pair.inputs[place].name])
    equal(answered(request.post(server, f"{pair.path}/infer")), want.outputs)


@pytest.mark.parametrize("place", [0, 1])
def test_one_output_in_json_the_other_in_binary(server, pair, place):
    want = answered(server.post(f"{pair.path}/infer", pair.body())).outputs
    name = pair.outputs[place].name
    outputs = [
        {"name": one.name, "parameters": {"binary_data": one.name == name}}
        for one in pair.outputs
    ]
    got = answered(server.post(f"{pair.path}/infer", pair.body(outputs=outputs)))
    assert got.binary_outputs == (name,)
    equal(got, want)


def test_two_binary_outputs(server, pair):
    want = answered(server.post(f"{pair.path}/infer", pair.body())).outputs
    body = pair.body(parameters={"binary_data_output": True})
    got = answered(server.post(f"{pair.path}/infer", body))
    assert len(got.binary_outputs) == 2
    equal(got, want)


@pytest.mark.ours
def test_binary_outputs_are_in_the_order_asked_for(server, pair):
    body = pair.body(
        parameters={"binary_data_output": True},
        outputs=[{"name": one.name} for one in reversed(pair.outputs)],
    )
    got = answered(server.post(f"{pair.path}/infer", body))
    assert got.binary_outputs == tuple(one.name for one in reversed(pair.outputs))


def test_several_rows(server, model, path):
    if not model.batches:
        pytest.skip("the model takes no rows")
    arrays = model.samples(rows=5)
    want = answered(server.post(path, model.body(arrays))).outputs
    request = binary(model, arrays, parameters={"binary_data_output": True})
    equal(answered(request.post(server, path)), want)


def test_the_header_without_binary_inputs(server, model, path, wanted):
    request = binary(model, {})
    request.document = model.body()
    equal(answered(request.post(server, path)), wanted)


@pytest.mark.parametrize("kind", ["application/octet-stream", "text/plain", "x"])
def test_the_content_type_is_no_matter(server, model, path, wanted, kind):
    request = binary(model, model.samples())
    answer = request.post(server, path, **{"Content-Type": kind})
    equal(answered(answer), wanted)


def test_the_header_in_lower_case(server, model, path, wanted):
    request = binary(model, model.samples())
    lower = {HEADER: None, HEADER.lower(): str(len(request.head))}
    equal(answered(request.post(server, path, **lower)), wanted)


def test_a_raw_body(server, identity):
    model = identity("FP32")
    array = np.array([[1, -2, 3.5, 4]], np.float32)
    answer = server.post(f"{model.path}/infer", raw(array), {HEADER: "0"})
    np.testing.assert_array_equal(
        answered(answer).outputs[model.outputs[0].name], array
    )


def test_a_raw_body_of_a_model_of_fixed_shape(server, ours):
    if not ours:
        pytest.skip("the server has no model 'fixed'")
    image = np.arange(192, dtype=np.float32).reshape(1, 3, 8, 8)
    answer = server.post("/v2/models/fixed/infer", raw(image), {HEADER: "0"})
    np.testing.assert_allclose(answered(answer).outputs["mean"], [[31.5, 95.5, 159.5]])


@pytest.mark.ours
def test_a_raw_body_of_several_rows(server):
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    path = "/v2/models/identity_fp32/infer"
    answer = server.post(path, raw(rows), {HEADER: "0"})
    np.testing.assert_array_equal(answered(answer).outputs["y"], rows)


@pytest.mark.parametrize("size", [0, 1, 15, 17], ids=str)
def test_a_raw_body_of_the_wrong_size(server, identity, refuses, ours, size):
    answer = server.post(f"{identity('FP32').path}/infer", b"\0" * size, {HEADER: "0"})
    if not ours and size == 0 and answer.status == 200:
        pytest.skip("the server takes no bytes for no rows")
    refuses(answer, 400)


def test_a_raw_body_for_two_inputs(server, pair, refuses):
    path = f"{pair.path}/infer"
    refuses(server.post(path, b"\0" * 20, {HEADER: "0"}), 400)


LENGTHS: dict[str, Callable[[int, int], str]] = {
    "beyond_the_body": lambda head, whole: str(whole + 1),
    "far_beyond": lambda head, whole: str(2**31),
    "beyond_64_bits": lambda head, whole: "9" * 40,
    "negative": lambda head, whole: "-1",
    "minus_zero": lambda head, whole: "-0",
    "word": lambda head, whole: "all",
    "empty": lambda head, whole: "",
    "real": lambda head, whole: f"{head}.0",
    "exponent": lambda head, whole: "1e2",
    "hexadecimal": lambda head, whole: hex(head),
    "underscore": lambda head, whole: f"{str(head)[0]}_{str(head)[1:]}",
    "two": lambda head, whole: f"{head}, {head}",
    "plus": lambda head, whole: f"+{head}",
    "one_less": lambda head, whole: str(head - 1),
    "one_more": lambda head, whole: str(head + 1),
    "whole_body": lambda head, whole: str(whole),
    "one": lambda head, whole: "1",
}
LENIENT_LENGTHS = {"plus", "minus_zero", "real", "empty", "underscore", "two",
                   "exponent", "hexadecimal"}  # fmt: skip


@pytest.mark.parametrize("name", LENGTHS)
def test_a_wrong_length_of_the_json(server, model, path, refuses, ours, name):
    request = binary(model, model.samples())
    head = len(request.head)
    length = LENGTHS[name](head, head + len(request.tail))
    answer = request.post(server, path, **{HEADER: length})
    if not ours and name in LENIENT_LENGTHS and answer.status == 200:
        return
    refuses(answer, 400)


@pytest.mark.ours
def test_two_lengths_that_differ(server, model, path, refuses):
    request = binary(model, model.samples())
    body = request.head + request.tail
    lines = [f"{HEADER}: {len(request.head)}", f"{HEADER}: 0"]
    head = server.head("POST", path, *lines, f"Content-Length: {len(body)}")
    [answer] = server.exchange(head + body)
    refuses(answer, 400)


@pytest.mark.ours
@pytest.mark.parametrize("digits", [b"\xb2", b"1\xb2", b"\xd9\xa3", b"\xef\xbc\x92"])
def test_digits_of_other_scripts(server, path, refuses, digits):
    """``int`` and ``str.isdigit`` take more than ASCII."""
    head = server.head("POST", path, f"{HEADER}: DIGITS", "Content-Length: 2")
    [answer] = server.exchange(head.replace(b"DIGITS", digits) + b"{}")
    refuses(answer, 400)


SIZES: dict[str, Any] = {
    "less": lambda size: size - 1,
    "more": lambda size: size + 1,
    "one_element_less": lambda size: size - 4,
    "one_row_more": lambda size: 2 * size,
    "zero": lambda size: 0,
    "negative": lambda size: -size,
    "huge": lambda size: 2**40,
    "beyond_64_bits": lambda size: 10**30,
    "string": lambda size: str(size),
    "real": lambda size: size + 0.5,
    "true": lambda size: True,
    "null": lambda size: None,
    "list": lambda size: [size],
}


@pytest.mark.parametrize("name", SIZES)
def test_a_wrong_size_of_a_tensor(server, model, path, refuses, name):
    request = binary(model, model.samples())
    parameters = request.document["inputs"][0]["parameters"]
    parameters["binary_data_size"] = SIZES[name](parameters["binary_data_size"])
    refuses(request.post(server, path), 400)


@pytest.mark.parametrize("by", [-4, -1, 1, 4, 16])
def test_bytes_that_are_missing_or_left_over(server, model, path, refuses, ours, by):
    request = binary(model, model.samples())
    request.tail = request.tail[:by] if by < 0 else request.tail + b"\0" * by
    answer = request.post(server, path)
    if not ours and by > 0 and answer.status == 200:
        pytest.skip("the server ignores bytes that are left over")
    refuses(answer, 400)


def test_a_size_without_the_header(server, model, path, refuses):
    document = binary(model, model.samples()).document
    refuses(server.post(path, document), 400)


def test_a_size_and_the_bytes_without_the_header(server, model, path, refuses):
    request = binary(model, model.samples())
    refuses(server.post(path, request.head + request.tail), 400)


@pytest.mark.ours
def test_data_and_bytes_for_one_input(server, model, path, refuses):
    request = binary(model, model.samples())
    request.document["inputs"][0]["data"] = [0] * 4
    refuses(request.post(server, path), 400)


def test_a_shape_that_the_bytes_do_not_fill(server, model, path, refuses):
    request = binary(model, model.samples())
    request.document["inputs"][0]["shape"][0] += 1
    refuses(request.post(server, path), 400)


@pytest.mark.parametrize(
    "shape", [[2**62, 4], [2**63, 4], [-1, 4], [2**31, 2**31, 4], [2**62 + 1, 4]],
    ids=["overflow", "64_bits", "negative", "rank_3", "overflow_to_four"],
)  # fmt: skip
def test_a_shape_that_is_impossible(server, model, path, refuses, shape):
    request = binary(model, model.samples())
    request.document["inputs"][0]["shape"] = shape
    refuses(request.post(server, path), 400, 413)


def test_sizes_that_overlap(server, pair, refuses):
    """The first input takes the bytes of the second as well."""
    request = binary(pair, pair.samples())
    sizes = [one["parameters"] for one in request.document["inputs"]]
    sizes[0]["binary_data_size"] += sizes[1]["binary_data_size"]
    refuses(request.post(server, f"{pair.path}/infer"), 400)


def test_json_that_ends_inside_the_header(server, model, path, refuses):
    request = binary(model, model.samples())
    body = request.head[:-1] + b" " + request.tail
    refuses(server.post(path, body, {HEADER: str(len(request.head))}), 400)


@pytest.mark.ours
def test_bytes_for_an_input_that_is_unknown(server, model, path, refuses):
    request = binary(model, model.samples())
    request.document["inputs"][0]["name"] = "no_such_input"
    assert "no_such_input" in refuses(request.post(server, path), 400)


@pytest.mark.ours
@pytest.mark.parametrize("by", [-1, 1])
def test_the_wrong_datatype_of_the_same_size(server, model, path, refuses, by):
    request = binary(model, model.samples())
    request.document["inputs"][0]["datatype"] = "INT32" if by < 0 else "UINT32"
    refuses(request.post(server, path), 400)


@pytest.mark.ours
def test_shared_memory_is_refused(model, infer, refuses):
    body = model.body()
    del body["inputs"][0]["data"]
    body["inputs"][0]["parameters"] = {
        "shared_memory_region": "r", "shared_memory_byte_size": 16,
    }  # fmt: skip
    refuses(infer(body), 400)
