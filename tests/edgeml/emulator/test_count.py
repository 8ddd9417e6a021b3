"""Counts of instructions: the same every time, fewer where there are dot products."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import foreign
import pytest

from device_agent.contract import machine
from device_agent.contract.manifest import Isa
from edgeml.emulator.check import Emulation
from edgeml.emulator.count import Count, count
from edgeml.errors import MachineLacks
from targets.profile import load_target


def counted(path, target: str, cpu: str | None = None) -> Count:
    profile = load_target(target)
    store = foreign.store(profile.arch)
    part = store.lock.counters[machine.arch()]
    if not (store.folder / part.folder).is_dir():
        pytest.skip(f"no {part.name} (edgeml check --count makes it)")
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    emulation = Emulation(profile, cpu or str(profile.qemu_cpu), 300.0)
    return count(path, emulation, store, lambda line: None)


@pytest.mark.long
def test_a_count_repeats_and_dot_products_save_instructions(tmp_path):
    path = foreign.convolutions(tmp_path)
    counted(path, "rpi4")  # Python's bytecode is there now
    found = [counted(path, "rpi4")]
    with ThreadPoolExecutor(2) as pool:  # at once: one waits for the other
        found += pool.map(lambda _: counted(path, "rpi4"), range(2))
    assert len({one.inference for one in found}) == 1
    assert max(one.load for one in found) < 1.0001 * min(one.load for one in found)
    faster = counted(path, "rpi4", "cortex-a76")
    assert faster.inference < 0.5 * found[0].inference


@pytest.mark.long
def test_armv7_counts_too(tmp_path):
    path = foreign.added(tmp_path, "armv7", foreign.ARMV7)
    assert 0 < counted(path, "armv7").inference < 1_000_000


def test_x86_is_not_counted(tmp_path):
    path = foreign.linear(tmp_path, isa=Isa(arch="x86_64"), target="cpu-x86_64")
    emulation = Emulation(load_target("cpu-x86_64"), "Haswell", 1.0)
    with pytest.raises(MachineLacks, match="Arm targets only"):
        count(path, emulation, foreign.anywhere(tmp_path), lambda line: None)
