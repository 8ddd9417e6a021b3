"""Clients that others wrote, as their users use them, against a real agent."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
import zoo
from agents import Agent, agent
from bundles import WEIGHT
from tritonclient.utils import InferenceServerException

X = np.array([[1, -2, 0.5, 3], [0.25, 0.5, -7.5, 2]], np.float32)
Y = np.maximum(X @ WEIGHT, 0)
KINDS = ("BOOL", "UINT8", "INT64", "FP16", "FP64")
CODINGS = (None, "gzip", "deflate")


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory):
    names = ["linear", "pair", "fixed", *(f"identity_{one.lower()}" for one in KINDS)]
    with agent(zoo.write(tmp_path_factory.mktemp("clients"), *names)) as started:
        yield started


@pytest.fixture
def client(device: Agent):
    with triton.InferenceServerClient(device.address, concurrency=4) as made:
        yield made


def put(name: str, array: np.ndarray, kind: str = "FP32", *, binary: bool = True):
    one = triton.InferInput(name, list(array.shape), kind)
    one.set_data_from_numpy(array, binary_data=binary)
    return one


def get(*names: str, binary: bool = True):
    return [triton.InferRequestedOutput(name, binary_data=binary) for name in names]


def close(found: np.ndarray, wanted: np.ndarray = Y) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


class TestTritonClient:
    def test_health_and_metadata(self, client):
        assert client.is_server_live() and client.is_server_ready()
        assert client.is_model_ready("linear")
        assert client.is_model_ready("linear", "1.0.0")
        assert not client.is_model_ready("no_such_model")
        assert not client.is_model_ready("linear", "7")
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        facts = client.get_model_metadata("linear")
        assert facts["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
        assert client.get_model_config("linear", "1.0.0")["name"] == "linear"

    @pytest.mark.parametrize("given", [True, False], ids=["binary", "json"])
    @pytest.mark.parametrize("wanted", [True, False], ids=["binary", "json"])
    def test_infer(self, client, given, wanted):
        result = client.infer(
            "linear", [put("x", X, binary=given)], outputs=get("y", binary=wanted)
        )
        close(result.as_numpy("y"))
        assert result.as_numpy("no_such_output") is None
        assert ("data" in result.get_output("y")) is not wanted

    def test_its_defaults(self, client):
        result = client.infer("linear", [put("x", X)])
        close(result.as_numpy("y"))
        response = result.get_response()
        assert (response["model_name"], response["model_version"]) == (
            "linear", "1.0.0",
        )  # fmt: skip

    @pytest.mark.parametrize("request_coding", CODINGS)
    @pytest.mark.parametrize("response_coding", CODINGS)
    @pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
    def test_compression(self, client, request_coding, response_coding, binary):
        result = client.infer(
            "linear",
            [put("x", X, binary=binary)],
            outputs=get("y", binary=binary),
            request_compression_algorithm=request_coding,
            response_compression_algorithm=response_coding,
        )
        close(result.as_numpy("y"))

    @pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_datatypes(self, client, kind, binary):
        if kind == "FP16" and not binary:
            pytest.skip("tritonclient sends FP16 as binary alone")
        array = zoo.values(kind, (3, 4))
        result = client.infer(
            f"identity_{kind.lower()}",
            [put("x", array, kind, binary=binary)],
            outputs=get("y", binary=binary),
        )
        found = result.as_numpy("y")
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)

    def test_two_inputs_and_one_output_of_two(self, client):
        a, b = np.array([[1, 2, 3]], np.float32), np.array([[-4, 5]], np.int32)
        for binary_b in (True, False):
            inputs = [put("a", a), put("b", b, "INT32", binary=binary_b)]
            every = client.infer("pair", inputs)
            assert every.as_numpy("doubled").tolist() == [[2, 4, 6]]
            assert every.as_numpy("negated").tolist() == [[4, -5]]
            one = client.infer("pair", inputs, outputs=get("negated"))
            assert one.as_numpy("negated").tolist() == [[4, -5]]
            assert one.get_output("doubled") is None

    def test_outputs_of_both_kinds(self, client):
        a, b = np.array([[1, 2, 3]], np.float32), np.array([[-4, 5]], np.int32)
        result = client.infer(
            "pair",
            [put("a", a), put("b", b, "INT32")],
            outputs=[*get("doubled", binary=False), *get("negated")],
        )
        assert result.as_numpy("doubled").tolist() == [[2, 4, 6]]
        assert result.as_numpy("negated").tolist() == [[4, -5]]

    def test_what_goes_with_a_request(self, client):
        result = client.infer(
            "linear", [put("x", X)], request_id="a ü 7", model_version="1.0.0",
            timeout=5_000_000, priority=1, parameters={"colour": "blue"},
            headers={"X-Any": "thing"}, query_params={"any": "thing"},
        )  # fmt: skip
        assert result.get_response()["id"] == "a ü 7"
        close(result.as_numpy("y"))

    def test_many_at_once(self, client):
        rows = [np.full((1, 4), number / 10, np.float32) for number in range(100)]
        calls = [client.async_infer("linear", [put("x", row)]) for row in rows]
        results = [call.get_result() for call in calls]
        for row, result in zip(rows, results, strict=True):
            close(result.as_numpy("y"), np.maximum(row @ WEIGHT, 0))

    def test_statistics(self, client):
        def count():
            [one] = client.get_inference_statistics("linear")["model_stats"]
            return one["inference_stats"]["success"]["count"]

        before = count()
        client.infer("linear", [put("x", X)])
        assert count() == before + 1
        every = client.get_inference_statistics()["model_stats"]
        assert {"linear", "pair", "fixed"} <= {one["name"] for one in every}
        [one] = client.get_inference_statistics("linear", "1.0.0")["model_stats"]
        assert one["version"] == "1.0.0"

    def test_repository(self, client):
        image = [put("image", np.ones((1, 3, 8, 8), np.float32))]
        index = client.get_model_repository_index()
        assert {one["name"]: one["state"] for one in index}["fixed"] == "READY"
        client.unload_model("fixed")
        try:
            assert not client.is_model_ready("fixed")
            with pytest.raises(InferenceServerException) as raised:
                client.infer("fixed", image)
            assert raised.value.status() == "503" and "fixed" in str(raised.value)
        finally:
            client.load_model("fixed")
        assert client.is_model_ready("fixed")
        mean = client.infer("fixed", image).as_numpy("mean")
        close(mean, np.ones((1, 3), np.float32))

    @pytest.mark.parametrize(
        ("name", "version", "inputs", "outputs", "status", "word"),
        [
            ("nothing", "", [put("x", X)], None, "404", "nothing"),
            ("linear", "7", [put("x", X)], None, "404", "7"),
            ("linear", "", [put("z", X)], None, "400", "z"),
            ("linear", "", [put("x", X), put("z", X)], None, "400", "z"),
            ("linear", "", [put("x", X[:, :3])], None, "400", "x"),
            ("linear", "", [put("x", X.astype(np.int32), "INT32")], None, "400",
             "FP32"),
            ("linear", "", [put("x", X)], get("z"), "400", "z"),
            ("pair", "", [put("a", X[:, :3])], None, "400", "b"),
        ],
        ids=["model", "version", "input", "extra", "shape", "datatype", "output",
             "missing"],
    )  # fmt: skip
    def test_errors(self, client, name, version, inputs, outputs, status, word):
        with pytest.raises(InferenceServerException) as raised:
            client.infer(name, inputs, version, outputs=outputs)
        assert raised.value.status() == status
        assert word in raised.value.message()

    def test_errors_beside_infer(self, client):
        for call in (
            lambda: client.get_model_metadata("nothing"),
            lambda: client.get_model_config("nothing"),
            lambda: client.get_inference_statistics("nothing"),
            lambda: client.load_model("nothing"),
            lambda: client.unload_model("nothing"),
        ):
            with pytest.raises(InferenceServerException, match="nothing"):
                call()

    def test_extensions_that_are_not_there_are_refused(self, client):
        for call in (
            client.get_trace_settings,
            client.get_log_settings,
            client.get_system_shared_memory_status,
        ):
            with pytest.raises(InferenceServerException) as raised:
                call()
            assert raised.value.status() == "404"

    def test_nan_in_and_out(self, client):
        array = np.array([[np.nan, np.inf, -np.inf, -0.0]])
        result = client.infer("identity_fp64", [put("x", array, "FP64")])
        assert result.as_numpy("y").tobytes() == array.tobytes()
        with pytest.raises(InferenceServerException) as raised:
            client.infer(
                "identity_fp64", [put("x", array, "FP64")],
                outputs=get("y", binary=False),
            )  # fmt: skip
        assert raised.value.status() == "422"


def test_the_asynchronous_tritonclient(device):
    async def calls():
        async with triton_aio.InferenceServerClient(device.address) as client:
            assert await client.is_server_ready()
            assert (await client.get_model_metadata("linear"))["name"] == "linear"
            rows = [np.full((1, 4), number / 10, np.float32) for number in range(32)]
            results = await asyncio.gather(
                *(
                    client.infer(
                        "linear", [put("x", row, binary=bool(place % 2))],
                        outputs=get("y", binary=bool(place % 3)),
                        request_id=str(place),
                        request_compression_algorithm=CODINGS[place % 3],
                        response_compression_algorithm=CODINGS[place % 2],
                    )
                    for place, row in enumerate(rows)
                )
            )  # fmt: skip
            for place, (row, result) in enumerate(zip(rows, results, strict=True)):
                assert result.get_response()["id"] == str(place)
                close(result.as_numpy("y"), np.maximum(row @ WEIGHT, 0))
            with pytest.raises(InferenceServerException) as raised:
                await client.infer("nothing", [put("x", X)])
            assert raised.value.status() == "404"
            await client.load_model("fixed")
            assert await client.get_inference_statistics("linear")

    asyncio.run(calls())


def curl(*arguments: object, code: int = 0) -> str:
    done = subprocess.run(
        ["curl", "-sS", "--max-time", "20", *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stdout


class TestCurl:
    """What the documentation shows."""

    BODY = json.dumps(
        {"inputs": [{"name": "x", "shape": [2, 4], "datatype": "FP32",
                     "data": X.ravel().tolist()}]}
    )  # fmt: skip

    def outputs(self, text: str) -> np.ndarray:
        [one] = json.loads(text)["outputs"]
        return np.array(one["data"], np.float32).reshape(one["shape"])

    def test_health(self, device):
        for word in ("live", "ready"):
            curl("-f", f"{device.url}/v2/health/{word}")

    def test_infer(self, device):
        url = f"{device.url}/v2/models/linear/infer"
        close(self.outputs(curl(url, "-d", self.BODY)))
        close(self.outputs(curl(url, "--json", self.BODY)))
        close(self.outputs(curl("--compressed", url, "-d", self.BODY)))
        close(self.outputs(curl("--http1.0", url, "-d", self.BODY)))
        close(self.outputs(curl("-H", "Expect: 100-continue", url, "-d", self.BODY)))

    def test_infer_of_a_file_in_chunks(self, device, tmp_path):
        path = tmp_path / "request.json"
        path.write_text(self.BODY)
        url = f"{device.url}/v2/models/linear/infer"
        chunked = ("-H", "Transfer-Encoding: chunked", "-d", f"@{path}")
        close(self.outputs(curl(url, *chunked)))

    def test_raw_bytes(self, device, tmp_path):
        path = tmp_path / "image.bin"
        path.write_bytes(np.ones((1, 3, 8, 8), np.float32).tobytes())
        answer = tmp_path / "answer.bin"
        curl(
            f"{device.url}/v2/models/fixed/infer", "--data-binary", f"@{path}",
            "-H", "Inference-Header-Content-Length: 0", "-o", answer,
        )  # fmt: skip
        # bytes for bytes: the outputs are what follows the JSON
        assert answer.read_bytes()[-12:] == np.ones(3, np.float32).tobytes()

    def test_the_unix_socket(self, device):
        there = ("--unix-socket", device.socket)
        facts = json.loads(curl(*there, "http://agent/v2"))
        assert "binary_tensor_data" in facts["extensions"]
        url = "http://agent/v2/models/linear/infer"
        close(self.outputs(curl(*there, url, "-d", self.BODY)))

    def test_errors_are_json(self, device):
        url = f"{device.url}/v2/models/nothing/infer"
        assert "nothing" in json.loads(curl(url, "-d", self.BODY))["error"]
        curl("-f", url, "-d", self.BODY, code=22)

    def test_index_statistics_and_metrics(self, device):
        index = json.loads(curl("-X", "POST", f"{device.url}/v2/repository/index"))
        assert "linear" in {one["name"] for one in index}
        stats = json.loads(curl(f"{device.url}/v2/models/linear/stats"))
        assert stats["model_stats"][0]["name"] == "linear"
        assert "nv_inference_request_success" in curl(f"{device.url}/metrics")

    def test_predict(self, device, tmp_path):
        path = tmp_path / "rows.csv"
        path.write_text("\n".join(",".join(map(str, row)) for row in X.tolist()))
        url = f"{device.url}/v1/models/linear/predict"
        assert json.loads(curl("-T", path, url))


KSERVE = """
import asyncio, sys
import numpy as np
from httpx import HTTPStatusError
from kserve import InferInput, InferRequest
from kserve.inference_client import InferenceRESTClient, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

X = np.array({x}, np.float32)

def request(binary, **more):
    one = InferInput("x", list(X.shape), "FP32")
    one.set_data_from_numpy(X, binary_data=binary)
    return InferRequest("linear", [one], **more)

async def main(url):
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    assert await client.is_server_live(url) is True
    assert await client.is_server_ready(url) is True
    assert await client.is_model_ready(url, "linear") is True
    assert await client.is_model_ready(url, "nothing") is False
    for binary in (True, False):
        for want in (None, True, False):
            more = {{}} if want is None else {{"request_outputs": [
                RequestedOutput("y", parameters={{"binary_data": want}})]}}
            response = await client.infer(
                url, request(binary, request_id="7", **more), model_name="linear")
            assert response.id == "7" and response.model_name == "linear"
            found = response.outputs[0].as_numpy()
            np.testing.assert_allclose(found, {y}, rtol=1e-5, atol=1e-6)
    body = {{"inputs": [{{"name": "x", "shape": [2, 4], "datatype": "FP32",
                          "data": X.tolist()}}]}}
    response = await client.infer(url, body, model_name="linear")
    np.testing.assert_allclose(response.outputs[0].as_numpy(), {y}, rtol=1e-5)
    try:
        await client.infer(url, request(False), model_name="nothing")
    except HTTPStatusError as error:
        assert error.response.status_code == 404 and "nothing" in str(error), error
    else:
        raise AssertionError("nothing was refused")
    await client.close()

asyncio.run(main(sys.argv[1]))
print("kserve is content")
"""


@pytest.fixture(scope="session")
def kserve_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with KServe's client, whose needs are not those of ours."""
    folder = tmp_path_factory.mktemp("kserve")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    done = subprocess.run(
        [python, "-m", "pip", "install", "-q", "kserve==0.21.*"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return python


@pytest.mark.slow
def test_the_client_of_kserve(device, kserve_python, tmp_path):
    script = tmp_path / "calls.py"
    script.write_text(KSERVE.format(x=X.tolist(), y=Y.tolist()))
    done = subprocess.run(
        [kserve_python, script, device.url], cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "kserve is content\n", done.stderr
