"""Windows of a real repository: sums of records are sums of requests."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from repositories import House, linear, tell

from device_agent.serving.statistics import BUCKETS_US, Statistics
from device_agent.windows import MODELS_MAX, Counts, Windows

EVENTS = st.lists(
    st.sampled_from(["answer", "fail", "queue", "breaker", "window"]), max_size=60
)


@given(events=EVENTS, ns=st.integers(1, 10**11))
def test_records_add_up_to_what_was_counted(events: list[str], ns: int) -> None:
    counted, before = Statistics(), Counts()
    records: list[dict[str, Any]] = []
    for event in [*events, "window"]:
        if event == "answer":
            counted.answered(1, 0, ns, ns)
        elif event == "fail":
            counted.failed(ns)
        elif event == "window":
            now = Counts.of(counted)
            records.append(now.since(before))
            before = now
        else:
            counted.refuse(event)
    assert sum(one["requests"] for one in records) == (
        counted.success.count + counted.fail.count
    )
    assert sum(one["failures"] for one in records) == counted.fail.count
    refused: dict[str, int] = {}
    latency: dict[str, int] = {}
    for one in records:
        for total, part in ((refused, "refused"), (latency, "latency_us")):
            for key, count in one.get(part, {}).items():
                assert count > 0
                total[key] = total.get(key, 0) + count
    assert refused == counted.refused
    edges = [*map(str, BUCKETS_US), "inf"]
    assert [latency.get(edge, 0) for edge in edges] == counted.histogram


def test_a_window_holds_what_was_asked_since_the_last_one(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        await house.repository.install(house.write(linear(1)))
        windows = Windows(house.repository.served, lambda *_: None)
        assert await house.ask() == 1
        assert await house.ask() == 1
        first, second = windows.take(300.0), windows.take(300.0)
        (one,) = first["models"]
        assert (one["model"], one["version"]) == ("linear", "1.0.0")
        assert (one["requests"], one["failures"]) == (2, 0)
        assert sum(one["latency_us"].values()) == 2
        assert second["models"] == [
            {"model": "linear", "version": "1.0.0", "requests": 0, "failures": 0}
        ]
        assert first["rss_bytes"] > 1 << 20

    tell(tmp_path, story)


def test_another_version_counts_from_nothing(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        await house.repository.install(house.write(linear(1)))
        windows = Windows(house.repository.served, lambda *_: None)
        await house.ask()
        windows.take(1.0)
        await house.repository.install(house.write(linear(2)))
        assert await house.ask() == 2
        found = {one["version"]: one["requests"] for one in windows.take(1.0)["models"]}
        assert found["2.0.0"] == 1

    tell(tmp_path, story)


def test_a_record_is_bounded() -> None:
    def served() -> Iterator[Any]:
        for number in range(100):
            counted = Statistics()
            for edge in (*BUCKETS_US, 10**9):
                for _ in range(number):
                    counted.answered(1, 0, 0, edge * 1000)
            yield SimpleNamespace(
                name="m" * 64, version=f"{number}.0.0", statistics=counted
            )

    record = Windows(served, lambda *_: None).take(1.0)
    assert [one["version"] for one in record["models"][:2]] == ["99.0.0", "98.0.0"]
    assert len(record["models"]) == MODELS_MAX
    assert len(json.dumps(record)) < 16 << 10


def test_one_record_an_interval() -> None:
    kept: list[tuple[str, dict[str, Any], float]] = []

    async def main() -> None:
        windows = Windows(tuple, lambda *record: kept.append(record))
        task = asyncio.create_task(windows.run(0.01))
        async with asyncio.timeout(20):
            while len(kept) < 3:
                await asyncio.sleep(0.005)
        task.cancel()

    asyncio.run(main())
    assert {kind for kind, _, _ in kept} == {"window"}
    assert all(body["s"] >= 0.01 for _, body, _ in kept)
    assert all(at > 1_600_000_000 for _, _, at in kept)
