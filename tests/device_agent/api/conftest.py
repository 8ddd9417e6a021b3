"""A site whose models have steps, and how people ask them to predict."""

import io
import json
from pathlib import Path

import bundles
import httpx
import numpy as np
import pytest
import sites
import zoo
from PIL import Image

from device_agent.config import ModelConfig

EYE = ({"decode_image": "L"}, {"resize": [2, 2]}, {"reshape": [4]},
       {"scale": 1 / 255})  # fmt: skip
EAR = ({"decode_wav": 8000}, {"fit_length": 4})
LEVELS = np.array([[0, 51], [102, 255]], np.uint8)
ROW = [1.0, -2.0, 0.5, 3.0]
ROWS_MAX = 8


def png(levels: np.ndarray = LEVELS, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(levels).save(file, kind)
    return file.getvalue()


def linear(row: list[float]) -> list[float]:
    x = np.array([row], np.float32)
    return np.maximum(x @ bundles.WEIGHT, 0)[0].tolist()


def write(folder: Path, name: str, **changes: object) -> Path:
    path = folder / f"{name}.edgeml"
    weight = changes.pop("weight", bundles.WEIGHT)
    path.write_bytes(bundles.bundle(weight, name=name, **changes))
    return path


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    top = ({"top_k": 2},)
    paths = [
        *zoo.write(folder, "linear", "pair", "fixed", "identity_bool"),
        write(folder, "eye", preprocess=EYE, postprocess=top),
        write(folder, "ear", preprocess=EAR),
        write(folder, "scaled", preprocess=({"scale": 2.0},), postprocess=top),
        write(folder, "steep", weight=np.full((4, 3), 1e37, np.float32)),
        write(folder, "wrong", postprocess=({"select_output": "nothing"},)),
    ]
    with sites.site(folder, paths, model=ModelConfig(max_rows=ROWS_MAX)) as made:
        yield made


@pytest.fixture
def ask(here):
    def asked(name: str, body: object, kind: str = "", **options) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": kind} if kind else {}
        return here.ask(
            "POST", f"/v1/models/{name}/predict", content=content,
            headers=headers | options.pop("headers", {}), **options,
        )  # fmt: skip

    yield asked
    assert here.budget.used_bytes == 0


def outputs(answer: httpx.Response) -> list[float]:
    assert answer.status_code == 200, answer.text
    return answer.json()["outputs"]["y"][0]


def refusal(answer: httpx.Response, status: int = 400) -> str:
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"error"}
    return answer.json()["error"]
