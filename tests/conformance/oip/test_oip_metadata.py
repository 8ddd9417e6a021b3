"""Health, server and model metadata, configuration, readiness, unknown names."""

import json

import pytest

from .protocol import KNOWN
from .wire import chunked

WAYS = ("", "/config", "/ready", "/stats")


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready"])
def test_health(server, path):
    assert server.get(path).status == 200


@pytest.mark.ours
@pytest.mark.parametrize("word", ["live", "ready"])
def test_health_says_so_in_json(server, word):
    """KServe's client reads the word in the body."""
    answer = server.get(f"/v2/health/{word}")
    assert answer.media_type == "application/json" and answer.json == {word: True}


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready"])
def test_health_ignores_a_query(server, path):
    assert server.get(f"{path}?from=balancer&n=1").status == 200


@pytest.mark.parametrize(
    "path", ["/v2", pytest.param("/v2/", marks=pytest.mark.ours)], ids=["bare", "slash"]
)
def test_server_metadata(server, path):
    answer = server.get(path)
    assert answer.status == 200
    assert answer.media_type == "application/json"
    facts = answer.json
    assert isinstance(facts["name"], str) and facts["name"]
    assert isinstance(facts["version"], str) and facts["version"]
    assert all(isinstance(one, str) for one in facts["extensions"])


@pytest.mark.ours
def test_what_is_implemented_is_listed(extensions):
    assert extensions >= {
        "binary_tensor_data", "model_configuration", "model_repository", "statistics",
    }  # fmt: skip


def test_model_metadata(server, model):
    answer = server.get(model.path)
    assert answer.media_type == "application/json"
    facts = answer.json
    assert facts["name"] == model.name
    assert isinstance(facts["platform"], str)
    assert all(isinstance(one, str) for one in facts.get("versions") or [])
    assert facts["inputs"] and facts["outputs"]
    for tensor in (*facts["inputs"], *facts["outputs"]):
        assert isinstance(tensor["name"], str) and tensor["name"]
        assert tensor["datatype"] in KNOWN
        assert all(type(size) is int and size >= -1 for size in tensor["shape"])


def test_tensor_names_are_unique(model):
    for tensors in (model.inputs, model.outputs):
        assert len({one.name for one in tensors}) == len(tensors)


@pytest.mark.ours
def test_model_metadata_is_the_manifest(server):
    facts = server.get("/v2/models/linear").json
    assert facts["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert facts["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}]
    assert facts["platform"] and facts["versions"]
    facts = server.get("/v2/models/fixed").json
    assert facts["inputs"][0]["shape"] == [1, 3, 8, 8]


def test_each_version_has_metadata(server, model):
    if not model.versions:
        pytest.skip("the server has no versions")
    for version in model.versions:
        facts = server.get(f"{model.path}/versions/{version}").json
        assert facts["name"] == model.name and facts["inputs"]


def test_model_ready(server, model):
    assert server.get(f"{model.path}/ready").status == 200


def test_each_version_is_ready(server, model):
    for version in model.versions:
        assert server.get(f"{model.path}/versions/{version}/ready").status == 200


@pytest.mark.extension("model_configuration")
def test_model_configuration(server, model):
    answer = server.get(f"{model.path}/config")
    assert answer.status == 200 and answer.media_type == "application/json"
    assert answer.json["name"] == model.name


@pytest.mark.extension("model_configuration")
def test_configuration_speaks_of_the_same_tensors(server, model):
    facts = server.get(f"{model.path}/config").json
    for key, tensors in (("input", model.inputs), ("output", model.outputs)):
        assert {one["name"] for one in facts[key]} == {one.name for one in tensors}
        for one in facts[key]:
            assert one["data_type"].startswith("TYPE_")
            assert all(int(size) >= -1 for size in one["dims"])


@pytest.mark.extension("model_configuration")
def test_each_version_has_a_configuration(server, model):
    for version in model.versions:
        facts = server.get(f"{model.path}/versions/{version}/config").json
        assert facts["name"] == model.name


@pytest.mark.ours
def test_configuration_says_how_rows_are_given(server):
    batched = server.get("/v2/models/linear/config").json
    single = server.get("/v2/models/fixed/config").json
    # as Triton writes it: with a batch, dims are those of one row
    assert batched["max_batch_size"] > 0 and batched["input"][0]["dims"] == [4]
    assert single["max_batch_size"] == 0
    assert single["input"][0]["dims"] == [1, 3, 8, 8]


@pytest.mark.parametrize("way", WAYS, ids=["metadata", "config", "ready", "stats"])
def test_an_unknown_model_is_refused(server, refuses, ours, way):
    text = refuses(server.get(f"/v2/models/no_such_model{way}"), 404)
    assert not ours or "no_such_model" in text


@pytest.mark.parametrize("way", WAYS, ids=["metadata", "config", "ready", "stats"])
def test_an_unknown_version_is_refused(server, model, refuses, way):
    refuses(server.get(f"{model.path}/versions/987654321{way}"), 404)


def test_infer_of_an_unknown_model_is_refused(server, model, refuses):
    refuses(server.post("/v2/models/no_such_model/infer", model.body()), 404)


def test_infer_of_an_unknown_version_is_refused(server, model, refuses):
    path = f"{model.path}/versions/987654321/infer"
    refuses(server.post(path, model.body()), 404)


@pytest.mark.parametrize("way", WAYS, ids=["metadata", "config", "ready", "stats"])
@pytest.mark.ours
def test_names_may_be_percent_encoded(server, way):
    plain = server.get(f"/v2/models/linear{way}")
    encoded = server.get(f"/v2/models/%6Cinea%72{way}")
    assert plain.status == encoded.status == 200


@pytest.mark.ours
def test_infer_takes_a_percent_encoded_name(server, model):
    answer = server.post("/v2/models/%6cinear/infer", model.body())
    assert answer.json["model_name"] == "linear"


@pytest.mark.parametrize(
    "name",
    ["%2e%2e", "..%2f..%2fetc%2fpasswd", "%00", "linear%00", "%ff%fe", "%", "%zz",
     "linear%20", "LINEAR", "a" * 3000, "%E6%A8%A1%E5%9E%8B"],
    ids=["dots", "path", "nul", "nul_at_end", "not_utf8", "percent", "not_hex",
         "space", "upper_case", "long", "unicode"],
)  # fmt: skip
def test_odd_names_are_unknown(server, refuses, name):
    # as a path %2e%2e is "one up", which a server may resolve or refuse
    refuses(server.get(f"/v2/models/{name}"), 404, 400)


@pytest.mark.ours
@pytest.mark.parametrize(
    "path",
    ["/v3", "/v2/health", "/v2/health/alive", "/v2/models/linear/nothing", "/V2",
     "/v2/models/linear/versions", "/v2/models/linear/versions//ready", "/infer",
     "/v2/models/linear/versions/1.0.0/versions/1.0.0"],
)  # fmt: skip
def test_unknown_paths(server, refuses, path):
    refuses(server.get(path), 404)


@pytest.mark.ours
@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/v2/health/live", {"GET"}),
        ("DELETE", "/v2/health/ready", {"GET"}),
        ("POST", "/v2", {"GET"}),
        ("PUT", "/v2/models/linear", {"GET"}),
        ("POST", "/v2/models/linear/ready", {"GET"}),
        ("POST", "/v2/models/linear/config", {"GET"}),
        ("POST", "/v2/models/stats", {"GET"}),
        ("GET", "/v2/models/linear/infer", {"POST"}),
        ("PUT", "/v2/models/linear/versions/1.0.0/infer", {"POST"}),
        ("GET", "/v2/repository/index", {"POST"}),
        ("GET", "/v2/repository/models/linear/load", {"POST"}),
        ("GET", "/v2/repository/models/linear/unload", {"POST"}),
    ],
)
def test_another_method_is_not_allowed(server, refuses, method, path, allowed):
    answer = server.request(method, path)
    refuses(answer, 405)
    assert allowed <= {one.strip() for one in answer.headers["allow"].split(",")}


@pytest.mark.ours
@pytest.mark.parametrize("method", ["BREW", "CONNECT", "TRACE"])
def test_a_strange_method_is_refused(server, refuses, method):
    [answer] = server.exchange(server.head(method, "/v2/health/live"))
    refuses(answer, 405, 400, 501)


def test_head_has_no_body(server):
    answers = server.exchange(
        server.head("HEAD", "/v2/health/live", "Connection: close"), methods=["HEAD"]
    )
    assert answers[0].status in (200, 405)


def test_a_body_on_get_is_ignored_or_refused(server):
    body = json.dumps({"any": "thing"}).encode()
    answer = server.request("GET", "/v2/health/live", body)
    assert answer.status == 200 or 400 <= answer.status < 500


def test_a_body_on_get_does_not_become_the_next_request(server):
    smuggled = server.head("GET", "/v2/models/no_such_model")
    answers = server.exchange(
        server.head("GET", "/v2/health/live", "Transfer-Encoding: chunked")
        + chunked(smuggled)
        + server.head("GET", "/v2/health/ready", "Connection: close"),
        methods=["GET", "GET"],
    )
    assert all(one.status == 200 for one in answers) or answers[0].status >= 400
