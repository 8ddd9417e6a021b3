"""The OpenAPI document against the server that serves it: what it says is so.

Schemathesis makes requests of the document, right ones and wrong ones. Load and unload
are asked of a model of their own, so that the others stay.
"""

import re

import pytest
import requests
import schemathesis
import zoo
from agents import Agent, agent
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

KNOWN, MOVED = "linear", "fixed"
"""The model that is asked, and the one that is loaded and unloaded."""
OPERATIONS = (
    "GET /v2",
    "GET /v2/health/live",
    "GET /v2/health/ready",
    "GET /v2/models/stats",
    "GET /v2/models/{name}",
    "GET /v2/models/{name}/config",
    "GET /v2/models/{name}/ready",
    "GET /v2/models/{name}/stats",
    "GET /v2/models/{name}/versions/{version}",
    "GET /v2/models/{name}/versions/{version}/config",
    "GET /v2/models/{name}/versions/{version}/ready",
    "GET /v2/models/{name}/versions/{version}/stats",
    "POST /v2/models/{name}/infer",
    "POST /v2/models/{name}/versions/{version}/infer",
    "POST /v2/repository/index",
    "POST /v2/repository/models/{name}/load",
    "POST /v2/repository/models/{name}/unload",
    "POST /v1/models/{name}/predict",
    "PUT /v1/models/{name}/predict",
    "POST /v1/models/{name}/versions/{version}/predict",
    "PUT /v1/models/{name}/versions/{version}/predict",
    "GET /metrics",
    "GET /v1/device",
)
ABOUT_A_MODEL = tuple(one for one in OPERATIONS if "{" in one)
CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]
bounded = settings(
    max_examples=12,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory):
    bundles = zoo.write(tmp_path_factory.mktemp("openapi"), KNOWN, "pair", MOVED)
    with agent(bundles) as started:
        yield started


@pytest.fixture(scope="module")
def document(device: Agent):
    return requests.get(f"{device.url}/openapi.json", timeout=20).json()


@pytest.fixture(scope="module")
def api(device: Agent):
    return schemathesis.openapi.from_url(f"{device.url}/openapi.json")


@pytest.fixture(scope="module")
def session():
    with requests.Session() as made:
        yield made


def _ask(api, session, operation: str, mode: GenerationMode, **fixed) -> None:
    """Make requests of one operation, and hold every answer to the document."""
    method, path = operation.split()
    parameters = {name: value for name, value in fixed.items() if f"{{{name}}}" in path}
    cases = api[path][method].as_strategy(mode, path_parameters=parameters)

    @bounded
    @given(case=cases)
    def run(case):
        case.call_and_validate(session=session, checks=CHECKS)

    run()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_right_requests(api, session, operation):
    name = MOVED if operation.endswith("load") else KNOWN
    _ask(api, session, operation, GenerationMode.POSITIVE, name=name, version="1.0.0")


@pytest.mark.parametrize("operation", [one for one in OPERATIONS if "POST" in one])
def test_wrong_requests(api, session, operation):
    name = MOVED if operation.endswith("load") else KNOWN
    _ask(api, session, operation, GenerationMode.NEGATIVE, name=name, version="1.0.0")


@pytest.mark.parametrize("operation", ABOUT_A_MODEL)
def test_requests_about_any_name(api, session, operation):
    """Names as they are generated: hardly one of them is a model's."""
    _ask(api, session, operation, GenerationMode.POSITIVE)


@pytest.mark.parametrize("name", [KNOWN, "pair"])
def test_the_models_are_still_there(device, name):
    """After all of the above."""
    answer = requests.get(f"{device.url}/v2/models/{name}/ready", timeout=20)
    assert answer.status_code == 200


def test_every_operation_is_asked(document):
    described = {
        f"{method.upper()} {path}"
        for path, operations in document["paths"].items()
        for method in operations
    }
    assert described == set(OPERATIONS)


def test_every_operation_says_what_it_is(document):
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation.get("summary"), (method, path)
            assert "200" in operation["responses"], (method, path)


def test_errors_are_described(document):
    for operations in document["paths"].values():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                if status >= "400":
                    [reference] = answer["content"]["application/json"][
                        "schema"
                    ].values()
                    assert reference.endswith("/Error")
    error = document["components"]["schemas"]["Error"]
    assert set(error["properties"]) == {"error"}


def test_the_page_of_the_documentation(device):
    """It works on a device that has no way to the internet."""
    answer = requests.get(f"{device.url}/docs", timeout=20)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert not re.search(r"""(src|href)=["'](https?:)?//""", answer.text)
