"""Infer with JSON: what has to work."""

import json

import numpy as np
import pytest

from .protocol import answered, put


def test_flat_data(server, model, infer):
    got = answered(infer(model.body()))
    assert got.document["model_name"] == model.name
    assert list(got.outputs) == [one.name for one in model.outputs]
    kinds = {one["name"]: one["datatype"] for one in got.document["outputs"]}
    assert kinds == {one.name: one.datatype for one in model.outputs}


def test_outputs_have_the_declared_shape(model, infer):
    got = answered(infer(model.body()))
    for one in model.outputs:
        shape = got.outputs[one.name].shape
        assert len(shape) == len(one.shape)
        assert all(want in (-1, size) for want, size in zip(one.shape, shape))  # noqa: B905


def test_nested_data_is_the_same(model, infer):
    arrays = model.samples()
    nested = [put(one.name, arrays[one.name], one.datatype, nested=True)
              for one in model.inputs]  # fmt: skip
    flat = answered(infer(model.body(arrays)))
    got = answered(infer({"inputs": nested}))
    for name, array in flat.outputs.items():
        np.testing.assert_array_equal(got.outputs[name], array)


def test_the_same_request_gets_the_same_answer(model, infer):
    assert infer(model.body()).json["outputs"] == infer(model.body()).json["outputs"]


def test_rows_are_independent_of_each_other(model, infer):
    if not model.batches:
        pytest.skip("the model takes no rows")
    arrays = model.samples(rows=3)
    together = answered(infer(model.body(arrays)))
    for row in range(3):
        one = {name: array[row : row + 1] for name, array in arrays.items()}
        alone = answered(infer(model.body(one)))
        for name, array in alone.outputs.items():
            np.testing.assert_allclose(
                together.outputs[name][row : row + 1].astype(float),
                array.astype(float), rtol=1e-5,
            )  # fmt: skip


@pytest.mark.ours
def test_numbers(server):
    import bundles

    rows = np.array([[1, -2, 0.5, 3], [0.25, 1e-3, -7.5, 2]], np.float32)
    body = {"inputs": [put("x", rows, "FP32")]}
    got = answered(server.post("/v2/models/linear/infer", body))
    sign = -1 if got.document["model_version"] == "2.0.0" else 1
    want = np.maximum(rows @ (sign * bundles.WEIGHT), 0)
    np.testing.assert_allclose(got.outputs["y"], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "text", ["42", "a b", "ü-模型-😀", 'quote " and \\ back', "x" * 1000],
    ids=["digits", "space", "unicode", "quotes", "long"],
)  # fmt: skip
def test_the_id_comes_back(model, infer, text):
    assert infer(model.body(id=text)).json["id"] == text


def test_without_an_id_none_or_the_servers_comes_back(model, infer):
    assert isinstance(infer(model.body()).json.get("id"), str | None)


@pytest.mark.ours
def test_without_an_id_there_is_none(model, infer):
    assert set(infer(model.body()).json) == {"model_name", "model_version", "outputs"}


def test_unknown_parameters_are_no_matter(model, infer):
    body = model.body(parameters={"colour": "blue", "size": 3, "big": True, "x": 0.5})
    body["inputs"][0]["parameters"] = {"colour": "red"}
    answered(infer(body))


@pytest.mark.parametrize("empty", [{}, None], ids=["empty", "null"])
@pytest.mark.ours
def test_parameters_may_be_empty(model, infer, empty):
    body = model.body(parameters=empty)
    body["inputs"][0]["parameters"] = empty
    body["outputs"] = [{"name": model.outputs[0].name, "parameters": empty}]
    answered(infer(body))


def test_the_model_says_its_version(model, infer):
    got = answered(infer(model.body()))
    if not model.versions:
        pytest.skip("the server has no versions")
    assert got.document["model_version"] in model.versions


def test_each_version_answers(server, model):
    for version in model.versions:
        path = f"{model.path}/versions/{version}/infer"
        got = answered(server.post(path, model.body()))
        assert got.document["model_version"] == version


@pytest.mark.ours
def test_versions_are_different_models(server):
    versions = server.get("/v2/models/linear").json["versions"]
    if len(versions) < 2:
        pytest.skip(f"one version of linear is served: {versions}")
    x = put("x", np.array([[1, -2, 0.5, 3]], np.float32), "FP32")
    paths = [f"/v2/models/linear/versions/{one}/infer" for one in versions]
    outputs = [
        answered(server.post(path, {"inputs": [x]})).outputs["y"] for path in paths
    ]
    assert not np.array_equal(outputs[0], outputs[1])


def test_all_outputs_may_be_asked_for(model, infer):
    names = [one.name for one in model.outputs]
    body = model.body(outputs=[{"name": name} for name in names])
    assert list(answered(infer(body)).outputs) == names


def test_no_outputs_asked_for_are_all(model, infer):
    got = answered(infer(model.body(outputs=[])))
    assert list(got.outputs) == [one.name for one in model.outputs]


@pytest.mark.parametrize("place", [0, 1])
def test_one_output_of_two(server, pair, place):
    name = pair.outputs[place].name
    body = pair.body(outputs=[{"name": name}])
    got = answered(server.post(f"{pair.path}/infer", body))
    assert list(got.outputs) == [name]


def test_outputs_come_in_the_order_asked_for(server, pair, ours):
    names = [one.name for one in reversed(pair.outputs)]
    body = pair.body(outputs=[{"name": name} for name in names])
    got = answered(server.post(f"{pair.path}/infer", body))
    assert (list if ours else sorted)(got.outputs) == (names if ours else sorted(names))


def test_inputs_may_come_in_any_order(server, pair):
    body = pair.body()
    first = answered(server.post(f"{pair.path}/infer", body))
    body["inputs"].reverse()
    second = answered(server.post(f"{pair.path}/infer", body))
    for name, array in first.outputs.items():
        np.testing.assert_array_equal(second.outputs[name], array)


@pytest.mark.ours
def test_two_inputs_two_outputs(server):
    body = {"inputs": [put("a", np.array([[1, 2, 3]], np.float32), "FP32"),
                       put("b", np.array([[-4, 5]], np.int32), "INT32")]}  # fmt: skip
    got = answered(server.post("/v2/models/pair/infer", body))
    assert got.outputs["doubled"].tolist() == [[2, 4, 6]]
    assert got.outputs["negated"].tolist() == [[4, -5]]


def test_whitespace_and_order_of_keys(model, infer):
    body = model.body()
    turned = {"inputs": [dict(reversed(one.items())) for one in body["inputs"]]}
    text = json.dumps(turned, indent=3)
    answered(infer(f"\r\n\t {text} \n".encode()))


def test_escapes_in_names(model, infer):
    text = json.dumps(model.body())
    for one in model.inputs:
        escaped = "".join(f"\\u{ord(letter):04x}" for letter in one.name)
        text = text.replace(f'"name": "{one.name}"', f'"name": "{escaped}"')
    assert "\\u" in text
    answered(infer(text.encode()))


@pytest.mark.ours
def test_members_that_the_protocol_does_not_know_are_ignored(model, infer):
    body = model.body(priority=3, comment={"any": ["thing"]})
    body["inputs"][0]["unit"] = "mm"
    answered(infer(body))


@pytest.mark.ours
@pytest.mark.parametrize(
    "numbers",
    ["[1, 2, 3, 4]", "[1.0, 2.0, 3.0, 4.0]", "[1e0, 0.2e1, 300E-2, 4.00]",
     "[[1, 2.0, 3e0, 4]]", "[1.0000000000000000000000001, 2, 3, 4]"],
    ids=["whole", "real", "exponents", "nested", "long"],
)  # fmt: skip
def test_every_way_to_write_a_number(server, numbers):
    text = (
        '{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", '
        f'"data": {numbers}}}]}}'
    )
    got = answered(server.post("/v2/models/identity_fp32/infer", text.encode()))
    assert got.outputs["y"].tolist() == [[1, 2, 3, 4]]


@pytest.mark.ours
def test_as_many_rows_as_allowed(server):
    rows = np.arange(128 * 4, dtype=np.float32).reshape(128, 4)
    body = {"inputs": [put("x", rows, "FP32", nested=True)]}
    got = answered(server.post("/v2/models/identity_fp32/infer", body))
    np.testing.assert_array_equal(got.outputs["y"], rows)


@pytest.mark.ours
def test_a_model_of_fixed_shape(server):
    image = np.arange(192, dtype=np.float32).reshape(1, 3, 8, 8)
    for nested in (False, True):
        body = {"inputs": [put("image", image, "FP32", nested=nested)]}
        got = answered(server.post("/v2/models/fixed/infer", body))
        np.testing.assert_allclose(got.outputs["mean"], [[31.5, 95.5, 159.5]])


def test_no_rows_are_answered_or_refused(model, infer):
    if not model.batches:
        pytest.skip("the model takes no rows")
    answer = infer(model.body(model.samples(rows=0)))
    assert answer.status == 200 or 400 <= answer.status < 500


def test_a_timeout_that_suffices(model, infer):
    answered(infer(model.body(parameters={"timeout": 30_000_000})))
