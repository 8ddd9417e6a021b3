"""Faulty bundles: each is refused with its reason, and the active model never notices.

Once in this process, through the repository, and once over HTTP, where an operator has
put the faulty file in place of the good one.
"""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bundles
import faulty
import numpy as np
import psutil
import pytest
from agents import Agent, agent
from callers import Callers, X, calling, post
from faulty import FAULTS, SANDBOX, Fault
from repositories import House, linear, remembering

from device_agent.config import ModelConfig
from device_agent.errors import RefusedError

GROWTH_BYTES = 24 << 20
"""Far below what any of them asks for, above what one refusal leaves free in heaps."""
PAUSE_S = 0.01
"""Between two questions of a caller: hundreds a second, and the rest of the time is
the machine's.
"""
WANT = np.maximum(X @ bundles.WEIGHT, 0)
EACH = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
FIRST = {fault.step: fault.name for fault in reversed(FAULTS)}
"""One fault of every step: asked for over HTTP in the default run."""
EACH_OVER_HTTP = pytest.mark.parametrize(
    "fault",
    [
        pytest.param(one, marks=() if one.name in FIRST.values() else pytest.mark.long)
        for one in FAULTS
    ],
    ids=lambda fault: fault.name,
)


@pytest.fixture(scope="module")
def made() -> dict[str, bytes]:
    return {fault.name: fault.make() for fault in FAULTS}


def test_there_are_enough_of_them() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 16
    assert {fault.step for fault in FAULTS} >= {
        "bundle", "steps", "isa", "runtime", "load", "signature", "golden", "limits",
    }  # fmt: skip


@EACH
def test_in_one_process(fault: Fault, made: dict[str, bytes], tmp_path: Path) -> None:
    async def story(house: House) -> None:
        good = await house.repository.install(house.write(linear(1)))
        memory = psutil.Process().memory_info().rss
        ended = asyncio.Event()
        answers: list[int] = []

        async def ask() -> None:
            while not ended.is_set():
                answers.append(await house.ask())
                await asyncio.sleep(PAUSE_S)

        async def more() -> None:
            seen = len(answers)
            while len(answers) < seen + 8:
                assert not any(caller.done() for caller in callers)
                await asyncio.sleep(0.001)

        callers = [asyncio.create_task(ask()) for _ in range(4)]
        await more()
        with pytest.raises(RefusedError) as caught:
            await house.repository.install(house.write(made[fault.name]))
        await more()
        ended.set()
        await asyncio.gather(*callers)  # none has failed
        assert set(answers) == {1}
        assert caught.value.step == fault.step
        assert re.search(fault.text, caught.value.reason), caught.value.reason
        assert house.repository.route("linear") is good
        assert house.repository.ready
        assert house.unpacked() == 1
        grown = psutil.Process().memory_info().rss - memory
        assert grown < GROWTH_BYTES, f"{grown / 1e6:.1f} MB more"

    lane = ModelConfig(inline_us=0.0)  # over HTTP it is asked inline
    remembering(tmp_path, story, sandbox=SANDBOX, model=lane)


def check(document: Any) -> str:
    (output,) = document["outputs"]
    np.testing.assert_allclose([output["data"]], WANT, 1e-5)
    return str(document["model_version"])


class TestOverHttp:
    """One agent for all of them, one after another, under load."""

    @pytest.fixture(scope="class")
    def path(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp("bundles") / "linear.edgeml"
        path.write_bytes(linear(1))
        return path

    @pytest.fixture(scope="class")
    def device(self, path: Path) -> Iterator[Agent]:
        with agent([path], faulty.TOML) as device:
            yield device

    @pytest.fixture(scope="class")
    def callers(self, device: Agent) -> Iterator[Callers]:
        with calling(device.url, check, count=4, pause_s=PAUSE_S) as callers:
            yield callers
        assert callers.failures == []
        assert {one.version for one in callers.answers} == {"1.0.0"}

    @pytest.fixture(scope="class")
    def at_first(self, device: Agent, callers: Callers) -> int:
        """Its memory when everything has been asked once."""
        callers.more(100)
        assert post(device.url, "/v2/repository/models/linear/load")[0] == 200
        assert post(device.url, "/v2/repository/index")[0] == 200
        return device.rss_bytes()

    @EACH_OVER_HTTP
    def test_refused(
        self, fault: Fault, made: dict[str, bytes], device: Agent, path: Path,
        callers: Callers, at_first: int,
    ) -> None:  # fmt: skip
        path.write_bytes(made[fault.name])
        status, body = post(device.url, "/v2/repository/models/linear/load")
        assert status == 400
        assert list(body) == ["error"]
        step, _, reason = body["error"].partition(": ")
        assert step == fault.step
        assert re.search(fault.text, reason), reason
        callers.more(20)
        assert callers.failures == []
        lines = post(device.url, "/v2/repository/index")[1]
        ready = [one for one in lines if one["state"] == "READY"]
        assert [one["version"] for one in ready] == ["1.0.0"]
        assert body["error"] in "".join(one["reason"] for one in lines)
        assert len(list((device.state / "run").iterdir())) == 1
        assert device.rss_bytes() - at_first < GROWTH_BYTES

    def test_a_good_one_is_taken_after_all(
        self, device: Agent, path: Path, callers: Callers
    ) -> None:
        path.write_bytes(bundles.bundle(version="1.0.0", release_counter=2))
        assert post(device.url, "/v2/repository/models/linear/load")[0] == 200
        callers.more(20)
        lines = post(device.url, "/v2/repository/index")[1]
        assert {(one["state"], one["reason"]) for one in lines} == {("READY", "")}
