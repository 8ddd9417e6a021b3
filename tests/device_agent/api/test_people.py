"""What people and tools look at: metadata, statistics, the repository, errors."""

import json
import logging

import bundles
import pytest
import sites
import zoo

from device_agent.api import wire
from device_agent.config import ModelConfig

ROW = [1.0, -2.0, 0.5, 3.0]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("people")
    paths = zoo.write(folder, "linear", "pair", "fixed")
    eye = folder / "eye.edgeml"
    steps = ({"decode_image": "RGB"}, {"resize": [2, 2]}, {"reshape": [-1]})
    eye.write_bytes(bundles.bundle(name="eye", preprocess=steps))
    models = {"pair": ModelConfig(max_batch=8, max_delay_ms=1.5, queue_depth=9)}
    with sites.site(folder, [*paths, eye], models=models) as made:
        yield made


@pytest.fixture
def own(tmp_path):
    """One that a test may change."""
    with sites.site(tmp_path, zoo.write(tmp_path, "linear")) as made:
        yield made


def refusal(answer, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == {"error"}
    return answer.json()["error"]


class TestServer:
    @pytest.mark.parametrize("path", ["/v2", "/v2/"])
    def test_metadata(self, here, path):
        assert here.ask("GET", path).json() == {
            "name": "edgeml-agent",
            "version": "1.2.3",
            "extensions": [
                "binary_tensor_data", "model_configuration", "model_repository",
                "statistics",
            ],
        }  # fmt: skip

    def test_a_terminal_s_prompt_stays_where_it_was(self, here):
        assert here.ask("GET", "/v2").text.endswith("}\n")

    def test_head(self, here):
        answer = here.ask("HEAD", "/v2")
        assert answer.status_code == 200
        answer = here.ask("HEAD", "/v1/models/linear/predict")
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST, PUT")


class TestModels:
    @pytest.mark.parametrize("version", ["", "/versions/1.0.0"])
    def test_metadata(self, here, version):
        facts = here.ask("GET", f"/v2/models/linear{version}").json()
        parameters = facts.pop("parameters")
        assert facts == {
            "name": "linear",
            "versions": ["1.0.0"],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
        }
        loaded = here.repository.find("linear").loaded
        assert parameters["sha256"] == loaded.sha256
        assert parameters["target"] == "cpu-x86_64"
        assert parameters["takes"] == "numbers"
        assert parameters["latency_us"] == loaded.latency_ns / 1000

    def test_what_predict_takes(self, here):
        facts = here.ask("GET", "/v2/models/eye").json()
        assert facts["parameters"]["takes"] == "image"

    @pytest.mark.parametrize("version", ["", "/versions/1.0.0"])
    def test_configuration(self, here, version):
        config = here.ask("GET", f"/v2/models/linear{version}/config").json()
        assert config["name"] == "linear"
        assert config["backend"] == "onnxruntime"
        assert config["max_batch_size"] == 128
        assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}]
        assert config["output"][0]["dims"] == [3]
        assert "dynamic_batching" not in config

    def test_configuration_without_a_batch(self, here):
        config = here.ask("GET", "/v2/models/fixed/config").json()
        assert config["max_batch_size"] == 0
        assert config["input"][0]["dims"] == [1, 3, 8, 8]

    def test_configuration_with_dynamic_batching(self, here):
        config = here.ask("GET", "/v2/models/pair/config").json()
        assert config["dynamic_batching"] == {
            "preferred_batch_size": [8],
            "max_queue_delay_microseconds": 1500,
            "default_queue_policy": {
                "timeout_action": "REJECT",
                "default_timeout_microseconds": 1_000_000,
                "max_queue_size": 9,
            },
        }

    def test_the_steps_are_in_the_configuration(self, here):
        config = here.ask("GET", "/v2/models/eye/config").json()
        steps = json.loads(config["parameters"]["preprocess"]["string_value"])
        assert steps[0] == {"decode_image": "RGB"}

    @pytest.mark.parametrize("what", ["", "/config", "/stats"])
    def test_unknown_ones(self, here, what):
        answer = here.ask("GET", f"/v2/models/none{what}")
        assert "there is no model 'none'" in refusal(answer, 404)
        answer = here.ask("GET", f"/v2/models/linear/versions/9{what}")
        assert "9" in refusal(answer, 404)


class TestStatistics:
    def test_they_count(self, own):
        for body in (ROW, [ROW, ROW]):
            own.ask("POST", "/v1/models/linear/predict", json=body)
        for path in ("", "/linear", "/linear/versions/1.0.0"):
            answer = own.ask("GET", f"/v2/models{path}/stats").json()
            (found,) = answer["model_stats"]
            assert (found["name"], found["version"]) == ("linear", "1.0.0")
            assert found["inference_count"] == 3
            assert found["execution_count"] == 2
            parts = found["inference_stats"]
            assert parts["success"]["count"] == 2
            assert parts["success"]["ns"] > 0
            assert parts["fail"] == parts["cache_hit"] == {"count": 0, "ns": 0}
            sizes = [batch["batch_size"] for batch in found["batch_stats"]]
            assert sizes == [1, 2]
            assert found["last_inference"] > 1e12
            assert found["refused"] == {}

    def test_all_of_tritons_fields_are_there(self, here):
        (found, *_) = here.ask("GET", "/v2/models/stats").json()["model_stats"]
        assert found.keys() >= {
            "name", "version", "last_inference", "inference_count", "execution_count",
            "inference_stats", "batch_stats", "memory_usage", "response_stats",
        }  # fmt: skip
        assert found["inference_stats"].keys() == {
            "success", "fail", "queue", "compute_input", "compute_infer",
            "compute_output", "cache_hit", "cache_miss",
        }  # fmt: skip

    def test_refusals_are_told_apart(self, own):
        own.repository.find("linear").statistics.refuse("queue")
        (found,) = own.ask("GET", "/v2/models/linear/stats").json()["model_stats"]
        assert found["refused"] == {"queue": 1}


class TestRepository:
    def test_index(self, own):
        line = {"name": "linear", "version": "1.0.0", "state": "READY", "reason": ""}
        assert own.ask("POST", "/v2/repository/index").json() == [line]
        assert own.ask("POST", "/v2/repository/index", json={}).json() == [line]

    def test_index_of_what_is_ready(self, own):
        own.ask("POST", "/v2/repository/models/linear/unload")
        asked = {"ready": True}
        assert own.ask("POST", "/v2/repository/index", json=asked).json() == []
        (line,) = own.ask("POST", "/v2/repository/index").json()
        assert (line["name"], line["state"]) == ("linear", "UNAVAILABLE")

    @pytest.mark.parametrize(
        ("body", "text"),
        [
            (b'{"ready": "yes"}', "ready: Input should be a valid boolean"),
            (b"[1]", "object"),
            (b"{", "Invalid JSON"),
        ],
    )
    def test_index_refuses(self, here, body, text):
        answer = here.ask("POST", "/v2/repository/index", content=body)
        assert text in refusal(answer, 400)

    def test_unload_and_load(self, own):
        body = {"parameters": {"unload_dependents": False}}
        path = "/v2/repository/models/linear"
        answer = own.ask("POST", f"{path}/unload", json=body)
        assert (answer.status_code, answer.content) == (200, b"")
        gone = own.ask("GET", "/v2/models/linear")
        assert "unloaded" in refusal(gone, 503)
        assert "unloaded" in refusal(own.ask("GET", "/v2/models/linear/stats"), 503)
        answer = own.ask("POST", f"{path}/load", json={})
        assert (answer.status_code, answer.content) == (200, b"")
        assert own.ask("GET", "/v2/models/linear").status_code == 200

    def test_a_changed_file_is_a_swap(self, own, tmp_path):
        (tmp_path / "linear.edgeml").write_bytes(zoo.linear2())
        assert own.ask("POST", "/v2/repository/models/linear/load").status_code == 200
        assert own.ask("GET", "/v2/models/linear").json()["versions"] == ["2.0.0"]

    def test_a_refused_bundle_leaves_what_is_served(self, own, tmp_path):
        (tmp_path / "linear.edgeml").write_bytes(b"nothing like a bundle")
        answer = own.ask("POST", "/v2/repository/models/linear/load")
        assert refusal(answer, 400).startswith("bundle: ")
        assert own.ask("POST", "/v1/models/linear/predict", json=ROW).status_code == 200

    @pytest.mark.parametrize("verb", ["load", "unload"])
    def test_unknown_models(self, here, verb):
        answer = here.ask("POST", f"/v2/repository/models/none/{verb}")
        assert "none" in refusal(answer, 404)

    def test_a_configuration_is_not_taken(self, here):
        body = {"parameters": {"config": "{}"}}
        answer = here.ask("POST", "/v2/repository/models/linear/load", json=body)
        assert "load takes no parameters, found config" in refusal(answer, 400)

    def test_files_are_not_taken(self, here):
        body = {"parameters": {"file:1/model.onnx": "A" * 100_000}}
        answer = here.ask("POST", "/v2/repository/models/linear/load", json=body)
        refusal(answer, 413)
        assert here.budget.used_bytes == 0


class TestErrors:
    def test_no_such_path(self, here):
        text = refusal(here.ask("GET", "/v3/models"), 404)
        assert text == "there is no /v3/models; /docs says what there is"

    @pytest.mark.parametrize(
        ("method", "path", "allow"),
        [
            ("POST", "/v2", "GET, HEAD"),
            ("DELETE", "/v2/models/linear", "GET, HEAD"),
            ("GET", "/v2/repository/index", "POST"),
            ("GET", "/v1/models/linear/predict", "POST, PUT"),
        ],
    )
    def test_no_such_method(self, here, method, path, allow):
        answer = here.ask(method, path)
        assert allow in refusal(answer, 405)
        offered = {word.strip() for word in answer.headers["allow"].split(",")}
        assert offered == set(allow.split(", "))

    def test_what_nobody_foresaw(self, own, caplog, monkeypatch):
        def broken():
            raise RuntimeError("a secret of the inside")

        monkeypatch.setattr(own.repository, "index", broken)
        with caplog.at_level(logging.ERROR):
            answer = own.ask("POST", "/v2/repository/index")
        text = refusal(answer, 500)
        assert text == "internal error (RuntimeError); the agent's log says more"
        (record,) = [one for one in caplog.records if one.name == "edgeml.api"]
        assert record.exc_info and "a secret" in str(record.exc_info[1])


class TestDocument:
    @pytest.fixture
    def document(self, here):
        return here.ask("GET", "/openapi.json").json()

    def test_references_are_there(self, document):
        def references(node):
            if isinstance(node, dict):
                yield from [node["$ref"]] if "$ref" in node else []
                for value in node.values():
                    yield from references(value)
            elif isinstance(node, list):
                for value in node:
                    yield from references(value)

        found = set(references(document))
        known = {f"#/components/schemas/{one}" for one in
                 document["components"]["schemas"]}  # fmt: skip
        assert found <= known

    def test_the_hot_path_is_described(self, document):
        infer = document["paths"]["/v2/models/{name}/infer"]["post"]
        content = infer["requestBody"]["content"]
        assert content.keys() == {"application/json", "application/octet-stream"}
        assert infer["responses"].keys() >= {"200", "400", "404", "429", "503"}
        headers = [one["name"] for one in infer["parameters"] if one["in"] == "header"]
        assert headers == ["Inference-Header-Content-Length"]
        assert {"/v2/health/live", "/v2/health/ready"} <= document["paths"].keys()

    def test_operations_have_names_of_their_own(self, document):
        names = [one["operationId"] for operations in document["paths"].values()
                 for one in operations.values()]  # fmt: skip
        assert len(names) == len(set(names))

    def test_examples_are_what_they_are_examples_of(self, document):
        schemas = document["components"]["schemas"]
        for kind in (wire.Prediction, wire.InferRequest, wire.InferResponse):
            kind.model_validate(schemas[kind.__name__]["example"])
