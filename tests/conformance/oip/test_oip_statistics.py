"""Statistics of a model: what was asked is counted."""

import time

import pytest

from .protocol import answered, binary

pytestmark = pytest.mark.extension("statistics")
PARTS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


def facts(server, model):
    """The statistics of the version that answers."""
    version = answered(server.post(f"{model.path}/infer", model.body())).document[
        "model_version"
    ]
    [found] = server.get(f"{model.path}/versions/{version}/stats").json["model_stats"]
    return found


def test_statistics_of_a_model(server, model):
    answer = server.get(f"{model.path}/stats")
    assert answer.status == 200 and answer.media_type == "application/json"
    assert answer.json["model_stats"]
    for one in answer.json["model_stats"]:
        assert one["name"] == model.name
        assert isinstance(one["version"], str)
        for key in ("last_inference", "inference_count", "execution_count"):
            assert int(one[key]) >= 0
        for part in PARTS:
            count, spent = one["inference_stats"][part].values()
            assert int(count) >= 0 and int(spent) >= 0


def test_parts_have_a_count_and_nanoseconds(server, model):
    one = facts(server, model)
    for part in PARTS:
        assert set(one["inference_stats"][part]) == {"count", "ns"}


def test_statistics_of_all_models(server, model):
    answer = server.get("/v2/models/stats")
    assert answer.status == 200
    found = {(one["name"], one["version"]) for one in answer.json["model_stats"]}
    assert model.name in {name for name, _ in found}
    assert len(found) == len(answer.json["model_stats"])


@pytest.mark.ours
def test_every_model_of_the_index_has_statistics(server):
    index = server.post("/v2/repository/index", {"ready": True}).json
    found = server.get("/v2/models/stats").json["model_stats"]
    assert {(one["name"], one["version"]) for one in index} == {
        (one["name"], one["version"]) for one in found
    }


def test_a_request_is_counted(server, model, infer):
    before = facts(server, model)
    for _ in range(3):
        answered(infer(model.body()))
    after = facts(server, model)  # asks once itself
    assert after["inference_count"] == before["inference_count"] + 4
    assert after["execution_count"] == before["execution_count"] + 4
    for part in ("success", "compute_infer"):
        old, new = (one["inference_stats"][part] for one in (before, after))
        assert new["count"] == old["count"] + 4
        assert new["ns"] > old["ns"]


def test_rows_are_inferences(server, model, infer):
    if not model.batches:
        pytest.skip("the model takes no rows")
    before = facts(server, model)
    answered(infer(model.body(model.samples(rows=5))))
    after = facts(server, model)
    assert after["inference_count"] == before["inference_count"] + 6
    assert after["execution_count"] == before["execution_count"] + 2
    old, new = (one["inference_stats"]["success"]["count"] for one in (before, after))
    assert new == old + 2


@pytest.mark.extension("binary_tensor_data")
def test_binary_requests_are_counted(server, model):
    before = facts(server, model)
    answered(binary(model, model.samples()).post(server, f"{model.path}/infer"))
    after = facts(server, model)
    assert after["inference_count"] == before["inference_count"] + 2


def test_the_last_inference_is_now(server, model):
    began_ms = time.time() * 1000 - 2000  # the clock of the server may be coarse
    one = facts(server, model)
    assert began_ms <= one["last_inference"] <= time.time() * 1000 + 2000


@pytest.mark.ours
def test_what_is_refused_is_not_an_inference(server, model, infer):
    before = facts(server, model)
    assert infer(b"{").status == 400
    after = facts(server, model)
    assert after["inference_count"] == before["inference_count"] + 1
    assert after["execution_count"] == before["execution_count"] + 1


@pytest.mark.ours
def test_times_add_up(server, model):
    stats = facts(server, model)["inference_stats"]
    parts = ("queue", "compute_infer")
    assert sum(stats[part]["ns"] for part in parts) <= stats["success"]["ns"] * 1.01
