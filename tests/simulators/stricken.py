"""The agent as it is installed, killed or failed at its K-th system call in an update.

It runs release 1 and is told to run release 2, with everything real around it
(:mod:`fields`), under ``strace``. It is killed, or a call fails; then it is started
again, and nothing is done to it any more. It must answer with the old or the new
release, never with anything else; get to an end; and take a good release after it. A
call that fails is something it knows: no traceback.

``strace`` counts calls by thread: a point is the K-th call of whichever thread or child
(verifier, sandbox) gets there first. Of the thousands of ``openat`` nearly all look for
libraries: a seeded sample of them is struck. Those of its own are all points, in two
ways: the K-th of each file in the state directory, and the K-th of a thread from when
the agent is ready. What lasts is written by ``pwrite64`` (:mod:`device_agent.durable`,
SQLite); ``write`` is for what is unpacked to be run, but for pipes and sockets, too,
and no disk makes those fail. So a ``write`` fails only where it met a file.
"""

import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from agents import Agent
from callers import calling
from faultflows import Campaign
from fields import Field, check, digest, fielded, release
from killing import MISSED_SHARE, Fault

from device_agent.contract.codes import Outcome
from device_agent.durable import REAL
from device_agent.updating.slots import Slots

CALLS: Final = (
    "pwrite64", "fsync", "fdatasync", "ftruncate", "rename", "unlink", "mkdir",
)  # fmt: skip
READY: Final = "a thread of the ready agent"
LIBRARY: Final = "whatever opens a file"
LIBRARY_SAMPLE: Final = 200
OF_THREADS: Final = ("openat", "write")
FILES_WRITTEN: Final = 20
"""Later writes of a thread are wake-ups; of the earlier ones, some meet a file."""
WRITE_TRIES: Final = 3
WHATS: Final = ("signal=SIGKILL", "error=ENOSPC", "error=EIO")
END_S: Final = 90.0
STRUCK_S: Final = 25.0
"""How long one that was struck may go on: what it has to wait for, it need not."""
DETACHED_S: Final = 5.0
_CALL = re.compile(r"(\d+) +(\w+)\(")
_FILE = re.compile(r"(\d+) +openat\(AT_FDCWD, \"([^\"]+)\"")
_FAILED = re.compile(r"write\(\d+<(/|anon_inode:\[eventfd)?.*\(INJECTED\)")


@dataclass
class Stricken:
    """One field, whose device is put back to release 1 before every fault."""

    site: Field
    serials: "count[int]" = field(default_factory=lambda: count(1))

    def prepare(self) -> None:
        """Release 1 is committed; what lies on its disk then is kept."""
        self.site.publish(release(1), release(2), release(3))
        with self.site.agent():
            self._wanted(1)
        shutil.copytree(self._state, self._before, ignore=_sockets)

    def points(self) -> list[Fault]:
        """Every call of an update that nothing is done to; what to do is open."""
        one, other, threads = (
            self._untouched("openat", *CALLS),
            self._untouched("openat", *CALLS),
            self._untouched(*OF_THREADS, ready=True),
        )
        most = _most(_CALL, one)
        found = [Fault(call, at, "") for call in CALLS for at in _to(most[call])]
        found += [Fault("openat", at, "", LIBRARY) for at in _to(most["openat"])]
        most, again = _most(_FILE, one), _most(_FILE, other)
        for path in sorted(most.keys() & again.keys()):  # the others' names are random
            if Path(path).is_relative_to(self._state):
                name = str(Path(path).relative_to(self._state))
                found += [Fault("openat", at, "", name) for at in _to(most[path])]
        most = _most(_CALL, threads)
        for call in OF_THREADS:
            found += [Fault(call, at, "", READY) for at in _to(most[call])]
        return found

    def strike(self, fault: Fault) -> list[str] | None:
        """Do it; what is wrong. None: the call never came, or no disk fails so."""
        options = f"-y -e trace={fault.call}"
        options += f" -e inject={fault.call}:{fault.what}:when={fault.at}"
        if fault.which not in ("", READY, LIBRARY):
            options += f" -P {self._state / fault.which}"
        serial, log = self._updated(options, ready=fault.which == READY)
        trace = self._trace.read_text()
        if _most(_CALL, trace)[fault.call] < fault.at:
            return None
        if _fails_a_write(fault) and not _met_a_file(trace):
            return None
        found = []
        fails = fault.what.startswith("error") and fault.which != LIBRARY
        if fails and "Traceback" in log:
            found.append(f"it fell over it: {log[-700:]}")
        self.site.fleet.peer.heard.clear()
        try:
            return found + self._afterwards(serial)
        except (AssertionError, RuntimeError) as error:
            return [*found, f"{error}"[:500]]

    def _untouched(self, *calls: str, ready: bool = False) -> str:
        serial, _ = self._updated(f"-e trace={','.join(calls)}", ready=ready)
        assert self.site.ended(serial, 0.1).outcome is Outcome.COMMITTED
        return self._trace.read_text()

    def _updated(self, options: str, *, ready: bool) -> tuple[int, str]:
        """Have it take release 2 under strace; the director's serial, and its log."""
        self._put_back()
        self._trace.write_text("")
        options = f"-qq -o {self._trace} {options}"
        if ready:
            self._want(1)
            with self.site.agent(end_s=10.0) as device, _attached(device, options):
                serial = self._want(2)
                self._until_its_end(serial, device)
            return serial, device.log()
        serial = self._want(2)
        python = self._tracing(options)
        try:
            with self.site.agent(python=python, end_s=10.0) as device:
                self._until_its_end(serial, device)
        except RuntimeError as ended:  # before it was ready
            return serial, str(ended)
        return serial, device.log()

    def _afterwards(self, serial: int) -> list[str]:
        """Start it again, with nothing done to it."""
        found = []
        with self.site.agent() as device:
            attempt = self.site.ended(serial, END_S)
            expected = "2.0.0" if attempt.outcome is Outcome.COMMITTED else "1.0.0"
            with calling(device.url, check, count=1) as callers:
                versions = {one.version for one in callers.more(3)}
                if versions != {expected}:
                    found.append(f"{attempt.outcome}, but {versions} answers")
                after = self._wanted(3)
                if after is not Outcome.COMMITTED:
                    found.append(f"a good release is not taken any more: {after}")
                versions = {one.version for one in callers.more(3)}
                if versions != {"3.0.0"}:
                    found.append(f"{versions} answers after release 3 was committed")
                found += [f"not answered: {one}" for one in callers.failures[:2]]
        proven = Slots(self._state, REAL).proven()
        if proven is None or proven.held.digest != digest(release(3)):
            found.append(f"the committed slot is not release 3: {proven}")
        return found

    @property
    def _state(self) -> Path:
        return self.site.state

    @property
    def _before(self) -> Path:
        return self.site.folder / "before"

    @property
    def _trace(self) -> Path:
        return self.site.folder / "trace"

    def _put_back(self) -> None:
        shutil.rmtree(self._state)
        shutil.copytree(self._before, self._state)
        self.site.fleet.peer.heard.clear()

    def _want(self, number: int) -> int:
        serial = next(self.serials)
        self.site.want(release(number), serial)
        return serial

    def _wanted(self, number: int) -> Outcome | None:
        return self.site.ended(self._want(number), END_S).outcome

    def _until_its_end(self, serial: int, device: Agent) -> None:
        until = time.monotonic() + STRUCK_S
        while time.monotonic() < until and device.process.poll() is None:
            said = [one.attempt for one in self.site.reported() if one.attempt]
            if any(one.serial == serial and one.outcome for one in said):
                return
            time.sleep(0.05)

    def _tracing(self, options: str) -> str:
        """A Python that is traced; -D: the process is the agent, not strace."""
        path = self.site.folder / "traced"
        path.write_text(
            f'#!/bin/sh\nexec strace -f -D {options} {sys.executable} "$@"\n'
        )
        path.chmod(0o755)
        return str(path)


@contextmanager
def _attached(device: Agent, options: str) -> Iterator[None]:
    """strace at the threads that there are, and not at what they start."""
    tasks = Path(f"/proc/{device.process.pid}/task")
    threads = [path.name for path in tasks.iterdir()]
    words = [word for thread in threads for word in ("-p", thread)]
    tracer = subprocess.Popen(
        ["strace", *options.split(), *words], stderr=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + END_S
        while any(_untraced(tasks / thread) for thread in threads):
            assert time.monotonic() < until, "strace does not attach"
            time.sleep(0.01)
        yield
    finally:
        tracer.terminate()
        try:
            tracer.wait(DETACHED_S)
        except subprocess.TimeoutExpired:  # it waits for one that was killed, for good
            tracer.kill()
            tracer.wait()


def strike(folder: Path, seed: int, fields: int = 1) -> Campaign:
    """Every point and every fault, and a sample of those at libraries.

    Args:
        folder: An empty one.
        seed: Of the sample.
        fields: In how many fields at once; much of the time is waited for.
    """
    campaign = Campaign(f"{', '.join(WHATS)} by strace, the agent in an update", seed)
    with _prepared(folder / "points") as one:
        points = one.points()
    campaign.points = len(points)
    faults = _faults(points, random.Random(seed))
    parts = [faults[number::fields] for number in range(fields)]
    missed = 0
    with ProcessPoolExecutor(fields, get_context("spawn")) as pool:
        folders = [folder / f"{number}" for number in range(fields)]
        for found in pool.map(_struck, folders, parts):
            for fault, wrong in found:
                missed += wrong is None and not _fails_a_write(fault)
                campaign.faults += wrong is not None
                campaign.found(str(fault), wrong or ())
    if missed > MISSED_SHARE * len(faults):
        campaign.found("strace", [f"{missed} of {len(faults)} calls never came"])
    return campaign


def _faults(points: Sequence[Fault], chance: random.Random) -> list[Fault]:
    faults = [
        replace(point, what=what)
        for what in WHATS
        for point in points
        if what.startswith("signal")
        or point.call != "write"
        or point.at <= FILES_WRITTEN
    ]
    library = [one for one in faults if one.which == LIBRARY]
    writes = [one for one in faults if _fails_a_write(one)]
    faults = [one for one in faults if one.which != LIBRARY]
    faults += chance.sample(library, min(LIBRARY_SAMPLE, len(library)))
    return faults + writes * (WRITE_TRIES - 1)


def _struck(
    folder: Path, faults: Sequence[Fault]
) -> list[tuple[Fault, list[str] | None]]:
    with _prepared(folder) as one:
        return [(fault, one.strike(fault)) for fault in faults]


@contextmanager
def _prepared(folder: Path) -> Iterator[Stricken]:
    folder.mkdir()
    with fielded(folder) as site:
        one = Stricken(site)
        one.prepare()
        yield one


def _fails_a_write(fault: Fault) -> bool:
    return fault.call == "write" and fault.what.startswith("error")


def _met_a_file(trace: str) -> bool:
    """A file failed, and no pipe or socket (of another thread) with it."""
    met = [one[1] for one in _FAILED.finditer(trace)]
    return "/" in met and None not in met


def _untraced(thread: Path) -> bool:
    try:
        return "\nTracerPid:\t0\n" in (thread / "status").read_text()
    except OSError:  # it is killed already
        return False


def _most(pattern: "re.Pattern[str]", trace: str) -> Counter[str]:
    """How often a thread made each call, or opened each file, at the most."""
    found = filter(None, map(pattern.match, trace.splitlines()))
    counts = Counter((one[1], one[2]) for one in found)
    most: Counter[str] = Counter()
    for (_, what), number in counts.items():
        most[what] = max(most[what], number)
    return most


def _to(last: int) -> range:
    return range(1, last + 1)


def _sockets(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if (Path(folder) / name).is_socket()]
