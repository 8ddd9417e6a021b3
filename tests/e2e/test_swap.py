"""Swaps under load, of a real agent: nobody notices but by the answers."""

import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import bundles
import numpy as np
import onnx
import pytest
from agents import Agent, agent
from callers import Callers, X, calling, post
from onnx import TensorProto, helper, numpy_helper

from device_agent.contract.golden import Bound, write_golden
from edgeml.bundling.bundle import pack

WIDTH = 100_000
"""Hidden units: 2.8 MB of weights, so that a session that is not freed shows."""
GROWTH_BYTES = 8 << 20

_rng = np.random.default_rng(0)
_FIRST = _rng.standard_normal((4, WIDTH), dtype=np.float32)
_LAST = _rng.standard_normal((WIDTH, 3), dtype=np.float32) / np.float32(WIDTH)


def answer(x: Any, number: int) -> Any:
    """What version ``number`` says: as many times what version 1 says."""
    return np.maximum(x @ _FIRST, 0) @ (_LAST * np.float32(number))


def bundle(number: int) -> bytes:
    value = partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "first"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "last"], ["y"]),
        ],
        "wide", [value("x", shape=["n", 4])], [value("y", shape=["n", 3])],
        [numpy_helper.from_array(_FIRST, "first"),
         numpy_helper.from_array(_LAST * np.float32(number), "last")],
    )  # fmt: skip
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10
    )
    runs = bundles.vectors()
    outputs = [{"y": answer(run["x"], number)} for run in runs]
    members = bundles.members()
    members["artifact/model.onnx"] = (
        "artifact", onnx.ModelProto.SerializeToString(made),
    )  # fmt: skip
    members["golden.npz"] = (
        "golden", write_golden(runs, outputs, {"y": Bound(1e-5, 1e-3)}),
    )  # fmt: skip
    return pack(bundles.manifest(version=f"{number}.0.0"), members)


BUNDLES = {number: bundle(number) for number in (1, 2)}
WANT = {f"{number}.0.0": answer(X, number) for number in (1, 2)}


def check(document: Any) -> str:
    """The version that an answer names; it must be its own answer."""
    version = document["model_version"]
    (output,) = document["outputs"]
    np.testing.assert_allclose([output["data"]], WANT[version], 1e-3, 1e-5)
    return str(version)


def put(path: Path, number: int) -> None:
    part = path.with_suffix(".part")
    part.write_bytes(BUNDLES[number])
    part.replace(path)


def swap(device: Agent, path: Path, number: int) -> None:
    put(path, number)
    status, body = post(device.url, "/v2/repository/models/linear/load")
    assert status == 200, body


def goes_on(callers: Callers, number: int) -> None:
    """What is asked after the swap is answered by the new version."""
    assert {one.version for one in callers.more(16)} == {f"{number}.0.0"}


def settled_bytes(device: Agent, within_s: float = 20.0) -> int:
    """Its memory once the old version is gone, its files too."""
    end = time.monotonic() + within_s
    while len(list((device.state / "run").iterdir())) > 1:
        assert time.monotonic() < end, "the old version is still there"
        time.sleep(0.001)
    return device.rss_bytes()


def answered(callers: Callers) -> list[int]:
    """How often each version has answered."""
    versions = [one.version for one in callers.answers]
    return [versions.count(version) for version in WANT]


@pytest.mark.long
def test_a_hundred_swaps(tmp_path: Path) -> None:
    path = tmp_path / "linear.edgeml"
    put(path, 1)
    memory: list[int] = []
    with agent([path]) as device, calling(device.url, check) as callers:
        callers.more(50)
        for turn in range(100):
            number = 2 - turn % 2
            swap(device, path, number)
            goes_on(callers, number)
            memory.append(settled_bytes(device))
    assert callers.failures == []
    assert min(answered(callers)) > 500
    # the allocator gives back in steps; what a swap loses is in the least of them too
    grown = min(memory[-20:]) - min(memory[10:30])
    assert grown <= GROWTH_BYTES, f"{grown / 1e6:.1f} MB in 70 swaps: {memory}"
    assert median(memory[-20:]) - median(memory[10:30]) <= GROWTH_BYTES, memory


@pytest.mark.long
def test_swaps_with_room_for_one(tmp_path: Path) -> None:
    path = tmp_path / "linear.edgeml"
    put(path, 1)
    toml = '[model]\nswap = "memory"\n'
    with agent([path], toml) as device, calling(device.url, check) as callers:
        callers.more(50)
        for turn in range(10):
            number = 2 - turn % 2
            swap(device, path, number)
            goes_on(callers, number)
    for failure in callers.failures:
        assert (failure.status, failure.retry_after) == (503, "1"), failure
    assert min(answered(callers)) > 40
