"""What a machine says of itself, read from texts of real ones."""

from pathlib import Path

import pytest

from device_agent.contract import machine

PI4 = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU part\t: 0xd08

processor\t: 1
Features\t: fp asimd evtstrm crc32 cpuid asimddp
CPU part\t: 0xd08

Hardware\t: BCM2835
"""
XEON = """processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz
flags\t\t: fpu avx2 fma avx512f avx512_vnni
"""


def test_arm() -> None:
    cpu = machine.parse_cpuinfo(PI4)
    assert (cpu.model, cpu.cores) == ("Cortex-A72", 2)
    assert "asimd" in cpu.features
    assert "asimddp" not in cpu.features, "a feature counts when every core has it"


def test_x86() -> None:
    cpu = machine.parse_cpuinfo(XEON)
    assert cpu.model.startswith("Intel(R) Xeon(R)")
    assert {"avx2", "avx512_vnni"} <= cpu.features


def test_nothing_is_known() -> None:
    cpu = machine.parse_cpuinfo("")
    assert (cpu.cores, cpu.features) == (1, frozenset())


def test_lacks() -> None:
    assert machine.lacks(["a", "b|c"], {"a", "c"}) == ()
    assert machine.lacks(["a", "b|c"], {"b"}) == ("a",)
    assert machine.lacks([], set()) == ()


def test_what_cpuid_denies_is_not_a_feature() -> None:
    from numpy._core._multiarray_umath import __cpu_features__ as by_cpuid

    assert not machine.features() & machine.absent()
    if machine.arch() != "x86_64":
        assert not machine.absent()
        return
    names = {"avx2": "AVX2", "fma": "FMA3", "f16c": "F16C"}
    for feature, name in names.items():
        assert (feature in machine.absent()) == (not by_cpuid[name]), feature


def test_this_machine() -> None:
    assert machine.name().startswith(machine.arch())
    assert machine.memory_bytes("VmHWM") >= machine.memory_bytes("VmRSS") * 0.9 > 0
    assert machine.memory_bytes("VmNothing") == 0


def test_the_peak_counts_what_was_given_back_and_what_is_there() -> None:
    resident = machine._kilobytes(machine._ROLLUP, "Rss")
    assert machine.peak_bytes() >= resident > 0
    block = b"x" * (64 << 20)
    del block
    assert machine.peak_bytes() >= resident + (60 << 20)


def test_a_kernel_that_counts_in_batches_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Linux 6.1 counted a 32-bit process of four threads."""
    status, rollup = tmp_path / "status", tmp_path / "rollup"
    status.write_text("VmHWM:\t   35056 kB\nVmRSS:\t   35056 kB\n")
    rollup.write_text("ff000-ffff0 ---p 00000000 00:00 0 [rollup]\nRss:  35716 kB\n")
    monkeypatch.setattr(machine, "_STATUS", status)
    monkeypatch.setattr(machine, "_ROLLUP", rollup)
    assert machine.peak_bytes() == 35716 * 1024
    rollup.unlink()  # before Linux 4.14
    assert machine.peak_bytes() == 35056 * 1024


def test_a_32_bit_program_on_a_64_bit_kernel_has_what_its_processor_has() -> None:
    shown = machine.parse_cpuinfo(PI4).features
    found = machine.compat(shown, "armv7l")
    assert machine.lacks(("neon", "vfpv4"), found) == ()
    assert machine.compat(shown, "aarch64") == shown
    assert "neon" not in machine.compat(frozenset({"fp"}), "armv7l")
