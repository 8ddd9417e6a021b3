"""The hot path: health and inference, asked through ASGI with real sessions."""

import asyncio
import gzip
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import bundles
import httpx
import numpy as np
import pytest

from device_agent.api.app import Application
from device_agent.api.body import Budget
from device_agent.config import AgentConfig, ModelConfig
from device_agent.errors import AccessError
from device_agent.serving.lane import Lane
from device_agent.serving.repository import Repository

X = [[1.0, 2.0, 3.0, 4.0]]
Y = np.maximum(np.array(X, np.float32) @ bundles.WEIGHT, 0)
INFER = "/v2/models/linear/infer"


class Open:
    """Everybody may come in."""

    def check(self, scope: Any) -> None:
        return None


class Shut:
    """Nobody may."""

    def check(self, scope: Any) -> None:
        raise AccessError("a token is needed")


def document(data: Any = X, **more: Any) -> bytes:
    item = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": data}
    return json.dumps({"inputs": [item], **more}).encode()


Story = Callable[[httpx.AsyncClient, Application, Repository, Budget], Awaitable[None]]


@pytest.fixture
def tell(tmp_path: Path) -> Callable[..., None]:
    """Run a story against an application that serves ``linear``."""

    def run(story: Story, guard: Any = None, model: ModelConfig | None = None) -> None:
        async def main() -> None:
            config = AgentConfig(tmp_path / "state", model=model or ModelConfig())
            bundle = tmp_path / "linear.edgeml"
            bundle.write_bytes(bundles.bundle())
            lane = Lane("test")
            repository = Repository(config, (lane,))
            await repository.install(bundle)
            budget = Budget(1 << 20)
            application = Application(
                repository, budget, guard or Open(), 1 << 20, lambda: people
            )
            transport = httpx.ASGITransport(application)  # type: ignore[arg-type]
            async with httpx.AsyncClient(
                transport=transport, base_url="http://device"
            ) as client:
                await story(client, application, repository, budget)
            assert budget.used_bytes == 0, "every request gave its bytes back"
            await repository.close()
            lane.close()

        asyncio.run(main())

    return run


async def people(scope: Any, receive: Any, send: Any) -> None:
    start = {"type": "http.response.start", "status": 200, "headers": []}
    await send(start)
    await send({"type": "http.response.body", "body": b"for people"})


@pytest.mark.parametrize("inline_us", [1e6, 0.0], ids=["inline", "lane"])
def test_answers_as_the_model_does(tell: Callable[..., None], inline_us: float) -> None:
    async def story(client: httpx.AsyncClient, *_: Any) -> None:
        for path in (INFER, "/v2/models/linear/versions/1.0.0/infer"):
            answer = await client.post(path, content=document(id="7"))
            assert answer.status_code == 200, answer.text
            assert answer.headers["content-type"] == "application/json"
            found = answer.json()
            assert (found["model_name"], found["model_version"]) == ("linear", "1.0.0")
            assert found["id"] == "7"
            (output,) = found["outputs"]
            assert output["shape"] == [1, 3]
            np.testing.assert_allclose([output["data"]], Y, rtol=1e-6)

    tell(story, model=ModelConfig(inline_us=inline_us))


def test_binary_both_ways_and_compressed(tell: Callable[..., None]) -> None:
    async def story(client: httpx.AsyncClient, *_: Any) -> None:
        rows = np.tile(np.array(X, np.float32), (100, 1))
        item = {"name": "x", "shape": [100, 4], "datatype": "FP32",
                "parameters": {"binary_data_size": rows.nbytes}}  # fmt: skip
        head = json.dumps(
            {"inputs": [item], "parameters": {"binary_data_output": True}}
        ).encode()
        answer = await client.post(
            INFER, content=gzip.compress(head + rows.tobytes()),
            headers={"Inference-Header-Content-Length": str(len(head)),
                     "Content-Encoding": "gzip", "Accept-Encoding": "identity"},
        )  # fmt: skip
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/octet-stream"
        cut = int(answer.headers["inference-header-content-length"])
        found = np.frombuffer(answer.content[cut:], np.float32).reshape(100, 3)
        np.testing.assert_allclose(found, np.repeat(Y, 100, 0), rtol=1e-6)
        item["data"] = rows.reshape(-1).tolist()
        del item["parameters"]
        answer = await client.post(
            INFER, content=json.dumps({"inputs": [item]}).encode(),
            headers={"Accept-Encoding": "gzip"},
        )  # fmt: skip
        assert "content-encoding" not in answer.headers, "a small answer stays"

    tell(story)


def test_health_and_ready(tell: Callable[..., None]) -> None:
    async def story(
        client: httpx.AsyncClient, application: Application, repository: Repository,
        budget: Budget,
    ) -> None:  # fmt: skip
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/linear/ready",
                     "/v2/models/linear/versions/1.0.0/ready"):  # fmt: skip
            assert (await client.get(path)).status_code == 200, path
        answer = await client.get("/v2/models/linear/versions/9/ready")
        assert answer.status_code == 404
        assert "9" in answer.json()["error"]
        application.stopping = True
        assert (await client.get("/v2/health/ready")).status_code == 503
        assert (await client.get("/v2/health/live")).status_code == 200
        application.stopping = False
        await repository.unload("linear")
        for path in ("/v2/health/ready", "/v2/models/linear/ready"):
            answer = await client.get(path)
            assert answer.status_code == 503, path
            assert answer.json()["error"]
        assert (await client.post(INFER, content=document())).status_code == 503

    tell(story)


def test_errors_are_one_sentence(tell: Callable[..., None]) -> None:
    async def story(client: httpx.AsyncClient, *_: Any) -> None:
        for path, content, status in (
            (INFER, b"{", 400),
            (INFER, b"", 400),
            (INFER, document([["a", 1, 2, 3]]), 400),
            ("/v2/models/nobody/infer", document(), 404),
            ("/v2/models/%00/infer", document(), 404),
            (INFER, b"x" * (1 << 20), 413),
        ):
            answer = await client.post(path, content=content)
            assert answer.status_code == status, (path, answer.text)
            assert answer.headers["content-type"] == "application/json"
            assert list(answer.json()) == ["error"]
        answer = await client.get(INFER)
        assert answer.status_code == 405
        assert answer.headers["allow"] == "POST"
        answer = await client.post(
            INFER, content=document(), headers={"Inference-Header-Content-Length": "x"}
        )
        assert answer.status_code == 400
        assert "expected a number of bytes" in answer.json()["error"]

    tell(story)


def test_the_guard_stands_before_everything(tell: Callable[..., None]) -> None:
    async def story(client: httpx.AsyncClient, *_: Any) -> None:
        for path in (INFER, "/v2/health/ready", "/docs"):
            answer = await client.get(path)
            assert answer.status_code == 401
            assert answer.json() == {"error": "a token is needed"}

    tell(story, guard=Shut())


def test_everything_else_is_for_people(tell: Callable[..., None]) -> None:
    async def story(client: httpx.AsyncClient, *_: Any) -> None:
        answers = await asyncio.gather(*(client.get("/docs") for _ in range(5)))
        assert {answer.text for answer in answers} == {"for people"}
        for number in range(3000):  # what callers make up is not remembered for ever
            await client.get(f"/made/up/{number}")

    tell(story)


def test_an_answer_that_json_cannot_carry(
    tell: Callable[..., None], tmp_path: Path
) -> None:
    async def story(client: httpx.AsyncClient, *_: Any) -> None:
        huge = [[-3e38, -3e38, 3e38, 3e38]]
        answer = await client.post(INFER, content=document(huge))
        assert answer.status_code == 422
        assert "binary_data" in answer.json()["error"]
        answer = await client.post(
            INFER, content=document(huge, parameters={"binary_data_output": True})
        )
        assert answer.status_code == 200

    tell(story)
