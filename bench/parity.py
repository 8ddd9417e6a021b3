"""A table of bundles on emulated processors beside this host: docs/emulation.md.

Each bundle is checked on the processors of its architecture, its instructions are
counted so many times, and the rows are printed as Markdown.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from device_agent.contract.bundle import read_bundle

CPUS = {"aarch64": ("cortex-a53", "cortex-a72", "cortex-a76"), "armv7l": ("cortex-a7",)}
HEAD = (
    "bundle", "processor", "golden", "max diff", "flips", "memory (native)",
    "instructions an inference", "equal in",
)  # fmt: skip


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--runs", type=int, default=3, help="counts of each")
    given = parser.parse_args()
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    for path in given.bundles:
        manifest = read_bundle(path).manifest
        title = f"{manifest.name} {manifest.precision}, {manifest.runtime.name}"
        native = checked(path, "--here")
        for cpu in CPUS[manifest.isa.arch]:
            found = [checked(path, "--cpu", cpu, "--count") for _ in range(given.runs)]
            print(f"| {' | '.join([title, cpu, *row(native, found)])} |", flush=True)
    return 0


def checked(path: Path, *words: str) -> dict[str, Any]:
    """The report of one check; nothing is told of one that failed."""
    command = [sys.executable, "-m", "edgeml", "check", str(path), "--json", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def row(native: dict[str, Any], found: list[dict[str, Any]]) -> list[str]:
    """The figures of one bundle on one processor."""
    report = found[0]
    counts = [one["emulation"]["instructions"]["inference"] for one in found]
    memory, here = report["peak_memory_bytes"], native["peak_memory_bytes"]
    most = max(map(counts.count, counts))
    return [
        f"{report['golden_vectors']} right", f"{report['max_abs_diff']:.2g}",
        str(report["argmax_flips"]),
        f"{memory / 2**20:.1f} MiB ({here / 2**20:.1f}; {memory / here - 1:+.1%})",
        f"{counts[-1]:,}", f"{most} of {len(counts)}",
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
