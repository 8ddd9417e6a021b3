"""An unmodified process is killed at its K-th system call, or the call fails.

``strace`` does it, from outside: SIGKILL, ENOSPC or EIO at the K-th ``pwrite64``,
``fsync`` and so on, for every K that a run of the flow has. So SQLite's own writes are
cut, too, which the seam does not see.
"""

import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import faultdriver
from faultflows import MARK, Campaign, copied, judged, load, scratch

CALLS: Final = (
    "openat", "pwrite64", "fsync", "fdatasync", "ftruncate", "mkdir", "rename",
    "unlink", "write",
)  # fmt: skip
FAILING: Final = tuple(one for one in CALLS if one != "write")
"""``write`` is how the driver says what the flow said."""
KILLED: Final = -9
LIMIT_S: Final = 120
MISSED_SHARE: Final = 0.2
"""Of the calls, those that may not come; more, and strace does not do what it says."""
_CALL = re.compile(r"(\d+) +(\w+)\(")


@dataclass(frozen=True)
class Fault:
    """What is done at which call."""

    call: str
    at: int
    what: str
    """``signal=SIGKILL``, ``error=ENOSPC`` …"""
    which: str = ""
    """Of which calls; empty: of all."""

    def __str__(self) -> str:
        which = f" of {self.which}" if self.which else ""
        return f"{self.what} at {self.call} {self.at}{which}"


def strike(
    name: str,
    seed: int,
    whats: Sequence[str] = ("signal=SIGKILL", "error=ENOSPC", "error=EIO"),
    *,
    sample: int | None = None,
    mutant: str = "",
    jobs: int = 2,
) -> Campaign:
    """Every call of a flow (or a sample of them) and every way to fail."""
    campaign = Campaign(f"{', '.join(whats)} by strace, {name}", seed)
    with scratch() as folder:
        before = folder / "before"
        before.mkdir()
        load(name, seed).prepare(before)
        points = _points(name, seed, before, folder, mutant)
        campaign.points = len(points)
        faults = [
            Fault(call, at, what)
            for what in whats
            for call, at in points
            if what.startswith("signal") or call in FAILING
        ]
        if sample is not None:
            faults = random.Random(seed).sample(faults, min(sample, len(faults)))
        with ThreadPoolExecutor(jobs) as pool:
            done = pool.map(
                lambda one: (one, _struck(name, seed, before, folder, mutant, one)),
                faults,
            )
            missed = 0
            for fault, texts in done:
                missed += texts is None
                campaign.faults += texts is not None
                campaign.found(str(fault), texts or ())
        if missed > MISSED_SHARE * len(faults):
            campaign.found("strace", [f"{missed} of {len(faults)} calls never came"])
    return campaign


def _points(
    name: str, seed: int, before: Path, folder: Path, mutant: str
) -> list[tuple[str, int]]:
    """Every call of the flow's own thread: which one, and its number in the process."""
    state, log = copied(before, folder / "counted"), folder / "log"
    command = ["-o", str(log), "-e", f"trace={','.join(CALLS)}"]
    code = _run(command, name, seed, state, folder / "counted.said", mutant)
    assert code == 0, f"the flow itself ended with {code}"
    found: list[tuple[str, int]] = []
    counts: Counter[str] = Counter()
    main, begun = "", False
    for line in log.read_text().splitlines():
        matched = _CALL.match(line)
        if matched is None:
            continue
        main = main or matched[1]
        begun = begun or MARK in line
        if matched[1] == main:
            counts[matched[2]] += 1
            if begun and MARK not in line:
                found.append((matched[2], counts[matched[2]]))
    assert begun, "the mark is not in the trace"
    return found


def _struck(
    name: str, seed: int, before: Path, folder: Path, mutant: str, fault: Fault
) -> list[str] | None:
    """What is wrong after it; None: that call never came, for no two runs are alike
    where a network is."""
    place = folder / f"{fault.call}-{fault.at}-{fault.what}"
    state, heard = copied(before, place), place.with_suffix(".said")
    options = ["-e", f"trace={fault.call}"]
    options += ["-e", f"inject={fault.call}:{fault.what}:when={fault.at}"]
    code = _run([*options, "-o", "/dev/null"], name, seed, state, heard, mutant)
    if fault.what.startswith("signal"):
        if code == 0:
            return None
        if code != KILLED:
            return [f"it ended with {code}"]
    elif code not in (0, faultdriver.TOLD):
        return [f"it ended with {code}"]
    said = heard.read_text().splitlines() if heard.exists() else []
    return judged(load(name, seed), state, said, twice=False)


def _run(
    options: Sequence[str], name: str, seed: int, state: Path, heard: Path, mutant: str
) -> int:
    # not --seccomp-bpf: strace 6.1 does not deliver the signal then
    command = ["strace", "-f", "-qq", *options, sys.executable]
    command += [faultdriver.__file__, name, str(seed), str(state), str(heard), mutant]
    here = Path(__file__).resolve()
    paths = f"{here.parent}:{here.parents[2]}"
    done = subprocess.run(
        command, timeout=LIMIT_S, check=False, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, env={"PYTHONPATH": paths, "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    if done.returncode == 1:
        sys.stderr.write(done.stderr.decode()[-2000:])
    return done.returncode
