"""A table of bundles on emulated processors: docs/emulation.md.

1. Each bundle is checked on the processors of its architecture by ``edgeml check``,
   its instructions are counted so many times, and the rows are printed as Markdown.
2. Memory is held against a whole machine of that processor: a kernel of its own counts
   what the same program, libraries and bundle take there (VmHWM). A Cortex-A7 is too
   old for that kernel; a Cortex-A72 runs its 32-bit programs.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from device_agent.contract.bundle import read_bundle
from edgeml.cache import user_cache
from edgeml.emulator.store import Store

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "simulators"))

from machines import Drive, Machine, Tools, make_ext4  # noqa: E402

CPUS = {"aarch64": ("cortex-a53", "cortex-a72", "cortex-a76"), "armv7l": ("cortex-a7",)}
WHOLE = {"cortex-a7": "cortex-a72"}
HEAD = (
    "bundle", "processor", "golden", "max diff", "flips", "memory (whole machine)",
    "instructions an inference", "equal in",
)  # fmt: skip
ENVIRONMENT = (
    "PATH=/usr/bin", "PYTHONHOME=/usr", "PYTHONPATH=/device:/site", "HOME=/tmp",
    "LANG=C.UTF-8", "PYTHONHASHSEED=0", "PYTHONNOUSERSITE=1", "OMP_NUM_THREADS=1",
    "ORT_DISABLE_TELEMETRY=1",
)  # fmt: skip
MADVISE = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled; "


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--runs", type=int, default=3, help="counts of each")
    given = parser.parse_args()
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    with tempfile.TemporaryDirectory() as folder:
        roots: dict[str, Drive] = {}
        for path in given.bundles:
            manifest = read_bundle(path).manifest
            arch = manifest.isa.arch
            if arch not in roots:
                roots[arch] = root(arch, Path(folder))
            title = f"{manifest.name} {manifest.precision}, {manifest.runtime.name}"
            for cpu in CPUS[arch]:
                words = ("--cpu", cpu, "--count")
                found = [checked(path, *words) for _ in range(given.runs)]
                kernels = whole(path, cpu, roots[arch], Path(folder))
                cells = [title, cpu, *row(kernels, found)]
                print(f"| {' | '.join(cells)} |", flush=True)
    return 0


def root(arch: str, folder: Path) -> Drive:
    """A disk with the emulator's guest of that architecture and this checkout's
    program; compiled to bytecode, as it is on a device that has run it before."""
    _, guest = Store(user_cache() / "emulator").guest(arch, print)
    content = folder / arch
    shutil.copytree(guest, content, symlinks=True)
    shutil.rmtree(content / "bytecode", ignore_errors=True)
    for name in ("proc", "sys", "dev", "tmp", "run", "mnt"):
        (content / name).mkdir(exist_ok=True)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(
        ROOT / "device_agent", content / "device" / "device_agent", ignore=ignored
    )
    libraries = [content / "usr/lib/python3", content / "usr/lib/python3.11"]
    compiled = [content / "device", content / "site", *libraries]
    # some of Debian's own files are of other Pythons: it says so, and goes on
    subprocess.run(
        [sys.executable, "-m", "compileall", "-q", "-s", content, *compiled],
        stdout=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    disk = make_ext4(folder / f"{arch}.img", 800 << 20, content)
    shutil.rmtree(content)
    return disk


def whole(path: Path, cpu: str, root: Drive, folder: Path) -> dict[str, Any]:
    """The report of the same check on a whole machine: of a second one, whose files are
    in its memory already as they are on this host."""
    machine = Machine(Tools.found(), folder, WHOLE.get(cpu, cpu), 2 << 30)
    once = "/usr/bin/python3.11 -m device_agent check it.edgeml --emulated"
    check = f"{once} --quiet; exec {once} --json"
    done = machine.run(
        ["/run/busybox", "sh", "-c", MADVISE + check],
        files={"it.edgeml": path.read_bytes()},
        root=root, environment=ENVIRONMENT,
    )  # fmt: skip
    if done.code:
        raise SystemExit(f"{path} on a whole {cpu}: exit code {done.code}\n{done.out}")
    report: dict[str, Any] = json.loads(done.out)
    return report


def checked(path: Path, *words: str) -> dict[str, Any]:
    """The report of one check; nothing is told of one that failed."""
    command = [sys.executable, "-m", "edgeml", "check", str(path), "--json", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def row(kernels: dict[str, Any], found: list[dict[str, Any]]) -> list[str]:
    """The figures of one bundle on one processor; the last of its reports.

    The first compiles the device's program to bytecode, which takes memory, too.
    """
    report = found[-1]
    counts = [one["emulation"]["instructions"]["inference"] for one in found]
    memory, there = report["peak_memory_bytes"], kernels["peak_memory_bytes"]
    most = max(map(counts.count, counts))
    return [
        f"{report['golden_vectors']} right", f"{report['max_abs_diff']:.2g}",
        str(report["argmax_flips"]),
        f"{memory / 2**20:.1f} MiB ({there / 2**20:.1f}; {memory / there - 1:+.1%})",
        f"{counts[-1]:,}", f"{most} of {len(counts)}",
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
