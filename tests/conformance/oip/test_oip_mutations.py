"""Requests with something broken in them, thousands, the same at every run.

Whatever comes: an answer that keeps the protocol, or an error that says why.
"""

import gzip
import http.client
import json
import random
import zlib
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest

from .protocol import HEADER, Model, answered, binary, refused
from .wire import Answer

REQUESTS = 1500
ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 2**63, 2**64, -(2**63) - 1, 10**30, 1e308, "", "x", "\0",
    [], {}, [[]], [None], {"a": 1}, "binary_data_size", "y",
)  # fmt: skip
LENGTHS = ("0", "1", "-1", "9999", "", "abc", "00000000010")
EXPECTED = (400, 413, 422, 429, 503, 504)


class Mutations:
    """Breaks good requests; the seed says how."""

    def __init__(self, model: Model, seed: int) -> None:
        self._model = model
        self._random = random.Random(seed)

    def request(self) -> tuple[bytes, dict[str, str]]:
        chance = self._random
        names = [one.name for one in self._model.inputs]
        good = binary(
            self._model,
            self._model.samples(rows=2),
            json_inputs=[name for name in names if chance.random() < 0.5],
            id="a",
            parameters={"binary_data_output": chance.random() < 0.5},
            outputs=[
                {"name": one.name, "parameters": {"binary_data": chance.random() < 0.5}}
                for one in self._model.outputs
            ],
        )
        if chance.random() < 0.5:
            for _ in range(chance.randint(1, 2)):
                self._change(good.document)
            headers = {HEADER: str(len(good.head))}
            return good.head + good.tail, headers
        headers = {HEADER: str(len(good.head))}
        body = self._scratch(bytearray(good.head + good.tail))
        if chance.random() < 0.2:
            headers[HEADER] = chance.choice(LENGTHS)
        if chance.random() < 0.2:
            headers["Content-Encoding"] = chance.choice(["gzip", "deflate"])
            if headers["Content-Encoding"] == "gzip":
                body = gzip.compress(body, mtime=0)  # the same bytes every time
            else:
                body = zlib.compress(body)
            if chance.random() < 0.5:
                body = self._scratch(bytearray(body))
        return body, headers

    def _change(self, document: dict[str, Any]) -> None:
        """Drop a member or item, or put something odd in its place."""
        places = list(_places(document))
        if places:
            where, key = self._random.choice(places)
            if self._random.random() < 0.2:
                del where[key]
            else:
                where[key] = deepcopy(self._random.choice(ODD))

    def _scratch(self, body: bytearray) -> bytes:
        """Change, insert, drop or double some bytes."""
        chance = self._random
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(body) + 1)
            match chance.choice("cidr"):
                case "c":
                    body[place : place + 1] = chance.randbytes(1)
                case "i":
                    body[place:place] = chance.randbytes(chance.randint(1, 8))
                case "d":
                    del body[place : place + chance.randint(1, 20)]
                case "r":
                    body[place:place] = body[place : place + 50]
        return bytes(body)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


@pytest.mark.ours
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", ["model", "pair"])
def test_broken_requests(server, request, name, seed):
    model = request.getfixturevalue(name)
    mutations = Mutations(model, seed)
    connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
    for _ in range(REQUESTS):
        body, headers = mutations.request()
        answer = server.ask(connection, "POST", f"{model.path}/infer", body, headers)
        try:
            _fits(answer)
        except (AssertionError, ValueError) as error:
            pytest.fail(f"{error}\n{headers}\n{body!r}\n{answer}")
    connection.close()


def _fits(answer: Answer) -> None:
    if answer.status == 200:
        answered(answer)
    else:
        refused(answer, *EXPECTED)


def test_the_mutations_are_broken_json_and_not():
    """They reach beyond the JSON parser, and are the same every time."""
    from .protocol import Tensor

    x, y = Tensor("x", "FP32", (-1, 4)), Tensor("y", "FP32", (-1, 3))
    model = Model("m", (x,), (y,), ("1",), "any")
    first, second = Mutations(model, 7), Mutations(model, 7)
    bodies = [first.request() for _ in range(200)]
    assert bodies == [second.request() for _ in range(200)]
    whole = 0
    for body, headers in bodies:
        try:
            json.loads(body[: int(headers[HEADER])])
            whole += 1
        except ValueError:
            continue
    assert 60 < whole < 180
