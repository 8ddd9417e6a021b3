"""Infer with JSON that is wrong: every answer is an error, and says so in JSON.

Each case is a function that spoils a good request.
"""

import json
from collections.abc import Callable
from typing import Any

import pytest

from .protocol import answered

Spoil = Callable[[dict[str, Any]], Any]

DEEP = 10_000
"""Deeper than any stack of a recursive parser, shorter than any limit of bytes."""

TEXTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda good: b"",
    "blank": lambda good: b" \r\n\t",
    "words": lambda good: b"not json",
    "truncated": lambda good: good[:-1],
    "half": lambda good: good[: len(good) // 2],
    "trailing_word": lambda good: good + b" x",
    "trailing_brace": lambda good: good + b"}",
    "twice": lambda good: good + good,
    "byte_order_mark": lambda good: b"\xef\xbb\xbf" + good,
    "utf_16": lambda good: good.decode().encode("utf-16"),
    "utf_32": lambda good: good.decode().encode("utf-32-le"),
    "not_utf_8": lambda good: good.replace(b'"inputs"', b'"id": "\xff", "inputs"'),
    "nul_at_end": lambda good: good + b"\0",
    "control_character": lambda good: good.replace(b'"inputs"', b'"i\nd":1,"inputs"'),
    "single_quotes": lambda good: good.replace(b'"', b"'"),
    "comment": lambda good: b"// hello\n" + good,
    "trailing_comma": lambda good: good[:-1] + b",}",
    "array": lambda good: b"[" + good + b"]",
    "string": lambda good: json.dumps(good.decode()).encode(),
    "number": lambda good: b"3",
    "null": lambda good: b"null",
    "true": lambda good: b"true",
    "deep_array": lambda good: b"[" * DEEP,
    "deep_array_closed": lambda good: b"[" * DEEP + b"]" * DEEP,
    "deep_object": lambda good: b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep_parameters": lambda good: good.replace(
        b'"inputs"',
        b'"parameters": {"a": ' + b"[" * DEEP + b"]" * DEEP + b'}, "inputs"',
    ),
}

LENIENT_TEXTS = {"byte_order_mark", "utf_16", "utf_32", "nul_at_end", "comment",
                 "deep_parameters", "trailing_comma", "control_character"}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_not_a_request_is_refused(model, infer, refuses, ours, name):
    good = json.dumps(model.body()).encode()
    answer = infer(TEXTS[name](good))
    if not ours and name in LENIENT_TEXTS and answer.status == 200:
        answered(answer)
        return
    refuses(answer, 400)


def _set(*path: Any, to: Any) -> Spoil:
    """Set a member; the path leads from the request to it."""

    def spoil(body: dict[str, Any]) -> None:
        place: Any = body
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = to

    return spoil


def _drop(*path: Any) -> Spoil:
    def spoil(body: dict[str, Any]) -> None:
        place: Any = body
        for step in path[:-1]:
            place = place[step]
        del place[path[-1]]

    return spoil


def _first(key: str, to: Any) -> Spoil:
    return _set("inputs", 0, key, to=to)


STRUCTURES: dict[str, Spoil] = {
    "no_inputs": _drop("inputs"),
    "inputs_null": _set("inputs", to=None),
    "inputs_empty": _set("inputs", to=[]),
    "inputs_object": _set("inputs", to={}),
    "inputs_string": _set("inputs", to="x"),
    "input_null": _set("inputs", 0, to=None),
    "input_number": _set("inputs", 0, to=3),
    "input_list": _set("inputs", 0, to=[1, 2]),
    "input_empty": _set("inputs", 0, to={}),
    "no_name": _drop("inputs", 0, "name"),
    "name_number": _first("name", 3),
    "name_null": _first("name", None),
    "name_empty": _first("name", ""),
    "name_list": _first("name", ["x"]),
    "unknown_input": _first("name", "no_such_input"),
    "no_shape": _drop("inputs", 0, "shape"),
    "shape_null": _first("shape", None),
    "shape_number": _first("shape", 4),
    "shape_string": _first("shape", "1,4"),
    "shape_of_strings": _first("shape", ["1", "4"]),
    "shape_of_reals": _first("shape", [1.5, 4]),
    "shape_of_lists": _first("shape", [[1], [4]]),
    "shape_null_inside": _first("shape", [None, 4]),
    "negative_shape": _first("shape", [-1, 4]),
    "both_negative_shape": _first("shape", [-1, -4]),
    "huge_shape": _first("shape", [2**31 - 1, 4]),
    "shape_that_overflows": _first("shape", [2**62, 4]),
    "shape_that_overflows_to_four": _first("shape", [2**62 + 1, 4]),
    "shape_beyond_64_bits": _first("shape", [10**30, 4]),
    "shape_empty": _first("shape", []),
    "shape_of_many": _first("shape", [1] * 10_000),
    "too_few_dimensions": _first("shape", [4]),
    "too_many_dimensions": _first("shape", [1, 1, 4]),
    "no_datatype": _drop("inputs", 0, "datatype"),
    "datatype_null": _first("datatype", None),
    "datatype_number": _first("datatype", 32),
    "datatype_unknown": _first("datatype", "FP33"),
    "datatype_lower_case": _first("datatype", "fp32"),
    "no_data": _drop("inputs", 0, "data"),
    "data_null": _first("data", None),
    "data_object": _first("data", {"0": 1}),
    "data_number": _first("data", 1),
    "data_string": _first("data", "1,2,3,4"),
    "data_empty": _first("data", []),
    "data_of_nulls": _first("data", [None] * 4),
    "data_of_objects": _first("data", [{}] * 4),
    "data_of_strings": _first("data", ["1", "2", "3", "4"]),
    "data_of_words": _first("data", ["a", "b", "c", "d"]),
    "ragged": _first("data", [[1, 2, 3], [4]]),
    "ragged_depth": _first("data", [1, [2, 3], 4]),
    "deep_data": _first("data", json.loads("[" * 500 + "1,2,3,4" + "]" * 500)),
    "outputs_object": _set("outputs", to={"name": "y"}),
    "outputs_string": _set("outputs", to="y"),
    "output_null": _set("outputs", to=[None]),
    "output_string": _set("outputs", to=["y"]),
    "output_without_name": _set("outputs", to=[{}]),
    "output_name_number": _set("outputs", to=[{"name": 3}]),
    "output_name_null": _set("outputs", to=[{"name": None}]),
    "output_name_list": _set("outputs", to=[{"name": ["y"]}]),
    "output_name_object": _set("outputs", to=[{"name": {"y": 1}}]),
    "unknown_output": _set("outputs", to=[{"name": "no_such_output"}]),
}
LENIENT = {
    # other servers flatten, cast or ignore these; nobody may fail on them
    "deep_data", "shape_of_reals", "data_of_strings", "ragged_depth", "name_empty",
    "ragged", "data_string", "shape_empty", "inputs_empty", "too_few_dimensions",
    "too_many_dimensions", "shape_string", "shape_of_strings", "no_datatype",
    "datatype_null", "unknown_input", "no_name", "unknown_output", "negative_shape",
    "data_number", "datatype_lower_case",
}  # fmt: skip


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_request_of_the_wrong_structure_is_refused(model, infer, refuses, ours, name):
    body = model.body()
    STRUCTURES[name](body)
    answer = infer(body)
    if not ours and name in LENIENT and answer.status == 200:
        answered(answer)
        return
    # more rows than a device takes is "too large", whatever else is wrong
    refuses(answer, *((413, 400) if "huge" in name or "overflow" in name else (400,)))


OURS: dict[str, Spoil] = {
    "id_number": _set("id", to=3),
    "id_object": _set("id", to={}),
    "parameters_list": _set("parameters", to=[1]),
    "parameters_string": _set("parameters", to="binary"),
    "input_parameters_list": _first("parameters", [1]),
    "output_parameters_string": _set(
        "outputs", to=[{"name": "y", "parameters": "binary"}]
    ),
    "shape_of_booleans": _first("shape", [True, 4]),
    "shape_of_whole_reals": _first("shape", [1.0, 4]),
    "output_twice": _set("outputs", to=[{"name": "y"}, {"name": "y"}]),
    "nested_against_shape": _first("data", [[1, 2], [3, 4]]),
    "timeout_word": _set("parameters", to={"timeout": "soon"}),
    "timeout_negative": _set("parameters", to={"timeout": -1}),
    "binary_data_word": _set(
        "outputs", to=[{"name": "y", "parameters": {"binary_data": "yes"}}]
    ),
    "binary_data_output_word": _set("parameters", to={"binary_data_output": "yes"}),
}


@pytest.mark.ours
@pytest.mark.parametrize("name", OURS)
def test_what_the_protocol_leaves_open_we_refuse(model, infer, refuses, name):
    body = model.body()
    OURS[name](body)
    refuses(infer(body), 400)


@pytest.mark.parametrize("by", [-1, 1], ids=["too_few", "too_many"])
def test_data_that_does_not_fill_the_shape(model, infer, refuses, by):
    body = model.body()
    data = body["inputs"][0]["data"]
    body["inputs"][0]["data"] = data[:-1] if by < 0 else [*data, data[0]]
    refuses(infer(body), 400)


def test_a_wrong_fixed_dimension(model, infer, refuses):
    places = [n for n, size in enumerate(model.inputs[0].shape) if size > 0]
    if not places:
        pytest.skip("every dimension of the model is variable")
    body = model.body()
    one = body["inputs"][0]
    one["shape"][places[0]] += 1
    size = 1
    for dimension in one["shape"]:
        size *= dimension
    one["data"] = (one["data"] * 2 * size)[:size]
    refuses(infer(body), 400)


def test_another_datatype_than_the_model_has(model, infer, refuses, ours):
    body = model.body()
    wrong = "INT64" if body["inputs"][0]["datatype"] != "INT64" else "FP32"
    body["inputs"][0]["datatype"] = wrong
    answer = infer(body)
    if not ours and answer.status == 200:
        pytest.skip("the server converts datatypes")
    text = refuses(answer, 400)
    assert not ours or (wrong in text and model.inputs[0].datatype in text)


@pytest.mark.parametrize("place", [0, 1])
def test_a_missing_input(server, pair, refuses, ours, place):
    body = pair.body()
    del body["inputs"][place]
    text = refuses(server.post(f"{pair.path}/infer", body), 400)
    assert not ours or pair.inputs[place].name in text


def test_an_extra_input(model, infer, refuses, ours):
    body = model.body()
    body["inputs"].append({**body["inputs"][0], "name": "no_such_input"})
    answer = infer(body)
    if not ours and answer.status == 200:
        pytest.skip("the server ignores inputs that the model has not")
    text = refuses(answer, 400)
    assert not ours or "no_such_input" in text


def test_a_doubled_input(model, infer, refuses, ours):
    body = model.body()
    body["inputs"].append(body["inputs"][0])
    answer = infer(body)
    if not ours and answer.status == 200:
        pytest.skip("the server takes one of two inputs of the same name")
    refuses(answer, 400)


@pytest.mark.ours
def test_inputs_that_disagree_on_rows(server, pair, refuses):
    body = pair.body()
    other = pair.samples(rows=2)
    body["inputs"][1] = pair.body(other)["inputs"][1]
    refuses(server.post(f"{pair.path}/infer", body), 400)


@pytest.mark.ours
def test_more_rows_than_allowed(model, infer, refuses):
    refuses(infer(model.body(model.samples(rows=129))), 413)


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "nan", "1e999"])
def test_numbers_that_json_has_not(model, infer, refuses, ours, literal):
    one = model.inputs[0]
    if not one.datatype.startswith("FP"):
        pytest.skip(f"the model takes {one.datatype}")
    text = json.dumps(model.body())
    start = text.index('"data": [') + len('"data": [')
    text = text[:start] + literal + text[text.index(",", start) :]
    answer = infer(text.encode())
    if not ours and answer.status == 200:
        pytest.skip(f"the server takes {literal}")
    refuses(answer, 400)


@pytest.mark.ours
def test_nan_in_json_is_told_of_the_binary_extension(server, refuses):
    text = (
        b'{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", '
        b'"data": [NaN, 1, 2, 3]}]}'
    )
    answer = server.post("/v2/models/identity_fp32/infer", text)
    assert "binary" in refuses(answer, 400)


def test_a_number_of_5000_digits(model, infer, refuses):
    text = json.dumps(model.body())
    start = text.index('"data": [') + len('"data": [')
    text = text[:start] + "9" * 5000 + text[text.index(",", start) :]
    refuses(infer(text.encode()), 400)


def test_a_lone_surrogate_is_no_failure(model, infer):
    text = json.dumps(model.body()).replace('"inputs"', '"id": "\\ud800", "inputs"')
    assert infer(text.encode()).status < 500


def test_doubled_keys_are_no_failure(model, infer):
    text = json.dumps(model.body())
    answer = infer(f'{{"inputs": [], {text[1:]}'.encode())
    assert answer.status < 500


def test_an_error_does_not_spoil_the_next_request(model, infer, refuses):
    refuses(infer(b"{"), 400)
    answered(infer(model.body()))
