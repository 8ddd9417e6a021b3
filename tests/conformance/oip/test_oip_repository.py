"""The model repository: what is there, load, unload."""

import pytest

from .protocol import answered, binary

pytestmark = pytest.mark.extension("model_repository")
STATES = {"READY", "UNAVAILABLE", "LOADING", "UNLOADING", "UNKNOWN"}


def index(server, body=b"{}"):
    answer = server.post("/v2/repository/index", body)
    assert answer.status == 200 and answer.media_type == "application/json"
    return answer.json


def states(server, name):
    return {one.get("state") for one in index(server) if one["name"] == name}


@pytest.mark.parametrize(
    "body",
    [pytest.param(b"", marks=pytest.mark.ours), b"{}", b'{"ready": false}'],
    ids=["empty", "object", "not_ready"],
)
def test_the_index(server, model, body):
    found = index(server, body)
    assert isinstance(found, list)
    assert model.name in {one["name"] for one in found}
    for one in found:
        assert isinstance(one["name"], str)
        assert one.get("state", "UNKNOWN") in STATES
        assert isinstance(one.get("version", ""), str)
        assert isinstance(one.get("reason", ""), str)


def test_the_index_of_what_is_ready(server, model):
    found = index(server, {"ready": True})
    assert model.name in {one["name"] for one in found}
    assert {one.get("state", "READY") for one in found} == {"READY"}


@pytest.mark.ours
def test_the_index_has_every_model_once(server):
    pairs = [(one["name"], one["version"]) for one in index(server)]
    assert len(pairs) == len(set(pairs))
    assert {"linear", "pair", "fixed", "identity_fp32"} <= {name for name, _ in pairs}


@pytest.mark.ours
@pytest.mark.parametrize(
    "body", [b"not json", b"[]", b'{"ready": "yes"}', b"3"], ids=repr
)
def test_a_wrong_question_to_the_index(server, refuses, body):
    refuses(server.post("/v2/repository/index", body), 400)


@pytest.mark.parametrize("verb", ["load", "unload"])
@pytest.mark.parametrize("name", ["no_such_model", "..%2f..%2fetc", "%00"])
def test_an_unknown_model(server, refuses, ours, verb, name):
    answer = server.post(f"/v2/repository/models/{name}/{verb}", b"{}")
    if not ours and verb == "unload" and answer.status == 200:
        pytest.skip("unloading what is not there is nothing to that server")
    refuses(answer, 404, 400)


@pytest.mark.parametrize("body", [b"", b"{}"], ids=repr)
def test_loading_what_is_loaded(server, unloadable, body):
    path = f"/v2/repository/models/{unloadable.name}/load"
    assert server.post(path, body).status == 200
    answered(server.post(f"{unloadable.path}/infer", unloadable.body()))


@pytest.mark.ours
@pytest.mark.parametrize("verb", ["load", "unload"])
@pytest.mark.parametrize("body", [b"not json", b"[]"], ids=repr)
def test_a_wrong_body(server, refuses, verb, body):
    path = f"/v2/repository/models/fixed/{verb}"
    refuses(server.post(path, body), 400)
    assert server.get("/v2/models/fixed/ready").status == 200


@pytest.mark.ours
def test_a_model_sent_along_is_refused(server, refuses):
    """Triton takes files and a configuration; a device takes only bundles."""
    body = {"parameters": {"config": "{}", "file:1/model.onnx": "AAAA"}}
    refuses(server.post("/v2/repository/models/fixed/load", body), 400)


def test_unload_and_load_again(server, unloadable, refuses, ours):
    path = f"/v2/repository/models/{unloadable.name}"
    body = unloadable.body(id="again")
    before = answered(server.post(f"{unloadable.path}/infer", body))
    assert server.post(f"{path}/unload", b"{}").status == 200
    try:
        refuses(server.post(f"{unloadable.path}/infer", body), 503)
        request = binary(unloadable, unloadable.samples())
        refuses(request.post(server, f"{unloadable.path}/infer"), 503)
        refuses(server.get(f"{unloadable.path}/ready"), 503)
        refuses(server.get(unloadable.path), 503)
        refuses(server.get(f"{unloadable.path}/config"), 503)
        refuses(server.get(f"{unloadable.path}/stats"), 503)
        for version in unloadable.versions:
            refuses(server.get(f"{unloadable.path}/versions/{version}/ready"), 503)
        assert states(server, unloadable.name) <= {"UNAVAILABLE", None}
        ready = {one["name"] for one in index(server, {"ready": True})}
        assert unloadable.name not in ready
        assert server.get("/v2/health/live").status == 200
        if ours:
            named = [one for one in index(server) if one["name"] == unloadable.name]
            assert all(one["reason"] for one in named)
    finally:
        assert server.post(f"{path}/load", b"{}").status == 200
    assert server.get(f"{unloadable.path}/ready").status == 200
    after = answered(server.post(f"{unloadable.path}/infer", body))
    assert after.document == before.document
    assert states(server, unloadable.name) & {"READY", None}


@pytest.mark.ours
def test_unloading_twice_is_no_failure(server, unloadable):
    path = f"/v2/repository/models/{unloadable.name}"
    assert server.post(f"{path}/unload").status == 200
    try:
        assert server.post(f"{path}/unload").status in (200, 400, 503)
    finally:
        assert server.post(f"{path}/load").status == 200


def test_other_models_are_untouched(server, model, unloadable):
    if model.name == unloadable.name:
        pytest.skip("there is one model")
    path = f"/v2/repository/models/{unloadable.name}"
    assert server.post(f"{path}/unload", b"{}").status == 200
    try:
        answered(server.post(f"{model.path}/infer", model.body()))
    finally:
        assert server.post(f"{path}/load", b"{}").status == 200


@pytest.mark.ours
def test_unload_parameters_are_taken(server, unloadable):
    """tritonclient sends ``unload_dependents`` with every unload."""
    path = f"/v2/repository/models/{unloadable.name}"
    body = {"parameters": {"unload_dependents": False}}
    assert server.post(f"{path}/unload", body).status == 200
    assert server.post(f"{path}/load", {}).status == 200
