"""A target's candidates on a real workbench: real artifacts, chosen timings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benches import FP32, bench, reference, small, static
from onnx import TensorProto, numpy_helper
from timings import FLOAT_MS, Timings

from device_agent.contract.tensors import Array
from edgeml.candidate import QuantizeOptions, Spec
from edgeml.choice import gate
from edgeml.errors import BackendError, PassError
from edgeml.model import Model, Step
from edgeml.outcome import Candidate
from edgeml.progress import Progress
from edgeml.recipes.recipe import Budget
from edgeml.trial import NOT_SHIPPED, Trial, Verdict
from edgeml.tuning import Tuner
from edgeml.workbench import Workbench

DEFAULT = Spec("int8 ort default", "int8", "ort", {"kind": "default"})
MINMAX = static("int8 minmax u8s8")
COARSE = static("int8 coarse", method="percentile", percentile=90.0)
BROKEN = Spec("int8 broken", "int8", "ort", refused="the tool says no")
NO_FLIPS = Budget(max_accuracy_drop=1.0, max_flip_rate=0.0)
NEVER = Budget(max_accuracy_drop=-1.0)
Try = Callable[..., tuple[Verdict, Workbench]]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all, so that each artifact is made once."""
    return tmp_path_factory.mktemp("stages")


@pytest.fixture
def attempt(stages: Path) -> Try:
    def run(
        specs: Sequence[Spec], budget: Budget | None = None,
        timings: Timings | None = None, options: QuantizeOptions | None = None,
        precisions: tuple[str, ...] = (), tuner: Tuner | None = None,
    ) -> tuple[Verdict, Workbench]:  # fmt: skip
        target = small()
        target = replace(target, precisions=precisions or target.precisions)
        made = bench(stages, specs, timings, target)
        trial = Trial(
            made, reference(), budget or Budget(), options or QuantizeOptions(), tuner
        )
        return trial.run(), made

    return run


def by_name(verdict: Verdict) -> Mapping[str, Candidate]:
    found = {one.name: one for one in verdict.outcome.candidates}
    assert len(found) == len(verdict.outcome.candidates), "names are unique"
    return found


def mixed(verdict: Verdict) -> list[Candidate]:
    return [one for one in verdict.outcome.candidates if one.precision == "mixed"]


def digest(stages: Path, spec: Spec) -> str:
    return bench(stages, [spec]).make(spec).digest


# --- the plain way


def test_the_verdict_names_the_chosen_one_and_holds_its_bytes(attempt: Try) -> None:
    verdict, _ = attempt([FP32, MINMAX])
    outcome = verdict.outcome
    assert outcome.chosen == MINMAX.name
    assert verdict.artifact is not None
    chosen = by_name(verdict)[MINMAX.name]
    assert chosen.status == "chosen"
    assert chosen.artifact_sha256 == verdict.artifact.digest
    assert chosen.size_bytes == verdict.artifact.size_bytes
    assert outcome.artifact_entry == verdict.artifact.entry
    assert [one.status for one in outcome.candidates].count("chosen") == 1


def test_a_candidate_that_was_judged_has_every_figure(attempt: Try) -> None:
    verdict, made = attempt([FP32, MINMAX])
    for one in verdict.outcome.candidates:
        assert one.evaluation is not None
        assert one.latency is not None
        assert one.coverage is not None
        assert one.peak_memory_bytes
        assert one.load_ms
        assert gate(one, reference().evaluation, Budget(), made.subject.metric) == ()
    quantized = by_name(verdict)[MINMAX.name]
    assert quantized.proxy_sqnr_db is not None
    assert quantized.layer_errors
    assert by_name(verdict)["fp32"].layer_errors == ()


def test_the_same_trial_gives_the_same_verdict(attempt: Try) -> None:
    assert attempt([FP32, DEFAULT, MINMAX])[0] == attempt([FP32, DEFAULT, MINMAX])[0]


def test_it_says_what_it_does_and_what_that_gave(attempt: Try) -> None:
    _, made = attempt([FP32, MINMAX])
    said = made.progress.said  # type: ignore[attr-defined]
    assert "… cpu-x86_64: making int8 minmax u8s8" in said
    assert "… cpu-x86_64: judging int8 minmax u8s8" in said
    assert any(
        line.startswith("cpu-x86_64: int8 minmax u8s8: top1 0.8") for line in said
    )


def test_nothing_ships_when_nothing_fits(attempt: Try) -> None:
    verdict, _ = attempt([FP32, MINMAX], Budget(max_size_bytes=10))
    assert verdict.artifact is None
    assert verdict.outcome.chosen is None
    assert verdict.outcome.artifact_entry is None
    assert "max_size_bytes 10, measured" in verdict.outcome.choice_reason
    assert {one.status for one in verdict.outcome.candidates} == {"missed"}


def test_slower_than_float32_is_not_shipped(attempt: Try) -> None:
    verdict, _ = attempt([FP32, MINMAX], timings=Timings(otherwise=2 * FLOAT_MS))
    assert by_name(verdict)[MINMAX.name].status == "slower"
    assert verdict.outcome.chosen == "fp32"


# --- what is not judged


def test_a_twin_is_skipped_and_named_after_the_one_it_equals(attempt: Try) -> None:
    twin = replace(MINMAX, name="int8 twin")
    timings = Timings()
    verdict, _ = attempt([FP32, MINMAX, twin], timings=timings)
    found = by_name(verdict)
    assert found["int8 twin"].status == "skipped"
    assert found["int8 twin"].reason == f"same bytes as {MINMAX.name}"
    assert found["int8 twin"].evaluation is None
    assert len(timings.asked) == len(set(timings.asked)) == 2


def test_of_a_tools_default_and_its_twin_the_default_stays(attempt: Try) -> None:
    twin = replace(DEFAULT, name="int8 twin")
    verdict, _ = attempt([FP32, twin, DEFAULT])
    found = by_name(verdict)
    assert found["int8 twin"].status == "skipped"
    assert found[DEFAULT.name].evaluation is not None
    assert [*found] == ["fp32", "int8 twin", DEFAULT.name], "the order is kept"


def test_a_hopeless_one_is_skipped_with_both_ratios(attempt: Try) -> None:
    verdict, _ = attempt([FP32, MINMAX, COARSE])
    found = by_name(verdict)
    best, own = found[MINMAX.name].proxy_sqnr_db, found[COARSE.name].proxy_sqnr_db
    assert found[COARSE.name].status == "skipped"
    assert found[COARSE.name].reason == (
        f"output SQNR {own:.1f} dB on calibration samples, best {best:.1f} dB"
    )
    assert found[COARSE.name].latency is None


def test_a_tools_default_is_judged_however_hopeless(attempt: Try) -> None:
    hopeless = replace(COARSE, name="int8 coarse default")
    verdict, _ = attempt([FP32, MINMAX, hopeless])
    assert by_name(verdict)[hopeless.name].evaluation is not None
    assert verdict.outcome.chosen == MINMAX.name


def test_two_of_each_kind_of_arithmetic_go_on(attempt: Try) -> None:
    near = [
        static(f"int8 {share}", method="percentile", percentile=share)
        for share in (99.9, 99.99, 99.95)
    ]
    signed = static("int8 s8", activation="s8")
    verdict, _ = attempt([FP32, MINMAX, *near, signed])
    judged = [
        one for one in verdict.outcome.candidates
        if one.precision == "int8" and one.evaluation is not None
    ]  # fmt: skip
    assert "int8 s8" in {one.name for one in judged}, "another kind has its own two"
    unsigned = [one for one in judged if one.name != "int8 s8"]
    rest = [
        one for one in verdict.outcome.candidates
        if one.status == "skipped" and "same bytes" not in one.reason
    ]  # fmt: skip
    assert len(unsigned) == 2
    assert min(one.proxy_sqnr_db or 0 for one in unsigned) >= max(
        one.proxy_sqnr_db or 0 for one in rest
    )


def test_what_is_for_comparison_only_is_judged_and_never_chosen(attempt: Try) -> None:
    other = replace(MINMAX, ships=False)
    verdict, _ = attempt([FP32, other])
    found = by_name(verdict)[MINMAX.name]
    assert found.evaluation is not None
    assert found.misses == ()
    assert (found.status, found.reason) == ("skipped", NOT_SHIPPED)
    assert verdict.outcome.chosen == "fp32"


def test_what_is_for_comparison_only_keeps_its_misses(attempt: Try) -> None:
    other = replace(MINMAX, ships=False)
    verdict, _ = attempt([FP32, other], Budget(max_size_bytes=10))
    found = by_name(verdict)[MINMAX.name]
    assert found.status == "missed"
    assert [miss.limit for miss in found.misses] == ["max_size_bytes"]


def test_what_cannot_ship_does_not_stop_the_rescue(attempt: Try) -> None:
    shown = replace(static("int8 s8", activation="s8"), ships=False)
    bad = replace(COARSE, name="int8 coarse default")
    verdict, _ = attempt([FP32, shown, bad])
    assert mixed(verdict), "nothing quantized that may ship holds the accuracy"


# --- failures


def test_a_failing_candidate_does_not_end_the_target(attempt: Try) -> None:
    verdict, _ = attempt([FP32, BROKEN, MINMAX])
    failed = by_name(verdict)[BROKEN.name]
    assert failed.status == "failed"
    assert "the tool says no" in failed.reason
    assert verdict.outcome.chosen == MINMAX.name


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_what_fails_while_it_is_measured_does_not_end_the_target(
    precision: str, attempt: Try, stages: Path
) -> None:
    spec = MINMAX if precision == "int8" else Spec("fp16", "fp16")
    bad = digest(stages, spec)

    class Fails(Timings):
        def memory(self, what, measure):  # type: ignore[no-untyped-def]
            if what["artifact"] == bad:
                raise BackendError("the probe was killed")
            return super().memory(what, measure)

    verdict, _ = attempt([FP32, spec], timings=Fails())
    assert by_name(verdict)[spec.name].status == "failed"
    assert "the probe was killed" in by_name(verdict)[spec.name].reason
    assert verdict.outcome.chosen == "fp32"


def test_an_answer_that_is_no_number_fails_its_candidate_only(
    attempt: Try, monkeypatch: pytest.MonkeyPatch, stages: Path, tmp_path: Path
) -> None:
    bad = digest(stages, MINMAX)
    made = bench(tmp_path, [FP32, MINMAX])
    opened = made.open

    def spoiled(artifact):  # type: ignore[no-untyped-def]
        session = opened(artifact)
        if artifact.digest == bad:
            predict = session.predict

            def nothing(feeds: Mapping[str, Array]) -> dict[str, Array]:
                return {k: np.full_like(v, np.nan) for k, v in predict(feeds).items()}

            monkeypatch.setattr(session, "predict", nothing)
        return session

    monkeypatch.setattr(made, "open", spoiled)
    options = QuantizeOptions(mixed=False)
    verdict = Trial(made, reference(), Budget(), options).run()
    assert by_name(verdict)[MINMAX.name].status == "failed"
    assert verdict.outcome.chosen == "fp32"


def test_where_float32_fails_the_target_fails(attempt: Try) -> None:
    broken = replace(FP32, refused="no such operator")
    with pytest.raises(BackendError, match="no such operator"):
        attempt([broken, MINMAX])


# --- the rescue


def test_where_a_quantized_one_holds_there_is_no_rescue(attempt: Try) -> None:
    verdict, _ = attempt([FP32, MINMAX])
    assert mixed(verdict) == []


def test_where_only_other_limits_are_missed_there_is_no_rescue(attempt: Try) -> None:
    verdict, _ = attempt([FP32, MINMAX], Budget(max_size_bytes=10, max_latency_ms=0.1))
    assert mixed(verdict) == []


@pytest.mark.parametrize(
    "not_wanted",
    [
        {"options": QuantizeOptions(mixed=False)},
        {"options": QuantizeOptions(precisions=("int8",))},
        {"precisions": ("fp32", "int8")},
    ],
)
def test_neither_recipe_nor_target_gets_mixed_precision_unwanted(
    not_wanted: Mapping[str, object], attempt: Try
) -> None:
    verdict, _ = attempt([FP32, MINMAX], NO_FLIPS, **not_wanted)
    assert mixed(verdict) == []
    assert verdict.outcome.chosen == "fp32"


def test_the_rescue_puts_the_worst_layers_back_until_it_holds(attempt: Try) -> None:
    verdict, _ = attempt([FP32, MINMAX], NO_FLIPS)
    base = by_name(verdict)[MINMAX.name]
    steps = mixed(verdict)
    assert base.status == "missed"
    worst = tuple(error.node for error in base.layer_errors)
    assert [one.kept_layers for one in steps] == [worst[:1], worst[:2]]
    assert [one.status for one in steps] == ["missed", "chosen"]
    assert [one.name for one in steps] == [
        f"mixed {MINMAX.name}, 1 layers float", f"mixed {MINMAX.name}, 2 layers float",
    ]  # fmt: skip
    assert verdict.outcome.chosen == steps[-1].name
    assert verdict.artifact is not None
    assert verdict.artifact.digest == steps[-1].artifact_sha256


def test_the_rescue_starts_from_the_two_most_accurate(attempt: Try) -> None:
    others = [static("int8 s8", activation="s8"), static("int8 7", reduce_range=True)]
    verdict, _ = attempt([FP32, DEFAULT, MINMAX, *others], NEVER)
    accuracy = {
        one.name: one.evaluation.metrics["top1"]
        for one in verdict.outcome.candidates
        if one.precision == "int8" and one.evaluation is not None
    }
    bases = list(
        dict.fromkeys(
            one.name.removeprefix("mixed ").rpartition(",")[0] for one in mixed(verdict)
        )
    )
    assert len(bases) == 2
    assert DEFAULT.name not in bases
    assert min(accuracy[base] for base in bases) >= max(
        value for name, value in accuracy.items() if name not in bases
    )


def test_a_step_that_gains_nothing_is_not_evaluated(attempt: Try) -> None:
    verdict, _ = attempt([FP32, MINMAX], NEVER)
    ratios = by_name(verdict)[MINMAX.name].proxy_sqnr_db or 0.0
    for one in mixed(verdict):
        assert one.proxy_sqnr_db is not None
        if one.status == "skipped":
            assert one.proxy_sqnr_db < ratios + 0.5
            assert one.latency is None
        else:
            assert one.proxy_sqnr_db >= ratios + 0.5
            ratios = one.proxy_sqnr_db
    assert {one.status for one in mixed(verdict)} == {"missed", "skipped"}


def test_the_rescue_ends_where_it_is_slower_than_a_float32_that_fits(
    attempt: Try,
) -> None:
    slow = Timings(otherwise=3 * FLOAT_MS)
    verdict, _ = attempt([FP32, MINMAX], NO_FLIPS, slow)
    assert len(mixed(verdict)) == 1
    assert verdict.outcome.chosen == "fp32"


def test_the_rescue_goes_on_though_slower_where_float32_does_not_fit(
    attempt: Try,
) -> None:
    slow = Timings(otherwise=3 * FLOAT_MS)
    verdict, _ = attempt(
        [FP32, MINMAX],
        replace(NO_FLIPS, max_size_bytes=4300),
        slow,
    )
    plain = by_name(verdict)["fp32"]
    assert plain.size_bytes > 4300
    assert len(mixed(verdict)) == 2
    assert verdict.outcome.chosen == mixed(verdict)[-1].name


def test_a_layer_the_recipe_keeps_stays_kept_in_the_rescue(attempt: Try) -> None:
    kept = replace(MINMAX, keep=("conv1",))
    verdict, _ = attempt([FP32, kept], NEVER)
    assert mixed(verdict)
    for one in mixed(verdict):
        assert one.kept_layers[0] == "conv1"
        assert len(set(one.kept_layers)) == len(one.kept_layers)
        assert f"{len(one.kept_layers)} layers float" in one.name


def test_without_anything_quantized_float32_is_judged_alone(attempt: Try) -> None:
    verdict, _ = attempt([FP32], NEVER)
    assert [one.name for one in verdict.outcome.candidates] == ["fp32"]
    assert verdict.outcome.chosen is None


# --- QAT


class Learned(Tuner):
    """Learns nothing, or what it is told to: weights divided by ``factor``."""

    def __init__(self, scheme: str = "auto", factor: int = 1, why: str = "") -> None:
        object.__setattr__(self, "parameters", {"scheme": scheme, "epochs": 2})
        object.__setattr__(self, "factor", factor)
        object.__setattr__(self, "why", why)
        object.__setattr__(self, "seen", [])

    def tuned(self, model: Model, progress: Progress) -> Model:
        self.seen.append(model)  # type: ignore[attr-defined]
        if self.why:  # type: ignore[attr-defined]
            raise PassError(self.why)  # type: ignore[attr-defined]
        proto = type(model.payload)()
        proto.CopyFrom(model.payload)
        for one in proto.graph.initializer:
            if one.data_type == TensorProto.INT8 and len(one.dims) > 1:
                array = numpy_helper.to_array(one) // self.factor  # type: ignore[attr-defined]
                one.CopyFrom(numpy_helper.from_array(array, one.name))
        return model.after(Step("qat", {"epochs_run": 2}), payload=proto)


def test_qat_is_one_more_candidate_from_the_most_accurate(attempt: Try) -> None:
    tuner = Learned()
    verdict, _ = attempt([FP32, COARSE, MINMAX], tuner=tuner)
    one = by_name(verdict)["int8 qat (from minmax u8s8)"]
    assert one.precision == "int8"
    assert one.parameters == {
        "quantizer": "qat", "from": MINMAX.name, "epochs_run": 2,
    }  # fmt: skip
    assert one.evaluation is not None
    assert one.latency is not None
    assert one.layer_errors == ()
    assert [model.level for model in tuner.seen] == ["graph"]  # type: ignore[attr-defined]


def test_what_qat_gives_can_ship(attempt: Try) -> None:
    verdict, _ = attempt([FP32, MINMAX], tuner=Learned(factor=2))
    one = by_name(verdict)["int8 qat (from minmax u8s8)"]
    assert one.artifact_sha256 not in (
        "",
        by_name(verdict)[MINMAX.name].artifact_sha256,
    )
    assert one.evaluation != by_name(verdict)[MINMAX.name].evaluation


def test_qat_without_a_candidate_of_the_scheme_fails_and_says_so(attempt: Try) -> None:
    verdict, _ = attempt([FP32, MINMAX], tuner=Learned("s8s8"))
    one = by_name(verdict)["int8 qat"]
    assert one.status == "failed"
    assert one.reason == (
        "qat begins from an int8 candidate with a quantized ONNX graph (scheme s8s8); "
        "cpu-x86_64 has none"
    )


def test_a_training_that_fails_is_a_candidate_that_failed(attempt: Try) -> None:
    verdict, _ = attempt([FP32, MINMAX], tuner=Learned(why="weights became NaN"))
    one = by_name(verdict)["int8 qat (from minmax u8s8)"]
    assert (one.status, one.reason) == ("failed", "weights became NaN")
    assert verdict.outcome.chosen == MINMAX.name


def test_qat_is_not_mixed_and_what_holds_spares_the_rescue(attempt: Try) -> None:
    verdict, _ = attempt([FP32, MINMAX], NEVER, tuner=Learned())
    assert mixed(verdict), "nothing held"
    assert not any("qat" in one.name for one in mixed(verdict)), "no layer errors"
    verdict, _ = attempt([FP32, MINMAX], Budget(max_accuracy_drop=0.5),
                         tuner=Learned())  # fmt: skip
    assert not mixed(verdict)
