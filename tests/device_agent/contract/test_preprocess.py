"""Lists of steps: what is refused and how, and what is passed on to the model."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from device_agent.contract.errors import StepError
from device_agent.contract.preprocess import (
    POSTPROCESS,
    PREPROCESS,
    STEPS_MAX,
    Postprocess,
    Preprocess,
    StepsError,
    batched,
    parse_steps,
)
from device_agent.contract.tensors import TensorSpec

EXAMPLES = {
    "decode_image": "L", "decode_wav": {"rate": 8000, "resample": True},
    "resize": [96, 64], "center_crop": [8, 8], "pad": [9, 9], "fit_length": 100,
    "window": {"size": 4, "hop": 2}, "stft": {"window": 8, "hop": 4},
    "log_mel": {"rate": 8000, "window": 256, "hop": 128}, "mfcc": 10, "scale": 0.5,
    "affine": {"offset": -83, "factor": 0.58}, "normalize": {"mean": [1], "std": [2]},
    "standardize": {"mean": [1.5, 2], "std": [3, 4]}, "clip": [0, 1],
    "cast": "float32", "select": [1, 0], "reshape": [-1, 4], "layout": "HWC->1CHW",
    "select_output": "scores", "softmax": True, "sigmoid": {}, "squeeze": True,
    "argmax": True, "top_k": 3, "threshold": 0.4, "box_decode": "corners",
    "nms": {"iou": 0.3, "score": 0.5, "max": 200},
}  # fmt: skip


def pre(*raw):
    return Preprocess(parse_steps(raw, "preprocess"))


@pytest.mark.parametrize("word", [*PREPROCESS, *POSTPROCESS])
def test_every_step_parses_and_its_written_form_parses_to_the_same(word):
    kind = "preprocess" if word in PREPROCESS else "postprocess"
    steps = parse_steps([{word: EXAMPLES[word]}], kind)
    written = [json.loads(json.dumps(step.written())) for step in steps]
    again = parse_steps(written, kind)
    assert again == steps
    assert [step.written() for step in again] == written
    assert hash(again) == hash(steps)


def test_all_mistakes_are_reported_at_once_by_position():
    raw = [
        {"resise": [96, 96]},
        {"resize": [96]},
        {"scale": 0.5},
        {"normalize": {"mean": [1, 2], "std": [0, 1], "sdt": 1}},
        {"softmax": True},
        {"decode_wav": 8000},
        {"scale": 1, "clip": [0, 1]},
        {"scale": float("nan")},
        {"clip": [2, 1]},
    ]
    with pytest.raises(StepsError) as caught:
        parse_steps(raw, "preprocess")
    mistakes = dict(caught.value.mistakes)
    assert sorted(mistakes) == [0, 1, 3, 4, 5, 6, 7, 8]
    assert "did you mean 'resize'" in mistakes[0]
    assert "center_crop" in mistakes[0]
    assert "Expected [height, width]" in mistakes[1]
    assert "unknown parameter 'sdt'" in mistakes[3]
    assert "std.0" in mistakes[3]
    assert "postprocess step" in mistakes[4]
    assert "first step" in mistakes[5]
    assert "one key" in mistakes[6]
    assert "not a JSON value" in mistakes[7]
    assert "low 2.0 is above high 1.0" in mistakes[8]
    assert "preprocess step 2: resize" in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        {"scale": 1}, "scale", None, [None], [{}], [{1: 2}], [{"scale": {}}],
        [{"scale": "1"}], [{"scale": [1]}], [{"scale": True, "x": 1}],
        [{"scale": object()}], [{"cast": "complex64"}], [{"resize": [0, 5]}],
        [{"resize": [1e9, 5]}], [{"layout": "HWC->CWX"}], [{"layout": "HHW->HWH"}],
        [{"reshape": [-1, -1]}], [{"log_mel": {"rate": 8000, "window": 9, "hop": 0}}],
        [{"log_mel": {"rate": 8, "window": 9, "hop": 1, "fmin": 3, "fmax": 2}}],
        [{"stft": {"window": 9, "hop": 1, "fft": 8}}], [{"scale": 1}] * (STEPS_MAX + 1),
    ],
)  # fmt: skip
def test_a_malformed_list_is_a_step_error(raw):
    with pytest.raises(StepsError):
        parse_steps(raw, "preprocess")


@settings(max_examples=100)
@given(
    st.sampled_from([*PREPROCESS, *POSTPROCESS]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["size", "rate", "mean", "k"]), inner)
        ),
        max_leaves=6,
    ),
)
def test_any_value_parses_or_is_a_step_error(word, value):
    kind = "preprocess" if word in PREPROCESS else "postprocess"
    try:
        steps = parse_steps([{word: value}], kind)
    except StepsError:
        return
    assert parse_steps([step.written() for step in steps], kind) == steps


def test_nothing_may_follow_the_step_that_makes_the_result():
    with pytest.raises(StepsError, match="step 2: softmax comes after"):
        parse_steps([{"argmax": True}, {"softmax": True}], "postprocess")


def test_a_failing_step_is_named_with_its_position():
    run = pre({"scale": 2}, {"center_crop": [9, 9]})
    with pytest.raises(StepError, match=r"step 2 \(center_crop\): expected at least 9"):
        run(np.zeros((4, 4)))


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (np.array([1.0, np.nan]), "1 NaN or infinite values, the first at"),
        (np.array([[1.0], [-np.inf]]), r"first at \[1, 0\]"),
        (np.array(["a"]), "expected numbers"),
        (np.array([1j]), "expected numbers"),
        (np.array([None]), "expected numbers"),
        ([1.0], "expected an array or bytes, found list"),
        (b"RIFF", "no step that decodes"),
    ],
)
def test_raw_samples_that_are_not_finite_numbers_are_refused(raw, words):
    with pytest.raises(StepError, match=words):
        pre()(raw)


def test_a_result_that_overflows_is_refused():
    with pytest.raises(StepError, match="NaN or infinite"):
        pre({"scale": 1e38})(np.array([1e30], np.float32))


def test_bytes_before_a_step_on_arrays_are_refused():
    with pytest.raises(StepError, match="decode them first"):
        pre({"scale": 1})(b"1234")


def test_the_same_steps_give_the_same_bytes_and_leave_the_input_alone():
    image = np.random.default_rng(3).integers(0, 256, (31, 17, 3), dtype=np.uint8)
    before = image.copy()
    raw = [
        {"resize": [16, 16]}, {"scale": 1 / 255}, {"layout": "HWC->1CHW"},
        {"normalize": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.2], "axis": 1}},
    ]  # fmt: skip
    first, second = pre(*raw)(image), pre(*raw)(image)
    assert first.dtype == np.float32
    assert first.shape == (1, 3, 16, 16)
    assert first.tobytes() == second.tobytes()
    assert np.array_equal(image, before)


def spec(datatype, *shape):
    return TensorSpec(name="x", datatype=datatype, shape=shape)


def test_batched_adds_the_batch_dimension_only_when_it_is_missing():
    assert batched(np.zeros(5, np.float32), spec("FP32", 1, 5)).shape == (1, 5)
    assert batched(np.zeros((1, 5), np.float32), spec("FP32", -1, 5)).shape == (1, 5)
    with pytest.raises(StepError, match=r"expected shape \[1, 5\] .*found \[1, 6\]"):
        batched(np.zeros(6, np.float32), spec("FP32", 1, 5))
    with pytest.raises(StepError, match="expected shape"):
        batched(np.zeros((2, 5), np.float32), spec("FP32", 1, 5))


@pytest.mark.parametrize(
    ("values", "datatype"),
    [
        (np.array([1.5]), "FP32"), (np.array([1.5], np.float32), "FP64"),
        (np.array([300]), "INT16"), (np.array([255]), "UINT8"),
        (np.array([True]), "INT8"), (np.array([True]), "FP16"),
        (np.array([7], np.uint8), "FP32"), (np.array([6e4]), "FP16"),
        (np.array([-1]), "INT64"), (np.array([True]), "BOOL"),
    ],
)  # fmt: skip
def test_batched_casts_where_no_value_is_lost(values, datatype):
    fitted = batched(values, spec(datatype, 1, 1))
    assert fitted.dtype == spec(datatype, 1).dtype
    assert fitted[0, 0] == values[0]


@pytest.mark.parametrize(
    ("values", "datatype"),
    [
        (np.array([1e300]), "FP32"), (np.array([7e4]), "FP16"),
        (np.array([256]), "UINT8"), (np.array([-1]), "UINT64"),
        (np.array([1.0]), "INT32"), (np.array([1]), "BOOL"),
        (np.array([2**63], np.uint64), "INT64"), (np.array([70000]), "FP16"),
        (np.array([np.nan]), "FP32"), (np.array(["1"]), "FP32"),
    ],
)  # fmt: skip
def test_batched_refuses_where_a_value_would_be_lost(values, datatype):
    with pytest.raises(StepError, match="input 'x'"):
        batched(values, spec(datatype, 1, 1))


@given(
    arrays.arrays(
        st.sampled_from(["int8", "uint8", "int32", "int64", "bool", "float32"]),
        arrays.array_shapes(min_dims=1, max_dims=3, max_side=4),
    ),
    st.sampled_from(["UINT8", "INT8", "INT32", "INT64", "FP16", "FP32", "FP64"]),
)
def test_batched_is_exact_for_integers_and_idempotent(array, datatype):
    declared = spec(datatype, 1, *array.shape)
    try:
        once = batched(array, declared)
    except StepError:
        return
    assert np.array_equal(batched(once, declared), once)
    if declared.dtype.kind in "iu":
        assert np.array_equal(once[0], array)


def test_no_postprocess_gives_the_outputs_as_lists():
    done = Postprocess()({"y": np.array([[1.5, 2.0]], np.float32)})
    assert done == {"outputs": {"y": [[1.5, 2.0]]}}


def test_outputs_with_nan_are_refused_by_name():
    with pytest.raises(StepError, match="output 'y' holds 1 NaN"):
        Postprocess()({"y": np.array([np.nan])})
