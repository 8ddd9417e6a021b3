"""Figures are taken in turn, and kept."""

import multiprocessing
import time
from pathlib import Path

import bundles
import pytest

from device_agent.contract.errors import ArtifactError
from device_agent.contract.tensors import Array, Feeds
from device_agent.runtimes.base import Session
from edgeml.errors import BackendError, InputError, MachineLacks
from edgeml.evaluation.measure import (
    MeasurementStore,
    latency,
    machine_name,
    peak_memory,
)
from edgeml.outcome import Latency


class Sleeper(Session):
    """Takes a known time per run and notes the order of the runs."""

    def __init__(self, name: str, seconds: float, order: list[str]) -> None:
        self.name, self.seconds, self.order = name, seconds, order

    def predict(self, feeds: Feeds) -> dict[str, Array]:
        self.order.append(self.name)
        if feeds.keys() != {"x"}:
            raise ArtifactError("inputs are ['x']")
        time.sleep(self.seconds)
        return {}


def timed(fast: float, slow: float, seconds: float = 0.0) -> tuple[Latency, list[str]]:
    order: list[str] = []
    found = latency(
        Sleeper("a", fast, order), Sleeper("b", slow, order), bundles.vectors(2),
        threads=1, seconds=seconds,
    )  # fmt: skip
    return found, order


def test_quantiles_are_in_order() -> None:
    found, _ = timed(0.001, 0.004)
    assert 1.0 <= found.p50_ms <= found.p99_ms
    assert found.float_p50_ms > found.p50_ms
    assert list(found.histogram_ms) == sorted(found.histogram_ms)
    assert len(found.histogram_ms) == 21
    assert (found.runs, found.threads, found.machine) == (30, 1, machine_name())


def test_the_two_are_run_in_turn() -> None:
    _, order = timed(0.0, 0.0)
    rounds = order[6:]  # after the warm-up
    assert rounds[:12] == ["a"] * 3 + ["b"] * 6 + ["a"] * 3
    assert rounds.count("a") == rounds.count("b")


def test_more_time_gives_more_runs() -> None:
    found, _ = timed(0.0005, 0.0005, seconds=0.2)
    assert 30 < found.runs <= 200


def test_memory_of_a_fresh_process(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(bundles.linear())
    peak, load_ms = peak_memory(path, "onnxruntime", {}, bundles.vectors(2))
    assert peak > 10 << 20
    assert load_ms > 0


def test_memory_of_what_does_not_load(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(BackendError, match=r"model\.onnx"):
        peak_memory(path, "onnxruntime", {}, [])
    with pytest.raises(MachineLacks, match="abacus"):
        peak_memory(path, "abacus", {}, [])


def figure(p50_ms: float) -> Latency:
    return Latency(p50_ms, 2 * p50_ms, 3.0, 1, "here", 30, (0.1, 0.2))


class TestStore:
    def test_the_first_is_kept(self, tmp_path: Path) -> None:
        for value in (1.0, 2.0):
            store = MeasurementStore(tmp_path / "kept.sqlite")
            found = store.latency({"artifact": "a"}, lambda value=value: figure(value))
            assert found == figure(1.0)
        assert store.memory({"artifact": "a"}, lambda: (5, 0.1)) == (5, 0.1)
        assert store.memory({"artifact": "a"}, lambda: (6, 0.2)) == (5, 0.1)

    def test_what_differs_is_measured_anew(self, tmp_path: Path) -> None:
        store = MeasurementStore(tmp_path)
        options: list[dict[str, object]] = [
            {"artifact": "a"}, {"artifact": "b"},
            {"artifact": "a", "options": {"threads": 2}},
        ]  # fmt: skip
        for number, what in enumerate(options):
            assert store.memory(what, lambda n=number: (n, 0.0)) == (number, 0.0)
        other = MeasurementStore(tmp_path, on="another machine")
        assert other.memory(options[0], lambda: (9, 0.0)) == (9, 0.0)

    def test_a_failure_is_not_kept(self, tmp_path: Path) -> None:
        store = MeasurementStore(tmp_path)

        def fail() -> tuple[int, float]:
            raise BackendError("it crashed")

        with pytest.raises(BackendError):
            store.memory({}, fail)
        assert store.memory({}, lambda: (1, 1.0)) == (1, 1.0)

    @pytest.mark.parametrize("damage", [b"no database" * 100, b"SQLite format 3\0"])
    def test_a_damaged_file_says_so(self, tmp_path: Path, damage: bytes) -> None:
        path = tmp_path / "kept.sqlite"
        path.write_bytes(damage)
        with pytest.raises(InputError, match="remove the file"):
            MeasurementStore(path).memory({}, lambda: (1, 1.0))

    def test_processes_agree(self, tmp_path: Path) -> None:
        context = multiprocessing.get_context("fork")
        with context.Pool(4) as pool:
            found = pool.starmap(recorded, [(tmp_path, n) for n in range(16)])
        assert len(set(found)) == 1


def recorded(folder: Path, number: int) -> int:
    return MeasurementStore(folder).memory({}, lambda: (number, 0.0))[0]
