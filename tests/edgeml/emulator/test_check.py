"""The device's check under emulation: what passes, and why what fails fails.

Plans need no emulator; the rest is skipped where ``edgeml emulator setup`` did not run.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest

from device_agent.contract import machine
from device_agent.contract.bundle import read_bundle
from device_agent.contract.manifest import Isa, Limits, RuntimeSpec
from edgeml.emulator.check import Emulation, check, explained, plan
from edgeml.emulator.guest import Guest, guest
from edgeml.errors import MachineLacks, UsageError
from targets.profile import load_target

RPI4 = load_target("rpi4")
DOTS = Isa(arch="aarch64", requires=("asimd", "asimddp"))


class TestPlan:
    def planned(self, path: Path, *given: Any) -> Emulation | None:
        return plan(read_bundle(path), *given, timeout_s=1.0)

    def test_this_machines_own_needs_no_emulator(self, tmp_path):
        path = foreign.linear(
            tmp_path, isa=Isa(arch=machine.arch()), target="reference"
        )
        assert self.planned(path, None, None, load_target("reference")) is None

    def test_another_architecture_gets_its_targets_processor(self, tmp_path):
        if machine.arch() == "aarch64":
            pytest.skip("this machine is of the target's architecture")
        found = self.planned(foreign.linear(tmp_path), None, None, RPI4)
        assert found == Emulation(RPI4, "cortex-a72", 1.0)
        assert found.machine == "rpi4 (cortex-a72)"

    def test_a_processor_or_a_target_that_is_named_is_emulated(self, tmp_path):
        path = foreign.linear(tmp_path)
        found = self.planned(path, None, "cortex-a53", RPI4)
        assert found is not None and found.machine == "cortex-a53"
        found = self.planned(path, load_target("rpi3"), None, RPI4)
        assert found is not None and found.cpu == "cortex-a53"

    def test_what_cannot_be_emulated_is_told(self, tmp_path):
        path = foreign.linear(tmp_path)
        if machine.arch() != "aarch64":
            with pytest.raises(UsageError, match="'rpi4' is not known here; name its"):
                self.planned(path, None, None, None)
        with pytest.raises(UsageError, match="is for aarch64 and armv7 is armv7l"):
            self.planned(path, load_target("armv7"), None, RPI4)
        path = foreign.linear(tmp_path, isa=Isa(arch="x86_64"))
        with pytest.raises(UsageError, match="no processor for cpu-x86_64-vnni"):
            self.planned(path, load_target("cpu-x86_64-vnni"), None, None)


def checked(path: Path, target: str = "rpi4", **changes: Any) -> dict[str, Any]:
    profile = load_target(target)
    store = foreign.store(profile.arch)
    given = {"cpu": profile.qemu_cpu, "timeout_s": 300.0, **changes}
    return check(path, Emulation(profile, **given), store, lambda line: None)


def failure(report: dict[str, Any], code: int = 3) -> tuple[str, str]:
    assert not report["ok"]
    assert report["exit_code"] == code, report["failure"]
    return report["failure"]["step"], report["failure"]["reason"]


@pytest.mark.long
class TestPasses:
    def test_int8_is_exact_on_arm64(self, tmp_path):
        report = checked(foreign.convolutions(tmp_path))
        assert report["ok"], report["failure"]
        assert report["size_bytes"] > 5_000_000
        assert report["golden_vectors"] == 4
        assert report["max_abs_diff"] == 0
        assert report["latency_p50_ms"] is None
        assert report["machine"].startswith("aarch64")
        assert not report["foreign"]
        assert 30 << 20 < report["peak_memory_bytes"] < 150 << 20
        about = report["emulation"]
        assert about["cpu"] == "cortex-a72"
        assert about["wall_s"] < 60

    def test_litert_on_armv7(self, tmp_path):
        path = foreign.added(tmp_path, "armv7", foreign.ARMV7)
        report = checked(path, "armv7")
        assert report["ok"], report["failure"]
        assert report["runtime_version"] == "0.2.14.0"
        assert report["machine"].startswith("armv7l")
        assert 20 << 20 < report["peak_memory_bytes"] < 80 << 20
        assert report["emulation"]["wall_s"] < 60

    def test_dot_products_are_there_on_the_processor_that_has_them(self, tmp_path):
        path = foreign.linear(tmp_path, target="rpi5", isa=DOTS)
        assert checked(path, "rpi5")["ok"]


@pytest.mark.long
class TestFails:
    def test_a_wrong_golden(self, tmp_path):
        path = foreign.linear(tmp_path, golden=np.ones((4, 3), np.float32))
        step, reason = failure(checked(path))
        assert step == "golden"
        assert "12 of 16 golden vectors are wrong" in reason

    def test_an_instruction_set_that_the_target_has_not(self, tmp_path):
        path = foreign.linear(tmp_path, target="rpi5", isa=DOTS)
        expected = ("isa", "needs asimddp; rpi4 (cortex-a72) has not")
        assert failure(checked(path)) == expected

    def test_more_memory_than_the_target_has(self, tmp_path):
        step, reason = failure(checked(foreign.greedy(tmp_path)))
        assert step == "memory"
        assert reason.startswith("it takes more than the 1073741824 bytes of memory")
        assert "rpi4 has" in reason

    def test_more_memory_than_the_bundle_promises(self, tmp_path):
        path = foreign.linear(tmp_path, limits=Limits(peak_memory_bytes=10 << 20))
        step, reason = failure(checked(path))
        assert step == "limits"
        assert "at most 10485760" in reason

    def test_an_operator_version_that_armv7_has_not(self, tmp_path):
        path = foreign.added(tmp_path, "armv7", foreign.ARMV7, version=6)
        step, reason = failure(checked(path, "armv7"))
        assert step == "operators"
        assert "has no operator ADD version 6 (it has 5)" in reason

    def test_an_operator_that_nobody_has(self, tmp_path):
        step, reason = failure(checked(foreign.unknown(tmp_path)))
        assert step == "operators"
        assert "onnxruntime 1.31.1 on rpi4 has no operator com.example:Warp" in reason

    def test_a_runtime_that_the_target_cannot_have(self, tmp_path):
        runtime = RuntimeSpec(name="onnxruntime", min_version="99.0")
        step, reason = failure(checked(foreign.linear(tmp_path, runtime=runtime)), 5)
        assert step == "runtime"
        assert "it needs 99.0 or later" in reason

    def test_no_time(self, tmp_path):
        with pytest.raises(MachineLacks, match="not done within 1 s under emulation"):
            checked(foreign.linear(tmp_path), timeout_s=1.0)

    def test_a_gpu(self, tmp_path):
        gpu = RuntimeSpec(
            name="onnxruntime", min_version="1.17", options={"provider": "cuda"}
        )
        with pytest.raises(MachineLacks, match=r"runs on a GPU \(cuda\)"):
            checked(foreign.linear(tmp_path, runtime=gpu))


SDOT = """
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex("0094824e" "c0035fd6"))  # sdot v0.4s, v0.16b, v2.16b; ret
place = ctypes.addressof(ctypes.c_char.from_buffer(code))
ctypes.CFUNCTYPE(None)(place)()
"""


@pytest.mark.long
def test_what_died_of_an_instruction_is_explained():
    store = foreign.store("aarch64")
    emulation = Emulation(RPI4, "cortex-a72", 60.0)

    def runs(host: Guest) -> bool:
        ran = host.run(["-c", SDOT], memory_bytes=None, timeout_s=60)
        assert ran.code in (0, -4), ran.stderr
        return ran.code == 0

    said: Callable[[str], None] = lambda line: None  # noqa: E731
    with guest(store, "aarch64", "cortex-a72", said) as host:
        assert not runs(host)
        had = host.features()
    why = explained(store, emulation, had, runs, said)
    assert "asimddp" in why
    assert "rpi4 (cortex-a72) has not" in why
    assert "runs on cortex-a76" in why
