"""Golden vectors: equal bytes, honest comparison."""

import io
import zipfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from device_agent.contract.errors import BundleError
from device_agent.contract.golden import (
    Bound,
    Golden,
    compare,
    judge,
    read_golden,
    write_golden,
)
from device_agent.contract.npz import read_tensors, write_tensors
from device_agent.contract.tensors import Array

DTYPES = st.sampled_from(["bool", "uint8", "int8", "int64", "float16", "float32"])
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0)
ARRAYS: st.SearchStrategy[Array] = DTYPES.flatmap(
    lambda dtype: hnp.arrays(dtype, SHAPES)
)
NAMES = st.text(min_size=1, max_size=8)
RUNS = st.lists(st.dictionaries(NAMES, ARRAYS, max_size=3), max_size=3)


@given(RUNS)
def test_tensors_round_trip(runs: list[dict[str, Array]]) -> None:
    raw = write_tensors({"runs": runs}, {"a": 1})
    turned = [dict(reversed(run.items())) for run in runs]
    assert raw == write_tensors({"runs": turned}, {"a": 1})
    groups, about = read_tensors(raw, "it")
    assert about == {"a": 1}
    for wrote, read in zip(runs, groups["runs"], strict=True):
        assert wrote.keys() == read.keys()
        for name, array in wrote.items():
            assert read[name].dtype == array.dtype
            np.testing.assert_array_equal(read[name], array)


def test_numpy_opens_it_without_pickle() -> None:
    raw = golden_bytes()
    with np.load(io.BytesIO(raw), allow_pickle=False) as opened:
        assert {"index", "t00000"} <= set(opened)


@given(st.data())
def test_damage_is_refused_or_harmless(data: st.DataObject) -> None:
    raw = bytearray(golden_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        read_golden(bytes(raw))
    except BundleError as error:
        assert "golden.npz" in str(error)


def test_a_shape_that_lies_makes_no_array() -> None:
    stream = io.BytesIO()
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }"
    npy = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("t00000.npy", npy)
    with pytest.raises(BundleError, match="has 0 bytes of data"):
        read_tensors(stream.getvalue(), "it")


def test_entries_that_share_bytes_are_refused() -> None:
    raw = golden_bytes()
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        start = archive.start_dir
    end = raw.rindex(b"PK\x05\x06")
    listing = raw[start:end] * 40
    record = bytearray(raw[end:])
    record[8:12] = (40 * 7).to_bytes(2, "little") * 2
    record[12:16] = len(listing).to_bytes(4, "little")
    with pytest.raises(BundleError, match="entries overlap"):
        read_golden(raw[:start] + listing + bytes(record))


def golden_bytes() -> bytes:
    inputs = [{"x": np.full((1, 2), k, np.float32)} for k in range(3)]
    outputs = [{"y": np.array([[k, 1.0]], np.float32)} for k in range(3)]
    return write_golden(inputs, outputs, {"y": (0.1, 0.0)})


@pytest.fixture
def golden() -> Golden:
    return read_golden(golden_bytes())


def answer(*row: float) -> dict[str, Array]:
    return {"y": np.array([row], np.float32)}


class TestCompare:
    def test_right_within_tolerance(self, golden: Golden) -> None:
        (found,) = compare(golden, 0, answer(0.05, 1.0))
        assert not found.wrong
        assert found.max_abs_diff == pytest.approx(0.05)
        assert found.excess == pytest.approx(0.5)

    @pytest.mark.parametrize(
        ("given_", "why"),
        [
            (answer(0.2, 1.0), ""),
            (answer(np.nan, 1.0), "NaN"),
            (answer(np.inf, 1.0), ""),
            (answer(0.0, 1.0, 2.0), "shape"),
            ({"y": np.array([[0.0, 1.0]])}, "datatype"),
            ({}, "missing"),
        ],
    )
    def test_wrong(self, golden: Golden, given_: dict[str, Array], why: str) -> None:
        (found,) = compare(golden, 0, given_)
        assert found.wrong
        assert why in found.found

    def test_nan_is_not_equal_to_nan(self) -> None:
        nan = {"y": np.array([np.nan], np.float32)}
        golden = Golden(({},), (nan,), {"y": Bound(1e9, 1e9)})
        assert compare(golden, 0, nan)[0].wrong

    def test_the_same_infinity_is_right(self) -> None:
        same = {"y": np.array([np.inf, -np.inf], np.float32)}
        golden = Golden(({},), (same,), {"y": Bound(0.0, 0.0)})
        assert not compare(golden, 0, same)[0].wrong

    def test_flips_are_counted_within_tolerance(self) -> None:
        raw = write_golden([{}], [answer(1.0, 1.01)], {"y": Bound(0.1, 0.0)})
        report = judge(read_golden(raw), [answer(1.02, 1.01)])
        assert report.ok
        assert report.argmax_flips == 1


def test_judge_names_the_worst(golden: Golden) -> None:
    runs = [answer(0, 1), answer(1.5, 1), answer(5, 1)]
    report = judge(golden, runs)
    assert report.wrong_vectors == (1, 2)
    assert report.worst is not None and report.worst.vector == 2
    assert judge(golden, runs[:1]).wrong_vectors == (1, 2)


@given(hnp.arrays("float32", (1, 4), elements=st.floats(-1e6, 1e6, width=32)))
def test_a_run_is_right_against_itself(array: Array) -> None:
    golden = read_golden(write_golden([{}], [{"y": array}], {"y": (0.0, 0.0)}))
    assert judge(golden, [{"y": array}]).ok


@pytest.mark.parametrize(
    ("inputs", "outputs", "tolerances"),
    [
        ([], [], {}),
        ([{}], [], {}),
        ([{}], [answer(1)], {}),
        ([{}], [answer(np.nan)], {"y": (0, 0)}),
        ([{}], [answer(1)], {"y": (-1, 0)}),
        ([{}], [answer(1)], {"y": (np.nan, 0)}),
        ([{"x": np.array([None])}], [answer(1)], {"y": (0, 0)}),
    ],
)
def test_what_cannot_be_written(inputs: Any, outputs: Any, tolerances: Any) -> None:
    with pytest.raises(ValueError):
        write_golden(inputs, outputs, tolerances)
