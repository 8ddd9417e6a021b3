"""What this machine is: architecture, processor, features, memory in use.

The rules it keeps:

1. Features have the names of /proc/cpuinfo (``flags`` on x86, ``Features`` on ARM); a
   feature counts when every core has it.
2. On x86 the CPUID instruction has the last word on the features that decide what a
   model answers: an emulator shows its host's /proc/cpuinfo, and its own CPUID.
   A 32-bit program on a 64-bit ARM kernel is shown the features of 64-bit programs;
   those that it has are named as 32-bit kernels name them.
3. The name of a machine says what decides how fast a model runs and which answers an
   int8 model gives; measurements are kept under it.
"""

import ctypes
import os
import platform
import struct
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_ROLLUP = Path("/proc/self/smaps_rollup")
_STATUS = Path("/proc/self/status")
_MATTERING = (
    "avx2", "fma", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8",
    "neon", "vfpv4", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
_CPUID_BITS = {
    "fma": (0, 2, 12), "f16c": (0, 2, 29), "avx2": (1, 1, 5), "avx512f": (1, 1, 16),
    "avx512_vnni": (1, 2, 11), "amx_int8": (1, 3, 25), "avx_vnni": (6, 0, 4),
    "avx512_bf16": (6, 0, 5),
}  # fmt: skip
"""Feature → index of the leaf in glibc's <sys/platform/x86.h>, register, bit."""
_COMPAT = {"asimd": frozenset({"neon", "vfpv3", "vfpv4"})}
"""What a 64-bit kernel shows → what 32-bit programs have on such a processor."""
_ARCHES = {"amd64": "x86_64", "arm64": "aarch64", "armv8l": "armv7l"}
_ARM_PARTS = {
    0xC07: "Cortex-A7", 0xC09: "Cortex-A9", 0xC0F: "Cortex-A15", 0xD03: "Cortex-A53",
    0xD04: "Cortex-A35", 0xD05: "Cortex-A55", 0xD07: "Cortex-A57", 0xD08: "Cortex-A72",
    0xD09: "Cortex-A73", 0xD0A: "Cortex-A75", 0xD0B: "Cortex-A76", 0xD0C: "Neoverse-N1",
    0xD40: "Neoverse-V1", 0xD42: "Cortex-A78AE", 0xD49: "Neoverse-N2",
}  # fmt: skip


@dataclass(frozen=True)
class Cpu:
    """The processor, as far as it can be told."""

    model: str
    cores: int
    features: frozenset[str]


def parse_cpuinfo(text: str) -> Cpu:
    """Read the text of /proc/cpuinfo; features are those of every core.

    >>> parse_cpuinfo("processor: 0\\nmodel name: X\\nflags: avx2 fma\\n").cores
    1
    """
    model, cores = "", 0
    sets: list[frozenset[str]] = []
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "processor":
            cores += 1
        elif key == "model name" and not model:
            model = value
        elif key == "CPU part" and not model:
            model = _arm_part(value)
        elif key in ("flags", "Features"):
            sets.append(frozenset(value.split()))
    features = frozenset.intersection(*sets) if sets else frozenset[str]()
    return Cpu(model or "unknown processor", max(cores, 1), features)


def cpu() -> Cpu:
    """This machine's processor; unknown where there is no /proc/cpuinfo."""
    try:
        text = _CPUINFO.read_text(errors="replace")
    except OSError:
        text = ""
    found = parse_cpuinfo(text)
    return replace(found, features=compat(found.features, arch()) - absent())


def compat(features: frozenset[str], arch: str) -> frozenset[str]:
    """Features as a kernel of ``arch`` would name them; those that were found, too.

    >>> sorted(compat(frozenset({"asimd"}), "armv7l"))
    ['asimd', 'neon', 'vfpv3', 'vfpv4']
    """
    if arch != "armv7l":
        return features
    return features.union(*(_COMPAT[one] for one in features if one in _COMPAT))


def absent() -> frozenset[str]:
    """Features that this x86 processor says it does not have, by CPUID.

    Asked of glibc (2.33 or later), which has the answers ready; elsewhere nothing is
    known to be absent.
    """
    try:
        leaf = ctypes.CDLL(None)["__x86_get_cpuid_feature_leaf"]
    except (AttributeError, OSError, TypeError):
        return frozenset()
    leaf.argtypes, leaf.restype = [ctypes.c_uint], ctypes.POINTER(ctypes.c_uint32 * 4)
    return frozenset(
        feature
        for feature, (index, register, bit) in _CPUID_BITS.items()
        if not leaf(index).contents[register] >> bit & 1
    )


def features() -> frozenset[str]:
    """CPU features that every core of this machine has, as this process sees it."""
    return cpu().features


def arch() -> str:
    """``x86_64``, ``aarch64``, ``armv7l`` or what ``uname -m`` prints.

    A 32-bit program on a 64-bit ARM kernel is ``armv7l``: its runtime is.
    """
    found = platform.machine().lower()
    found = _ARCHES.get(found, found)
    if found == "aarch64" and struct.calcsize("P") == 4:
        return "armv7l"
    return found


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def name() -> str:
    """This machine in one line, e.g. ``x86_64 AMD EPYC, 2 cores, avx2 avx512_vnni``."""
    found = cpu()
    mattering = " ".join(one for one in _MATTERING if one in found.features)
    parts = [f"{arch()} {found.model}", f"{cores()} cores", mattering]
    return ", ".join(filter(None, parts))


def lacks(requires: Collection[str], found: Collection[str]) -> tuple[str, ...]:
    """The requirements that no feature of ``found`` meets.

    >>> lacks(["avx2", "avx_vnni|avx512_vnni"], {"avx2", "avx512_vnni"})
    ()
    >>> lacks(["avx2", "avx_vnni|avx512_vnni"], {"avx2"})
    ('avx_vnni|avx512_vnni',)
    """
    return tuple(
        one for one in requires if not any(name in found for name in one.split("|"))
    )


def memory_bytes(field: str) -> int:
    """This process's memory: ``VmRSS`` now, ``VmHWM`` at its peak; 0 if unknown."""
    return _kilobytes(_STATUS, field)


def peak_bytes() -> int:
    """The most that this process had resident; 0 if unknown.

    A kernel counts the pages of a thread in batches: what ``VmHWM`` lacks is up to
    256 KiB of each before Linux 6.2 (proc(5) calls it inaccurate), 2 % of a small
    process. What is resident now is counted page by page.
    """
    return max(memory_bytes("VmHWM"), _kilobytes(_ROLLUP, "Rss"))


def _kilobytes(path: Path, field: str) -> int:
    try:
        for line in path.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return 0
    return 0


def _arm_part(value: str) -> str:
    try:
        return _ARM_PARTS.get(int(value, 16), f"ARM part {value}")
    except ValueError:
        return ""
