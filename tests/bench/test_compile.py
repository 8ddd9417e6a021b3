"""How the bench judges: what a peer is, and when ours loses."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import compile as bench

from calibration.dataset import DataSource
from edgeml.outcome import Evaluation
from edgeml.recipes.recipe import (
    Budget,
    DataOptions,
    MetricOptions,
    ModelSource,
    Recipe,
    read_recipe,
)

RECIPE = Recipe(
    folder=Path(),
    model=ModelSource("m.onnx", "m", "1"),
    data=DataOptions(DataSource("a.npz"), DataSource("b.npz")),
    metric=MetricOptions("top1"),
    budget=Budget(max_accuracy_drop=0.01, max_flip_rate=0.02),
    targets=("cpu-x86_64",),
)


def row(who: str, top1: float, size: int = 100, **more: object) -> bench.Row:
    evaluation = Evaluation({"top1": top1}, 400, "")
    made = bench.Row(who, size, evaluation, 1.0, 1.0)
    return replace(made, **more)  # type: ignore[arg-type]


def holds(*rows: bench.Row) -> bool:
    return bench.verdict(rows, RECIPE)[0]


def test_a_tenth_of_a_point_is_allowed_and_no_more() -> None:
    assert holds(row("ours", 0.900), row("peer", 0.901))
    assert not holds(row("ours", 0.900), row("peer", 0.9011))


@pytest.mark.parametrize(
    "change",
    [{"size_bytes": 111}, {"slower": True}, {"misses": ("max_flip_rate",)}],
    ids=str,
)
def test_what_could_not_ship_in_our_place_is_no_rival(
    change: dict[str, object],
) -> None:
    better = row("peer", 0.99)
    assert not holds(row("ours", 0.9), better)
    assert holds(row("ours", 0.9), replace(better, **change))


def test_a_peer_a_little_larger_is_of_the_same_size() -> None:
    assert not holds(row("ours", 0.9), row("peer", 0.99, size=109))


def test_ours_must_be_there_and_not_slower_than_fp32() -> None:
    assert not holds(row("fp32", 0.9))
    assert not holds(row("fp32", 0.9), row("ours", 0.9, slower=True))
    told = bench.verdict([row("ours", 0.9, slower=True, ratio=1.3)], RECIPE)[1]
    assert "1.300" in told


def test_fp32_itself_is_no_rival() -> None:
    assert holds(row("ours", 0.9), row("fp32", 0.99))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5), st.floats(0, 1))
def test_more_rivals_never_help(peers: list[float], mine: float) -> None:
    ours = row("ours", mine)
    rivals = [row(f"peer{place}", value) for place, value in enumerate(peers)]
    if not holds(ours, *rivals[:-1]):
        assert not holds(ours, *rivals)


class Spin:
    """A session that takes a known share of work."""

    inputs = outputs = ()

    def __init__(self, size: int) -> None:
        self._data = np.ones(size)

    def predict(self, feeds: object) -> dict[str, object]:
        return {"y": np.sort(self._data)}

    def close(self) -> None:
        return


def test_everybody_is_timed_in_every_round() -> None:
    sessions = {"a": Spin(100), "b": Spin(100_000)}
    times = bench.timed(sessions, [{}], 0.1)  # type: ignore[arg-type]
    assert {name: len(values) for name, values in times.items()} == {
        "a": bench.ROUNDS, "b": bench.ROUNDS,
    }  # fmt: skip
    assert np.median(times["a"]) < np.median(times["b"])


def test_the_table_is_markdown_with_straight_columns() -> None:
    lines = [list(bench.COLUMNS), ["x"] * len(bench.COLUMNS)]
    written = bench.table(lines).splitlines()
    assert len({len(line) for line in written}) == 1
    assert set(written[1]) <= set("|- ")


@pytest.mark.parametrize("name", sorted(bench.MODELS))
def test_every_model_has_a_recipe_that_reads(name: str) -> None:
    path = bench.MODELS[name]
    if name not in bench.OWN_DATA and not (bench.SHARED / name).is_dir():
        pytest.skip(f"../shared/data/{name} is absent")
    if name == "digits" and not path.with_name("weights.safetensors").exists():
        pytest.skip("scripts/demo has not trained demo/digits yet")
    assert read_recipe(path).targets
