"""Which server is held to the protocol: any by its URL, else our agent, started here.

A case skips, by name, where the server has not the model or the extension it needs. A
case marked ``ours`` asks for more than the protocol does; it is for our agent alone.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .protocol import Model, model_of, refused
from .wire import Answer, Server

_OPTIONS = {
    "url": "server to test, http://HOST:PORT; without it our agent is started",
    "model": "a model of the server, for the cases that take any (default: linear)",
    "pair": "a model with two inputs and two outputs (default: pair)",
    "unloadable": "a model that may be unloaded and loaded (default: fixed, if ours)",
    "extensions": "extensions that it has and does not list in /v2, comma-separated",
    "token": "bearer token that the server wants",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("oip", "Open Inference Protocol v2 conformance")
    for name, text in _OPTIONS.items():
        group.addoption(f"--oip-{name}", metavar="X", help=f"{text}; or OIP_{name}")
    group.addoption(
        "--oip-strict", action="store_true", help="hold another server to our rules too"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "ours: more than the protocol asks for")
    config.addinivalue_line("markers", "extension(name): needs that extension of /v2")


def setting(config: pytest.Config, name: str) -> str | None:
    """An option, or the environment variable that stands for it."""
    given: str | None = config.getoption(f"--oip-{name}", default=None)
    return given or os.environ.get(f"OIP_{name.upper()}")


@pytest.fixture(scope="session")
def ours(pytestconfig: pytest.Config) -> bool:
    """Whether the server is our agent and held to all that we promise."""
    strict = pytestconfig.getoption("--oip-strict", default=False)
    return bool(strict) or setting(pytestconfig, "url") is None


@pytest.fixture(scope="session")
def server(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The server under test."""
    token = setting(pytestconfig, "token")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = setting(pytestconfig, "url")
    if url is not None:
        # ours has to do without, others may not
        yield Server(url, {**headers, "Content-Type": "application/json"})
        return
    # Only here: the suite must run where our packages are not installed.
    import zoo
    from agents import agent

    with agent(zoo.write(tmp_path_factory.mktemp("oip"))) as device:
        yield Server(device.url, headers)


@pytest.fixture(scope="session")
def extensions(server: Server, pytestconfig: pytest.Config) -> frozenset[str]:
    named = (setting(pytestconfig, "extensions") or "").split(",")
    return frozenset(server.get("/v2").json.get("extensions", [])) | {*named} - {""}


@pytest.fixture(autouse=True)
def _fits(request: pytest.FixtureRequest, ours: bool) -> None:
    if request.node.get_closest_marker("ours") and not ours:
        pytest.skip("more than the protocol asks for")
    for mark in request.node.iter_markers("extension"):
        if mark.args[0] not in request.getfixturevalue("extensions"):
            pytest.skip(f"the server does not list the extension {mark.args[0]}")


@pytest.fixture(scope="session")
def model(server: Server, pytestconfig: pytest.Config) -> Model:
    """Any model."""
    return model_of(server, setting(pytestconfig, "model") or "linear")


@pytest.fixture
def pair(server: Server, pytestconfig: pytest.Config) -> Model:
    """Two inputs, two outputs."""
    found = model_of(server, setting(pytestconfig, "pair") or "pair")
    assert len(found.inputs) == len(found.outputs) == 2
    return found


@pytest.fixture
def identity(server: Server) -> Callable[[str], Model]:
    """The model that gives back what it is given, by datatype."""
    return lambda datatype: model_of(server, f"identity_{datatype.lower()}")


@pytest.fixture
def unloadable(server: Server, pytestconfig: pytest.Config, ours: bool) -> Model:
    """A model that the case may unload; it loads it again."""
    name = setting(pytestconfig, "unloadable") or ("fixed" if ours else None)
    if name is None:
        pytest.skip("no model may be unloaded (--oip-unloadable)")
    return model_of(server, name)


@pytest.fixture
def refuses(ours: bool) -> Callable[..., str]:
    """Check of a refusal: ``refuses(answer, statuses of ours…)`` gives its text."""

    def check(answer: Answer, *statuses: int) -> str:
        return refused(answer, *statuses, strict=ours)

    return check


@pytest.fixture
def infer(server: Server, model: Model) -> Callable[..., Answer]:
    """POST to the model's infer."""

    def post(body: Any, headers: dict[str, str] | None = None) -> Answer:
        return server.post(f"{model.path}/infer", body, headers)

    return post


@pytest.fixture(scope="module", autouse=True)
def _still_there(server: Server) -> Iterator[None]:
    """Whatever the cases of a file did, the server is live after them."""
    yield
    assert server.get("/v2/health/live").status == 200
