"""What a point is worth: bounds first, then accuracy, then latency."""

from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
from timings import Timings

from calibration.dataset import Dataset, Sample
from edgeml.errors import BackendError
from edgeml.outcome import Miss
from edgeml.passing import Imported
from edgeml.recipes.recipe import Recipe, read_recipe
from edgeml.search import judge as judging
from edgeml.search.ground import Ground, half_of
from edgeml.search.judge import Base, Judge, able
from edgeml.search.space import Point
from edgeml.search.variation import varied
from targets.profile import load_target

from .grounds import FP32, INT8, TARGET, ground, judge, written


def test_a_point_that_holds_the_budget_is_measured_in_everything(
    tmp_path: Path,
) -> None:
    one = judge(written(tmp_path), Timings(otherwise=0.4)).judged(3, INT8)
    assert (one.number, one.name, one.status) == (3, "int8 minmax, 32 samples", "fits")
    assert one.candidate.startswith("int8 ort")
    assert (one.latency_ms, one.float_latency_ms) == (0.4, 1.0)
    assert one.value is not None and 0.5 < one.value <= 1.0
    assert one.flip_rate is not None
    assert one.size_bytes is not None and one.macs and one.macs > 1000


def test_bounds_are_bounds(tmp_path: Path) -> None:
    """Nothing real is smaller than what is promised before training."""
    one = judge(written(tmp_path))
    for point in (FP32, replace(FP32, precision="fp16"), INT8):
        found = one.judged(0, point)
        assert found.size_bytes is not None
        assert found.predicted_size_bytes is not None
        assert found.size_bytes >= found.predicted_size_bytes, point


def test_a_point_that_cannot_hold_a_limit_is_given_up_before_anything_is_made(
    tmp_path: Path,
) -> None:
    limits = "[budget]\nmax_size_bytes = 300\nmax_latency_ms = 0.1\n"
    timings = Timings()
    one = judge(written(tmp_path, limits), timings)
    before = list(timings.asked)
    found = one.judged(0, FP32)
    assert found.status == "pruned"
    assert [miss.limit for miss in found.misses] == ["max_latency_ms", "max_size_bytes"]
    assert "before any training: max_latency_ms 0.1, at best 1" in found.reason
    assert timings.asked == before
    assert (found.value, found.latency_ms, found.size_bytes) == (None, None, None)


def test_a_point_that_misses_its_bound_by_a_little_is_measured(tmp_path: Path) -> None:
    limits = "[budget]\nmax_latency_ms = 0.8\n"
    found = judge(written(tmp_path, limits)).judged(0, FP32)
    assert (found.status, found.latency_ms) == ("missed", 1.0)


def test_a_spared_point_is_measured_whatever_its_bounds(tmp_path: Path) -> None:
    limits = "[budget]\nmax_size_bytes = 300\n"
    found = judge(written(tmp_path, limits)).judged(0, FP32, spared=True)
    assert found.status == "missed"
    assert found.latency_ms == 1.0
    assert [miss.limit for miss in found.misses] == ["max_size_bytes"]


def test_what_loses_hopelessly_is_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = Miss("max_accuracy_drop", 0.01, 0.2), Miss("max_latency_ms", 1, None)
    monkeypatch.setattr(judging, "gate", lambda *_: lost)
    timings = Timings()
    one = judge(written(tmp_path), timings)
    before = len(timings.asked)
    found = one.judged(0, INT8)
    assert found.status == "pruned"
    assert found.value is not None and found.latency_ms is None
    assert found.misses == lost[:1], "what was not measured is not held against it"
    assert len(timings.asked) == before
    monkeypatch.setattr(judging, "HOPELESS", 20.0)
    assert one.judged(0, INT8).latency_ms is not None


def test_sensitive_layers_stay_in_float(tmp_path: Path) -> None:
    one = judge(written(tmp_path))
    kept = one.judged(0, replace(INT8, keep=1))
    whole = one.judged(1, INT8)
    assert len(kept.kept_layers) == 1 and whole.kept_layers == ()
    assert kept.kept_layers[0] in {"conv1", "conv2", "head", "pool1", "pool2"}
    assert kept.size_bytes != whole.size_bytes


def test_what_cannot_be_built_is_a_fact_about_the_point(tmp_path: Path) -> None:
    found = judge(written(tmp_path)).judged(0, replace(INT8, precision="fp64"))
    assert found.status == "failed"
    assert found.reason.startswith("cpu-x86_64 (onnxruntime) has fp32, fp16")


def test_limits_on_memory_and_coverage_are_measured_where_they_are_set(
    tmp_path: Path,
) -> None:
    limits = "[budget]\nmax_memory_bytes = 1000\nmax_fallback_share = 0\n"
    found = judge(written(tmp_path, limits)).judged(0, INT8)
    assert [miss.limit for miss in found.misses] == ["max_memory_bytes"]
    assert found.misses[0].measured == 8 << 20


class Networks(Ground):
    """A ground whose pruned networks have chosen work and weights."""

    def imported(self, recipe: Recipe) -> Imported:
        ratio = [one.parameters["ratio"] for one in recipe.passes if "ratio" in
                 one.parameters]  # fmt: skip
        whole = super().imported(replace(recipe, passes=()))
        left = (1 - ratio[0]) ** 2 if ratio else 1
        facts = {"macs": int(1e6 * left), "weight_bytes": int(4e5 * left)}
        return replace(whole, summary={**whole.summary, **facts})


def test_bounds_scale_with_the_work_and_weights_of_the_untrained_network(
    tmp_path: Path,
) -> None:
    limits = "[budget]\nmax_size_bytes = 60_000\nmax_latency_ms = 1\n"
    path = written(tmp_path, limits)
    plain, recipe = ground(path), read_recipe(path)
    on = Networks.__new__(Networks)
    on.__dict__.update(plain.__dict__)
    target, base = load_target(TARGET), Base(8.0, 1_000_000, 10_000)
    one = Judge(on, recipe, target, base)
    found = one.judged(0, Point(0.5, False, "fp32"))
    assert found.status == "pruned"
    assert found.predicted_latency_ms == 2.0
    assert found.predicted_size_bytes == 10_000 + 100_000
    int8 = one._bounded(found, Point(0.5, False, "int8", "minmax", 32))
    assert int8.predicted_latency_ms == 0.5
    assert int8.predicted_size_bytes == 10_000 + 25_000


def test_a_target_is_asked_what_it_can_be_built_in(tmp_path: Path) -> None:
    path = written(tmp_path)
    recipe, target = read_recipe(path), load_target(TARGET)
    stage = ground(path).stage(varied(recipe, FP32), target)
    found = dict(able(stage.bench, recipe.quantize))
    assert found["fp32"] == found["fp16"] == ()
    assert found["int8"] == ("minmax", "entropy", "percentile")
    assert "mixed" not in found
    only = replace(recipe.quantize, quantizers=("nncf",))
    assert dict(able(stage.bench, only))["int8"] == ("minmax", "percentile")


def test_a_target_that_refuses_the_network_says_why(tmp_path: Path) -> None:
    path = written(tmp_path)
    target = replace(load_target(TARGET), arch="armv7l", isa=())
    with pytest.raises(BackendError, match="armv7l"):
        ground(path).stage(varied(read_recipe(path), FP32), target)


def test_trials_are_judged_on_half_of_the_samples(tmp_path: Path) -> None:
    path = written(tmp_path)
    recipe, target = read_recipe(path), load_target(TARGET)
    on = ground(path)
    stage = on.stage(varied(recipe, FP32), target)
    assert stage.reference.evaluation.samples == 200
    assert len(on.splits(recipe).validation) == 400
    again = on.stage(varied(recipe, INT8), target)
    digests = [one.bench.subject.validation.digest for one in (stage, again)]
    assert digests[0] == digests[1]
    assert len(again.bench.subject.calibration) == 32


def test_half_is_drawn_by_the_seed_and_keeps_the_order() -> None:
    whole = Dataset(tuple(Sample(f"{n:03}", b"", n) for n in range(101)), ("a",))
    half = half_of(whole, 4)
    assert half == half_of(whole, 4) != half_of(whole, 5)
    ids = [sample.id for sample in half]
    assert ids == sorted(ids) and len(set(ids)) == 50
    assert half.classes == ("a",)
    assert len(half_of(Dataset(whole.samples[:1]), 0)) == 1


def test_a_target_whose_device_is_not_here_is_not_searched(tmp_path: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("the device is here")
    path = written(tmp_path, "", "gpu-cuda")
    with pytest.raises(BackendError, match="a machine that has the device"):
        ground(path).stage(read_recipe(path), load_target("gpu-cuda"))
