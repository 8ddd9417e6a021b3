"""The device's own check, as the command and as the function."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import bundles
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import device_agent
from device_agent.__main__ import main
from device_agent.check import CheckOptions, CheckReport, _quantile, check
from device_agent.contract import machine
from device_agent.contract.manifest import Isa, Limits, RuntimeSpec
from device_agent.contract.tensors import Array

OPTIONS = CheckOptions(runs=20)


def checked(
    folder: Path, options: CheckOptions = OPTIONS, golden: Array | None = None,
    **changes: Any,
) -> CheckReport:  # fmt: skip
    path = folder / "it.edgeml"
    path.write_bytes(bundles.bundle(golden=golden, **changes))
    return check(path, options)


def test_a_good_bundle(tmp_path: Path) -> None:
    report = checked(tmp_path)
    assert report.failure is None
    assert (report.exit_code, report.golden_vectors) == (0, 16)
    assert report.latency_p50_ms is not None and report.latency_p99_ms is not None
    assert 0 < report.latency_p50_ms <= report.latency_p99_ms
    assert [one.name for one in tmp_path.iterdir()] == ["it.edgeml"]


def test_wrong_answers(tmp_path: Path) -> None:
    other = bundles.WEIGHT + np.float32(0.1)
    report = checked(tmp_path, golden=other)
    assert report.exit_code == 3
    assert report.failure is not None and report.failure.step == "golden"
    assert "of 16 golden vectors are wrong" in report.failure.reason
    json.dumps(report.document(), allow_nan=False)


@pytest.mark.parametrize(
    ("changes", "code", "step"),
    [
        ({"isa": Isa(arch="riscv64")}, 3, "isa"),
        ({"isa": Isa(arch=machine.arch(), requires=("warp",))}, 3, "isa"),
        ({"isa": Isa(arch=machine.arch(), requires=("warp|weft",))}, 3, "isa"),
        ({"runtime": RuntimeSpec(name="abacus", min_version="1")}, 5, "runtime"),
        ({"runtime": RuntimeSpec(name="onnxruntime", min_version="99")}, 5, "runtime"),
        (
            {"runtime": RuntimeSpec(name="onnxruntime", min_version="1",
                                    options={"speed": "ludicrous"})}, 4, "load",
        ),
        ({"limits": Limits(peak_memory_bytes=1)}, 3, "limits"),
    ],
)  # fmt: skip
def test_what_fails_where(
    tmp_path: Path, changes: dict[str, Any], code: int, step: str
) -> None:
    report = checked(tmp_path, **changes)
    assert report.failure is not None
    assert (report.exit_code, report.failure.step) == (code, step)


def test_features_stand_in_for_the_machine(tmp_path: Path) -> None:
    isa = Isa(arch=machine.arch(), requires=("avx_vnni|avx512_vnni",))
    haswell = CheckOptions(features={"avx2"}, runs=10)
    assert checked(tmp_path, haswell, isa=isa).isa_missing == ("avx_vnni|avx512_vnni",)
    vnni = CheckOptions(features={"avx2", "avx512_vnni"}, runs=10)
    assert checked(tmp_path, vnni, isa=isa).ok


class TestAnotherArchitecture:
    """A build host may look at its numbers; a device does not."""

    ISA = Isa(arch="armv7l", requires=("neon",))

    def test_a_device_refuses_it(self, tmp_path: Path) -> None:
        report = checked(tmp_path, isa=self.ISA)
        assert (report.exit_code, report.foreign) == (3, True)
        assert report.golden_vectors is None, "nothing of it was run"

    def test_a_build_host_runs_it(self, tmp_path: Path) -> None:
        report = checked(tmp_path, CheckOptions(any_arch=True, runs=10), isa=self.ISA)
        assert (report.exit_code, report.foreign) == (0, True)
        assert report.golden_vectors == 16

    def test_its_wrong_answers_are_wrong_there_too(self, tmp_path: Path) -> None:
        options = CheckOptions(any_arch=True, runs=10)
        other = bundles.WEIGHT + np.float32(0.1)
        report = checked(tmp_path, options, golden=other, isa=self.ISA)
        assert report.exit_code == 3

    def test_features_of_ones_own_kind_still_count(self, tmp_path: Path) -> None:
        isa = Isa(arch=machine.arch(), requires=("warp",))
        report = checked(tmp_path, CheckOptions(any_arch=True), isa=isa)
        assert (report.exit_code, report.isa_missing) == (3, ("warp",))

    def test_the_command_says_so(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "it.edgeml"
        path.write_bytes(bundles.bundle(isa=self.ISA))
        assert main(["check", "--any-arch", str(path)]) == 0
        assert "it is for armv7l: its answers were checked" in capsys.readouterr().out


class TestLatencyLimit:
    """A promise about one machine is held on that machine."""

    LIMITS = Limits(latency_ms=1e-9)

    def test_elsewhere_it_is_reported(self, tmp_path: Path) -> None:
        report = checked(tmp_path, limits=self.LIMITS)
        assert report.ok and not report.latency_gated
        assert report.latency_limit_ms == self.LIMITS.latency_ms

    def test_where_it_was_measured_it_is_gated(self, tmp_path: Path) -> None:
        here = bundles.metrics(where=machine.name())
        report = checked(tmp_path, limits=self.LIMITS, metrics=here)
        assert report.exit_code == 3
        assert report.failure is not None and "ms (p50)" in report.failure.reason

    def test_on_demand_it_is_gated(self, tmp_path: Path) -> None:
        options = CheckOptions(gate_latency=True, runs=10)
        assert checked(tmp_path, options, limits=self.LIMITS).exit_code == 3


def test_a_damaged_bundle(tmp_path: Path) -> None:
    path = tmp_path / "it.edgeml"
    path.write_bytes(bundles.bundle()[:-1])
    report = check(path)
    assert report.exit_code == 4
    assert report.failure is not None and report.failure.step == "bundle"


def test_a_bundle_without_golden_vectors(tmp_path: Path) -> None:
    from edgeml.bundling.bundle import pack

    members = bundles.members()
    del members["golden.npz"]
    path = tmp_path / "it.edgeml"
    path.write_bytes(pack(bundles.manifest(), members))
    assert check(path).exit_code == 4


class TestCommand:
    @pytest.mark.parametrize(
        ("arguments", "code"),
        [([], 2), (["fly"], 2), (["check"], 2), (["--help"], 0),
         (["check", "--runs", "0", "x"], 2), (["check", "absent.edgeml"], 4)],
    )  # fmt: skip
    def test_exit_codes(
        self, arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(arguments) == code
        assert "Traceback" not in capsys.readouterr().err

    def test_json(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "it.edgeml"
        path.write_bytes(bundles.bundle())
        assert main(["check", str(path), "--json", "--runs", "10"]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed["ok"] is True
        assert printed["runtime"] == "onnxruntime"

    def test_a_copied_folder_is_complete(self, tmp_path: Path) -> None:
        home, away = tmp_path / "home", tmp_path / "away"
        away.mkdir()
        shutil.copytree(
            Path(device_agent.__file__).parent, home / "device_agent",
            ignore=shutil.ignore_patterns("__pycache__"),
        )  # fmt: skip
        (away / "it.edgeml").write_bytes(bundles.bundle())
        (away / "json.py").write_text("raise SystemExit('the working folder was run')")
        done = subprocess.run(
            [sys.executable, str(home / "device_agent"), "check", "it.edgeml"],
            cwd=away, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert "16 vectors right" in done.stdout


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.sampled_from([0.5, 0.99])
)
def test_quantiles_are_numpys(values: list[float], share: float) -> None:
    np.testing.assert_allclose(_quantile(values, share), np.quantile(values, share))
