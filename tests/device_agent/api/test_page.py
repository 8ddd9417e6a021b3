"""The pages: whole in themselves, and alive in a real browser."""

import base64
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import browsers
import bundles
import numpy as np
import pytest
import sites
import zoo
from PIL import Image

from device_agent.api import page
from device_agent.errors import AccessError

BYTES_MAX = 30_000
LOOKS = ({"decode_image": "L"}, {"resize": [2, 2]}, {"scale": 1 / 255},
         {"reshape": [4]})  # fmt: skip


@pytest.mark.parametrize("name", ["page", "docs"])
class TestDocument:
    def test_it_is_small(self, name):
        assert len(page.read(name).html) < BYTES_MAX

    def test_nothing_comes_from_elsewhere(self, name):
        text = page.read(name).html.decode()
        assert not re.search(r"""(src|href|action)\s*=\s*["']?(https?:)?//""", text)
        assert not re.search(r"@import|url\(", text)

    def test_the_policy_allows_what_stands_in_it_and_nothing_else(self, name):
        shown = page.read(name)
        policy = shown.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy
        for tag in ("style", "script"):
            (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", shown.html.decode(), re.S)
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"{tag}-src 'sha256-{digest}'" in policy

    def test_it_never_writes_markup(self, name):
        script = (Path(page.__file__).parent / f"{name}.js").read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|eval\(", script)


@pytest.mark.parametrize(("path", "name"), [("/", "page"), ("/docs", "docs")])
def test_it_is_served(tmp_path, path, name):
    with sites.site(tmp_path) as here:
        answer = here.ask("GET", path)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "content-security-policy" in answer.headers
    assert answer.content == page.read(name).html


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page")
    paths = zoo.write(folder, "linear", "pair", "fixed")
    for name, steps in (("eye", LOOKS), ("ear", ({"decode_wav": 8000},))):
        paths.append(folder / f"{name}.edgeml")
        raw = bundles.bundle(
            name=name, preprocess=steps, postprocess=({"top_k": 3},)
        )  # fmt: skip
        paths[-1].write_bytes(raw)
    with sites.server(folder, paths) as address:
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator[browsers.Tab]:
    if browsers.CHROMIUM is None:
        pytest.skip("chromium is not installed (apt install chromium)")
    with browsers.browser() as tab:
        yield tab


@pytest.fixture
def tab(chromium, url) -> Iterator[browsers.Tab]:
    chromium.errors.clear()
    chromium.look(1100, 900)
    chromium.open(f"{url}/")
    chromium.await_true("document.querySelectorAll('.try:not([hidden])').length == 5")
    yield chromium
    assert not chromium.errors


def card(name: str) -> str:
    return (
        "[...document.querySelectorAll('section')]"
        f".find(one => one.innerText.startsWith('{name}'))"
    )


def bars(name: str) -> str:
    return (
        f"[...{card(name)}.querySelectorAll('.bars li')]"
        ".map(one => one.innerText.replaceAll('\\n', ' '))"
    )


class TestModels:
    def test_every_model_is_shown(self, tab):
        names = tab.evaluate(
            "[...document.querySelectorAll('h2')].map(one => one.textContent)"
        )
        assert names == ["ear", "eye", "fixed", "linear", "pair"]
        text = tab.evaluate(f"{card('linear')}.innerText")
        assert "fp32 · cpu-x86_64 · onnxruntime · 200 B · top1 0.9" in text
        assert tab.evaluate("document.querySelector('#state').textContent") == "ready"
        assert tab.evaluate("document.querySelector('#version').textContent") == "1.2.3"

    def test_numbers_are_answered(self, tab):
        tab.evaluate(f"{card('linear')}.querySelector('textarea').value = '[1,1,1,1]'")
        tab.evaluate(f"{card('linear')}.querySelector('button[type=submit]').click()")
        tab.await_true(f"{bars('linear')}.length == 3")
        wanted = np.maximum(np.ones((1, 4), np.float32) @ bundles.WEIGHT, 0)[0]
        found = tab.evaluate(bars("linear"))
        assert found == [f"{at} {one:.3f}" for at, one in enumerate(wanted)]

    def test_what_is_filled_in_is_what_the_model_takes(self, tab):
        for name in ("linear", "pair", "fixed"):
            tab.evaluate(f"{card(name)}.querySelector('button[type=button]').click()")
            tab.await_true(f"!!{card(name)}.querySelector('.timing')")

    def test_a_refusal_is_shown(self, tab):
        tab.evaluate(f"{card('linear')}.querySelector('textarea').value = '[1]'")
        tab.evaluate(f"{card('linear')}.querySelector('button[type=submit]').click()")
        tab.await_true(f"!!{card('linear')}.querySelector('.answer .bad')")
        text = tab.evaluate(f"{card('linear')}.querySelector('.answer').innerText")
        assert "expected shape [-1, 4]" in text
        tab.errors.clear()  # the browser notes every answer that is no success

    def test_a_file_is_answered(self, tab, tmp_path):
        levels = np.array([[0, 51], [102, 255]], np.uint8)
        Image.fromarray(levels).save(tmp_path / "a.png")
        chosen = "section:nth-of-type(2) input[type=file]"
        tab.give(chosen, tmp_path / "a.png")
        tab.await_true(f"{bars('eye')}.length == 3")
        scores = np.maximum(levels.reshape(1, -1) / 255 @ bundles.WEIGHT, 0)[0]
        best = tab.evaluate(bars("eye"))[0]
        assert best == f"{'abc'[int(scores.argmax())]} {scores.max():.3f}"
        tab.await_true(f"{card('eye')}.querySelector('.shown img').naturalWidth == 2")

    def test_a_drawing_is_answered(self, tab):
        tab.evaluate(f"{card('fixed')}.querySelector('canvas').scrollIntoView()")
        left, top, side = tab.evaluate(
            f"(() => {{ const at = {card('fixed')}.querySelector('canvas')"
            ".getBoundingClientRect(); return [at.left, at.top, at.width]; })()"
        )
        tab.draw(*((left + side * x, top + side / 2) for x in (0.2, 0.5, 0.8)))
        tab.await_true(f"{bars('fixed')}.length == 3")
        scores = [float(line.split()[1]) for line in tab.evaluate(bars("fixed"))]
        assert 0.02 < scores[0] == scores[1] == scores[2] < 0.5

    def test_figures_are_alive(self, tab):
        figure = f"{card('pair')}.querySelector('[data-figure=requests]').textContent"
        before = int(tab.evaluate(figure))
        tab.evaluate(f"{card('pair')}.querySelector('button[type=submit]').click()")
        tab.await_true(f"{figure} == '{before + 1}'")
        latency = f"{card('pair')}.querySelector('[data-figure=latency]').textContent"
        tab.await_true(f"/^[0-9.]+ [µm]s$/.test({latency})")
        points = f"{card('pair')}.querySelector('polyline').getAttribute('points')"
        assert tab.evaluate(points)

    def test_a_model_that_leaves_says_so(self, tab):
        move = "fetch('/v2/repository/models/ear/{}', {{method: 'POST'}}).then(() => 1)"
        tab.evaluate(move.format("unload"))
        tab.await_true(f"{card('ear')}.innerText.includes('unavailable')")
        assert "unloaded" in tab.evaluate(f"{card('ear')}.innerText")
        tab.evaluate(move.format("load"))
        tab.await_true(f"!{card('ear')}.querySelector('.try').hidden")

    @pytest.mark.parametrize("width", [360, 1100])
    @pytest.mark.parametrize("dark", [False, True])
    def test_it_fits_the_window(self, tab, width, dark):
        tab.look(width, 800, dark)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        colour = "getComputedStyle(document.body).backgroundColor"
        red = int(re.findall(r"\d+", tab.evaluate(colour))[0])
        assert (red < 64) is dark


class TestDocs:
    @pytest.fixture
    def docs(self, chromium, url):
        chromium.errors.clear()
        chromium.look(1100, 900)
        chromium.open(f"{url}/docs")
        chromium.await_true("document.querySelectorAll('details').length > 20")
        yield chromium
        assert not chromium.errors

    def test_every_operation_is_there(self, docs):
        missing = docs.evaluate(
            "fetch('/openapi.json').then(got => got.json()).then(api =>"
            " Object.values(api.paths).flatMap(Object.values)"
            ".filter(one => !document.getElementById(one.operationId)).length)"
        )
        assert missing == 0

    def test_a_request_can_be_tried(self, docs):
        docs.evaluate("document.querySelector('#metadata form input').value = 'pair'")
        docs.evaluate("document.querySelector('#metadata form button').click()")
        answer = "document.querySelector('#metadata form + pre').textContent"
        docs.await_true(f"{answer}.startsWith('200')")
        assert '"name": "pair"' in docs.evaluate(answer)

    @pytest.mark.parametrize("width", [360, 1100])
    def test_it_fits_the_window(self, docs, width):
        docs.look(width, 800)
        docs.evaluate(
            "document.querySelectorAll('details').forEach(one => { one.open = true; })"
        )
        assert docs.evaluate("document.documentElement.scrollWidth") <= width


class Bearer:
    """A guard like that of a listener with a token, which lets the page out."""

    def check(self, scope) -> None:
        if scope["path"] == "/" or scope["path"].startswith("/v2/health"):
            return
        if (b"authorization", b"Bearer open sesame") not in scope["headers"]:
            raise AccessError("no token")


def test_a_token_is_asked_for_once(chromium, tmp_path):
    with sites.server(tmp_path, zoo.write(tmp_path, "linear"), Bearer()) as address:
        chromium.open(f"{address}/")
        chromium.await_true("!document.getElementById('token').hidden")
        chromium.evaluate(
            "document.querySelector('#token input').value = 'open sesame',"
            "document.querySelector('#token button').click()"
        )
        chromium.await_true("document.querySelectorAll('h2').length == 1")
        chromium.await_true("document.getElementById('token').hidden")
        chromium.open(f"{address}/")
        chromium.await_true("document.querySelectorAll('h2').length == 1")
