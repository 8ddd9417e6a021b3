"""What files are, and how bundles differ."""

import json
from pathlib import Path
from typing import Any

import bundles
import numpy as np
import pytest

from device_agent.contract import machine
from device_agent.contract.manifest import Isa
from device_agent.contract.tensors import Array
from edgeml.bundling.compare import Thresholds, diff, diff_values, render_diff
from edgeml.bundling.facts import inspect, render_facts
from edgeml.bundling.running import bench, check_file
from edgeml.errors import InputError

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"


def put(
    folder: Path, name: str, weight: Array = bundles.WEIGHT, **changes: Any
) -> Path:
    path = folder / name
    path.write_bytes(bundles.bundle(weight, **changes))
    return path


def real(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"../shared/data/{name} is absent")
    return path


class TestInspect:
    def test_a_bundle(self, tmp_path: Path) -> None:
        facts = inspect(put(tmp_path, "a.edgeml"))
        assert facts["operators"] == {"MatMul": 1, "Relu": 1}
        assert facts["name"] == "linear"
        assert len(facts["members"]) == 4
        json.dumps(facts)
        assert any("MatMul" in line for line in render_facts(facts))

    def test_onnx(self) -> None:
        facts = inspect(real("mnist/mnist-8.onnx"))
        assert facts["operators"]["Conv"] == 2
        assert facts["inputs"][0]["shape"] == (1, 1, 28, 28)

    def test_tflite(self) -> None:
        facts = inspect(real("tflm/person_detect.tflite"))
        assert facts["inputs"][0]["shape"] == (1, 96, 96, 1)
        assert facts["inputs"][0]["datatype"] == "INT8"
        assert facts["operators"]["DEPTHWISE_CONV_2D"] == 14

    def test_custom_operators_are_named(self) -> None:
        facts = inspect(real("tflm/audio_preprocessor_int8.tflite"))
        assert "SignalEnergy" in facts["operators"]

    @pytest.mark.parametrize(
        ("name", "raw"),
        [
            ("a.onnx", b""),
            ("a.onnx", b"\xff\xff\xff"),
            ("a.tflite", b"no"),
            ("a.tflite", b"\0\0\0\0TFL3"),
            ("a.tflite", b"\xff\xff\xff\x7fTFL3" + bytes(64)),
            ("a.bin", b""),
        ],
    )
    def test_what_is_refused(self, tmp_path: Path, name: str, raw: bytes) -> None:
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(InputError) as caught:
            inspect(tmp_path / name)
        assert "\n" not in str(caught.value)

    def test_absent(self, tmp_path: Path) -> None:
        with pytest.raises(InputError):
            inspect(tmp_path / "a.onnx")
        with pytest.raises(InputError):
            inspect(tmp_path / "a.edgeml")


class TestDiff:
    def test_nothing_changed(self, tmp_path: Path) -> None:
        report = diff(put(tmp_path, "a.edgeml"), put(tmp_path, "b.edgeml"))
        assert not report.regressed
        assert (report.flip_rate, report.max_abs_diff) == (0.0, 0.0)
        assert report.manifest == report.operators == {}
        assert render_diff(report)[-1] == "no regression"
        json.dumps(diff_values(report))

    def test_everything_is_worse(self, tmp_path: Path) -> None:
        weight = bundles.WEIGHT.copy()
        weight[:, 0] += 1
        report = diff(
            put(tmp_path, "a.edgeml"),
            put(tmp_path, "b.edgeml", weight, version="2.0.0",
                metrics=bundles.metrics(0.8, p50_ms=1.0)),
            Thresholds(max_size_growth=-0.5),
        )  # fmt: skip
        words = " ".join(report.regressions)
        for word in ("accuracy drop 0.1", "flip rate", "size", "latency growth 1"):
            assert word in words
        assert report.manifest == {"version": ("1.0.0", "2.0.0")}
        assert diff_values(report)["regressed"] is True

    def test_inputs_of_both_are_run_once(self, tmp_path: Path) -> None:
        report = diff(put(tmp_path, "a.edgeml"), put(tmp_path, "b.edgeml"))
        assert report.compared_inputs == 16

    def test_what_cannot_run_here_is_said(self, tmp_path: Path) -> None:
        isa = Isa(arch=machine.arch(), requires=("warp",))
        report = diff(put(tmp_path, "a.edgeml"), put(tmp_path, "b.edgeml", isa=isa))
        assert report.flip_rate is None
        assert "lacks warp" in report.not_compared[0]
        assert any(line.startswith("not compared") for line in render_diff(report))

    def test_other_samples_are_another_question(self, tmp_path: Path) -> None:
        other = bundles.metrics(0.1)
        score = other.accuracy.model_copy(update={"samples_digest": "0" * 64})
        other = other.model_copy(update={"accuracy": score})
        report = diff(
            put(tmp_path, "a.edgeml"), put(tmp_path, "b.edgeml", metrics=other)
        )
        assert report.accuracy is None
        assert "different questions" in report.not_compared[0]

    def test_latencies_of_two_machines_are_measured_here(self, tmp_path: Path) -> None:
        report = diff(
            put(tmp_path, "a.edgeml"),
            put(tmp_path, "b.edgeml", metrics=bundles.metrics(where="the moon")),
            Thresholds(max_latency_growth=1e9),
        )
        assert report.latency_where == "measured here"
        assert not report.regressed


class TestBench:
    def test_a_bundle(self, tmp_path: Path) -> None:
        facts = bench(put(tmp_path, "a.edgeml"), seconds=0.05, threads=1)
        assert 0 < facts["latency_p50_ms"] <= facts["latency_p99_ms"]
        assert facts["options"] == {"threads": 1}

    def test_an_onnx_file(self, tmp_path: Path) -> None:
        path = tmp_path / "a.onnx"
        path.write_bytes(bundles.linear(np.eye(3, dtype=np.float32)))
        assert bench(path, seconds=0.05)["peak_memory_bytes"] > 1 << 20

    def test_a_tflite_file(self) -> None:
        facts = bench(real("tflm/hello_world_int8.tflite"), seconds=0.05)
        assert facts["runtime"] == "litert"
        assert facts["latency_p50_ms"] > 0

    def test_a_tflite_file_with_a_signature(self) -> None:
        """Its inputs go by the signature's names, as LiteRT has them."""
        assert bench(real("mnist/mnist_lstm_int8.tflite"), seconds=0.05)
        facts = inspect(real("basic_pitch/nmp.tflite"))
        assert [one["name"] for one in facts["inputs"]] == ["input_2"]
        assert [one["name"] for one in facts["outputs"]] == ["onset", "note", "contour"]


class TestCheckFile:
    def test_what_is_sound(self, tmp_path: Path) -> None:
        path = tmp_path / "a.onnx"
        path.write_bytes(bundles.linear(np.eye(3, dtype=np.float32)))
        assert check_file(path)["ok"]
        tflite = check_file(real("mlperf_tiny_kws/kws_ref_model.tflite"))
        assert tflite["outputs"] == {"Identity": [1, 12]}

    def test_answers_that_are_not_finite(self, tmp_path: Path) -> None:
        path = tmp_path / "a.onnx"
        path.write_bytes(bundles.linear(np.full((3, 3), np.nan, np.float32)))
        with pytest.raises(InputError, match="not finite"):
            check_file(path)

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("person_detect", "quantized_dimension must be in range"),
            ("audio_preprocessor_int8", "SignalWindow .* is a custom operator"),
        ],
    )
    def test_files_that_no_runtime_takes(self, name: str, reason: str) -> None:
        with pytest.raises(InputError, match=reason):
            check_file(real(f"tflm/{name}.tflite"))
