"""Steps on any array."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from device_agent.contract.errors import StepError
from device_agent.contract.preprocess import Preprocess, parse_steps

SMALL = st.floats(-1e6, 1e6, width=32)
FLOATS = arrays.arrays(np.float32, (3, 4), elements=SMALL)


def run(array, *raw):
    return Preprocess(parse_steps(raw, "preprocess"))(array)


@given(FLOATS, SMALL)
def test_scale_and_affine_are_float32_arithmetic(array, number):
    factor = np.float32(number)
    assert np.array_equal(run(array, {"scale": number}), array * factor)
    shifted = run(array, {"affine": {"offset": number, "factor": 0.5}})
    assert np.array_equal(shifted, (array + factor) * np.float32(0.5))


def test_affine_is_the_keyword_features_dequantization():
    features = np.array([[-128, 83, 127]], np.int8)
    floats = run(features, {"affine": {"offset": -83, "factor": 0.5847029}})
    assert floats.dtype == np.float32
    assert np.allclose(floats, (features.astype(float) - 83) * 0.5847029, rtol=1e-6)


@given(FLOATS)
def test_standardize_turns_a_table_into_zero_mean_and_unit_deviation(array):
    mean, std = array.mean(axis=0, dtype=float), array.std(axis=0, dtype=float) + 1.0
    done = run(array, {"standardize": {"mean": mean.tolist(), "std": std.tolist()}})
    assert np.allclose(done, (array - mean) / std, rtol=1e-4, atol=1e-2)


def test_normalize_takes_one_number_for_all_channels_and_standardize_does_not():
    table = np.ones((2, 3), np.float32)
    one = {"mean": [1], "std": [2]}
    assert np.array_equal(run(table, {"normalize": one}), np.zeros((2, 3)))
    with pytest.raises(StepError, match="expected 1 on axis -1"):
        run(table, {"standardize": one})
    with pytest.raises(StepError, match="expected an axis 5"):
        run(table, {"normalize": {"mean": [1, 2], "std": [1, 2], "axis": 5}})


@given(
    arrays.arrays(
        st.sampled_from(["float16", "float32", "float64", "int64", "uint64", "int8"]),
        6,
    ).filter(lambda a: bool(np.isfinite(a).all())),
    st.sampled_from(["int8", "uint8", "int16", "int32", "int64", "uint64"]),
)
def test_cast_to_integers_rounds_and_saturates(array, dtype):
    done = run(array, {"cast": dtype})
    info = np.iinfo(dtype)
    assert done.dtype == dtype
    whole = [min(max(round(v), info.min), info.max) for v in array.tolist()]
    assert done.tolist() == whole


def test_cast_that_would_give_infinities_is_refused():
    with pytest.raises(StepError, match="float16 result holds 1 NaN or infinite"):
        run(np.array([1.0, 70000.0]), {"cast": "float16"})


@given(
    arrays.arrays(st.sampled_from(["uint8", "int16", "float32"]), 5),
    st.floats(-300, 300), st.floats(0, 300),
)  # fmt: skip
def test_clip_keeps_dtype_and_limits(array, low, width):
    array = np.nan_to_num(array, nan=0, posinf=1e6, neginf=-1e6).astype(array.dtype)
    done = run(array, {"clip": [low, low + width]})
    assert done.dtype == array.dtype
    if array.dtype.kind == "f":
        edges = np.float32([low, low + width])
        assert np.array_equal(done, np.clip(array, *edges))


def test_select_takes_columns_in_order():
    table = np.arange(6).reshape(2, 3)
    assert run(table, {"select": [2, 0]}).tolist() == [[2, 0], [5, 3]]
    with pytest.raises(StepError, match="more than 3 columns, found 3"):
        run(table, {"select": [3]})


@given(arrays.arrays(np.int16, (2, 3, 4)))
def test_layouts_round_trip(array):
    there = run(array, {"layout": "HWC->1CHW"})
    assert np.array_equal(there, array.transpose(2, 0, 1)[np.newaxis])
    assert there.flags["C_CONTIGUOUS"]
    assert np.array_equal(run(there, {"layout": "1CHW->HWC"}), array)
    flat = run(array, {"reshape": [4, -1]})
    assert np.array_equal(run(flat, {"reshape": [2, 3, 4]}), array)


def test_layout_and_reshape_refuse_what_does_not_fit():
    image = np.zeros((2, 3))
    with pytest.raises(StepError, match=r"expected axes HWC, found shape \[2, 3\]"):
        run(image, {"layout": "HWC->CHW"})
    with pytest.raises(StepError, match="expected 1 on axes"):
        run(image, {"layout": "1W->W"})
    with pytest.raises(StepError, match="6 elements"):
        run(image, {"reshape": [4, -1]})
