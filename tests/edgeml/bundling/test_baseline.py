"""The baseline: it says what the data is, and the device can read it."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.isotonic import IsotonicRegression

from device_agent.contract.baseline import BINS_MAX, SAMPLE_MAX, parse_baseline
from device_agent.contract.errors import BundleError
from device_agent.contract.manifest import canonical_json
from device_agent.contract.signals import signals
from edgeml.bundling.baseline import baseline, bin_edges, isotonic
from edgeml.errors import InputError

FLOATS = st.floats(-1e6, 1e6, allow_nan=False, width=32)


def images(count: int, seed: int = 0) -> tuple:
    generator = np.random.default_rng(seed)
    feeds = [
        {"x": generator.random((1, 3, 8, 9), dtype=np.float32)} for _ in range(count)
    ]
    logits = generator.normal(0, 2, (count, 5)).astype(np.float32)
    return feeds, {"y": logits}, generator.integers(0, 5, count)


def test_a_classifier_of_images() -> None:
    feeds, outputs, labels = images(300)
    found = parse_baseline(canonical_json(baseline(feeds, outputs, labels)))
    names = [signal.name for signal in found.signals]
    assert names[-4:] == ["answer", "confidence", "entropy", "margin"]
    assert {"input:x/sharpness", "input:x/c2/std", "input:x/saturated"} <= set(names)
    assert (found.kind, found.output, found.samples) == ("logits", "y", 300)
    answers = outputs["y"].argmax(1)
    assert found.class_counts == tuple(np.bincount(answers, minlength=5))
    assert found.accuracy == pytest.approx((answers == labels).mean())
    for signal in found.signals:
        assert sum(signal.counts) == 300 and len(signal.sample) == 300
        assert signal.min <= signal.mean <= signal.max


def test_the_device_computes_the_same_signals() -> None:
    feeds, outputs, labels = images(40)
    found = parse_baseline(canonical_json(baseline(feeds, outputs, labels)))
    by_name = {signal.name: signal for signal in found.signals}
    for place in (0, 7, 39):
        output = outputs["y"][place : place + 1]
        live = signals(found.inputs, found.kind, feeds[place], output)
        assert live.keys() == by_name.keys()
        for name, value in live.items():
            assert value == pytest.approx(by_name[name].sample[place], rel=1e-8)


def test_columns_of_a_table_are_signals() -> None:
    feeds = [{"t": np.float32([[i, -i, 3]])} for i in range(50)]
    found = parse_baseline(
        canonical_json(baseline(feeds, {"y": np.arange(50.0)[:, None]}, None))
    )
    assert [signal.name for signal in found.signals] == [
        "input:t[0]", "input:t[1]", "input:t[2]", "value",
    ]  # fmt: skip
    assert found.calibration is None and found.accuracy is None
    assert found.class_counts == ()


def test_equal_data_gives_equal_bytes_and_a_bounded_sample() -> None:
    feeds = [{"t": np.float32([[i % 7]])} for i in range(SAMPLE_MAX + 500)]
    outputs = {"p": np.linspace(0, 1, len(feeds))[:, None]}
    first = canonical_json(baseline(feeds, outputs, None))
    assert first == canonical_json(baseline(feeds, outputs, None))
    assert {len(one.sample) for one in parse_baseline(first).signals} == {SAMPLE_MAX}


def test_a_wide_table_keeps_the_file_small() -> None:
    generator = np.random.default_rng(3)
    feeds = [{"t": generator.normal(size=(1, 60))} for _ in range(2000)]
    raw = canonical_json(baseline(feeds, {"p": generator.random((2000, 1, 2))}, None))
    assert len(raw) < 1_000_000


def test_the_best_box_of_a_detector_is_a_signal() -> None:
    scores = np.random.default_rng(4).random((20, 1, 50, 2))
    feeds = [{"x": np.ones((1, 3, 8, 8), np.float32)}] * 20
    found = parse_baseline(canonical_json(baseline(feeds, {"scores": scores}, None)))
    by_name = {signal.name: signal for signal in found.signals}
    highest = by_name["output/max[1]"].sample
    np.testing.assert_allclose(highest, scores[..., 1].max(axis=(1, 2)), rtol=1e-8)


def test_numbers_have_nine_digits() -> None:
    def numbers(value: object) -> list[float]:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            return [one for item in value for one in numbers(item)]
        return [value] if isinstance(value, float) else []

    made = json.loads(canonical_json(baseline(*images(30))))
    assert all(one == float(f"{one:.9g}") for one in numbers(made))


@given(arrays.arrays(np.float64, st.integers(1, 200), elements=FLOATS))
def test_edges_grow_and_every_value_has_its_bin(values: np.ndarray) -> None:
    edges = bin_edges(values)
    assert 1 <= len(edges) < BINS_MAX
    assert all(a < b for a, b in pairwise(edges))
    places = np.searchsorted(edges, [values.max() + 1 + abs(values.max()) * 1e-3])
    assert places[0] == len(edges)  # what is above all has the last bin


def test_bins_hold_equally_many_of_a_smooth_signal() -> None:
    values = np.random.default_rng(1).normal(size=31_000)
    counts = np.bincount(np.searchsorted(bin_edges(values), values, side="right"))
    assert counts.min() > 950 and counts.max() < 1050


def test_a_shared_value_keeps_its_bin_when_another_machine_rounds_it() -> None:
    values = np.repeat([0.1, 1 / 3, 0.7], 40).astype(np.float32).astype(np.float64)
    edges = bin_edges(values)
    exact = np.searchsorted(edges, values, side="right")
    for jitter in (1 - 1e-7, 1 + 1e-7):
        near = np.searchsorted(edges, values * jitter, side="right")
        np.testing.assert_array_equal(near, exact)
    assert set(exact) == {1, 2, 3}  # and room to fall below or rise above


def test_a_constant_signal_shows_a_change_to_either_side() -> None:
    edges = bin_edges(np.full(100, 5.0))
    bins = np.searchsorted(edges, [4.9, 5.0, 5.1], side="right")
    assert bins.tolist() == [0, 1, 2]


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 1)), min_size=1, max_size=60)
)
def test_isotonic_as_sklearn_has_it(pairs: list[tuple[int, int]]) -> None:
    confidence = np.array([x / 20 for x, _ in pairs])
    right = np.array([float(y) for _, y in pairs])
    found = isotonic(confidence, right)
    oracle = IsotonicRegression(out_of_bounds="clip").fit(confidence, right)
    grid = np.linspace(0, 1, 41)
    ours = np.interp(grid, found.confidence, found.accuracy)
    np.testing.assert_allclose(ours, oracle.predict(grid), atol=1e-7)


def test_the_map_expects_the_accuracy_of_the_data() -> None:
    feeds, outputs, labels = images(400)
    found = parse_baseline(canonical_json(baseline(feeds, outputs, labels)))
    assert found.calibration is not None
    confidence = next(s for s in found.signals if s.name == "confidence").sample
    expected = np.interp(
        confidence, found.calibration.confidence, found.calibration.accuracy
    )
    assert expected.mean() == pytest.approx(found.accuracy, abs=1e-6)


def test_outputs_that_are_not_there_are_refused() -> None:
    feeds, outputs, labels = images(3)
    with pytest.raises(InputError, match="needs outputs 'z'"):
        baseline(feeds, outputs, labels, output="z")
    with pytest.raises(InputError, match="of 0 samples"):
        baseline([], {}, None)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 2}, "format 2 is unknown"),
        ({"samples": 0}, "samples"),
        ({"kind": "guess"}, "kind"),
        ({"accuracy": 1.5}, "accuracy"),
        ({"signals": [{}]}, "signals"),
        ({"calibration": {"confidence": [0.9, 0.1], "accuracy": [0, 1]}}, "grow"),
        ({"calibration": {"confidence": [0.9], "accuracy": [0, 1]}}, "as many"),
    ],
)
def test_a_baseline_nobody_vouches_for_is_refused(
    change: dict[str, object], says: str
) -> None:
    made = {**baseline(*images(10)), **change}
    with pytest.raises(BundleError, match=says):
        parse_baseline(json.dumps(made).encode())


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"[" * 100_000, b"\xff"])
def test_what_is_no_baseline_is_refused(raw: bytes) -> None:
    with pytest.raises(BundleError):
        parse_baseline(raw)
