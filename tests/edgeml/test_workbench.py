"""The workbench's answers: distances in dB, bytes and back, refusals by the runtime."""

from pathlib import Path

import numpy as np
import pytest
from benches import FP32, bench, reference, static
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from device_agent.contract.tensors import Array
from edgeml.candidate import Artifact
from edgeml.errors import BackendError
from edgeml.workbench import packed, sqnr_db, unpacked

INT8 = static("int8 minmax u8s8")
tensors = arrays(np.float32, (3, 4), elements=st.floats(-100, 100, width=32))


@given(tensors)
def test_equal_outputs_are_as_far_apart_as_can_be_said(array: Array) -> None:
    assert sqnr_db({"y": array}, {"y": array}) == 200.0


@given(tensors, tensors)
def test_the_ratio_is_bounded(want: Array, got: Array) -> None:
    assert -200.0 <= sqnr_db({"y": want}, {"y": got}) <= 200.0


@given(st.floats(1e-3, 0.5), st.floats(1.1, 10))
def test_more_noise_is_a_lower_ratio(noise: float, more: float) -> None:
    want = np.linspace(-1, 1, 9)
    quiet = sqnr_db({"y": want}, {"y": want * (1 + noise)})
    loud = sqnr_db({"y": want}, {"y": want * (1 + noise * more)})
    assert loud < quiet
    assert quiet == pytest.approx(-20 * np.log10(noise))


@given(st.floats(1e-3, 1e3))
def test_scale_does_not_count(scale: float) -> None:
    want, got = np.linspace(-1, 1, 9), np.linspace(-1, 1.1, 9)
    assert sqnr_db({"y": want * scale}, {"y": got * scale}) == pytest.approx(
        sqnr_db({"y": want}, {"y": got})
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_number_is_the_worst_ratio(value: float) -> None:
    assert sqnr_db({"y": np.ones(3)}, {"y": np.array([1, value, 1])}) == -200.0


@given(
    st.dictionaries(st.sampled_from(["a.xml", "b.bin", "c"]), st.binary(), min_size=1)
)
def test_an_artifact_comes_back_from_its_bytes(files: dict[str, bytes]) -> None:
    entry = min(files)
    artifact = Artifact("openvino", entry, files, {"threads": 2, "fast": True})
    assert unpacked(packed(artifact)) == artifact
    assert unpacked(packed(artifact)).digest == artifact.digest


def test_an_artifact_is_made_once(tmp_path: Path) -> None:
    first, again = (bench(tmp_path, []) for _ in range(2))
    assert first.make(INT8) == again.make(INT8)
    assert first.backend.lowered == [INT8.name]  # type: ignore[attr-defined]
    assert again.backend.lowered == []  # type: ignore[attr-defined]


def test_options_of_the_artifact_win_over_those_of_the_target(tmp_path: Path) -> None:
    made = bench(tmp_path, [])
    options = made.options(Artifact("onnxruntime", "m", {}, {"arena": True}))
    assert options["arena"] is True
    assert options["spinning"] is False
    assert options["threads"] == made.target.threads


def test_what_the_runtime_refuses_is_a_failed_candidate(tmp_path: Path) -> None:
    broken = Artifact("onnxruntime", "model.onnx", {"model.onnx": b"no model"})
    with pytest.raises(BackendError, match="onnxruntime refuses it"):
        bench(tmp_path, []).open(broken)


def test_an_answer_that_is_no_number_is_a_failed_candidate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench(tmp_path, [])
    session = made.open(made.make(FP32))
    nothing = {"scores": np.full((1, 10), np.nan, np.float32)}
    monkeypatch.setattr(session, "predict", lambda feeds: nothing)
    monkeypatch.setattr(made, "open", lambda artifact: session)
    with pytest.raises(BackendError):
        made.evaluate(made.make(FP32), reference())


def test_a_damaged_file_of_an_artifact_is_written_again(tmp_path: Path) -> None:
    made = bench(tmp_path, [])
    artifact = made.make(FP32)
    made.path(artifact).write_bytes(b"damaged")
    assert made.path(artifact).read_bytes() == artifact.files[artifact.entry]
