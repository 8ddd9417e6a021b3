"""A server and everything it started: its CPU time, its memory, its end.

A process belongs to a server when it is in the session that was made for it, or is a
descendant of one that is.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")
TERM_S = 8.0
"""For a server to end by itself before it is killed."""


@dataclass(frozen=True)
class Stat:
    """What /proc/PID/stat says, as far as it matters here."""

    pid: int
    state: str
    parent: int
    session: int
    reaped_s: float
    """CPU time of children that have ended and were waited for."""


@dataclass(frozen=True)
class Memory:
    """Of all processes of one server together."""

    rss_bytes: int
    pss_bytes: int
    processes: int


def parse_stat(text: str) -> Stat:
    """Read one line of /proc/PID/stat; names with spaces and brackets are no trap.

    >>> parse_stat("7 (a) b)) S 1 7 7 0 -1 0 0 0 0 0 50 25 100 200 20").parent
    1
    """
    pid, _, rest = text.partition(" (")
    fields = rest.rpartition(") ")[2].split()
    return Stat(
        pid=int(pid), state=fields[0], parent=int(fields[1]), session=int(fields[3]),
        reaped_s=(int(fields[13]) + int(fields[14])) / TICKS,
    )  # fmt: skip


def family(root: int, stats: Sequence[Stat]) -> list[Stat]:
    """Those of ``stats`` that belong to the server whose first process is ``root``.

    >>> a, b = Stat(9, "S", 7, 7, 0.0), Stat(11, "R", 9, 11, 0.0)
    >>> [one.pid for one in family(7, [b, Stat(8, "S", 1, 8, 0.0), a])]
    [11, 9]
    """
    parents = {one.pid: one.parent for one in stats}
    sessions = {one.pid: one.session for one in stats}

    def belongs(pid: int) -> bool:
        while pid in parents:
            if pid == root or sessions[pid] == root:
                return True
            pid = parents[pid]
        return False

    return [one for one in stats if belongs(one.pid)]


def running() -> list[Stat]:
    """All processes of this machine."""
    found = []
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                found.append(parse_stat((entry / "stat").read_text()))
    return found


class Server:
    """One server under measurement, in a session of its own."""

    def __init__(
        self,
        command: Sequence[str | Path],
        environment: Mapping[str, str],
        folder: Path,
    ) -> None:
        """Start it in ``folder``; what it prints goes to ``folder/log``."""
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "log"
        self._begun = time.monotonic()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    @property
    def alive(self) -> bool:
        """Whether its first process runs."""
        return self._process.poll() is None

    def age_s(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._begun

    def cpu_s(self) -> float:
        """User and system time of all its processes, ended ones included."""
        total = 0.0
        for one in family(self._process.pid, running()):
            # The clock that clock_getcpuclockid() names: as /proc/PID/stat, but in ns.
            with contextlib.suppress(OSError):
                total += time.clock_gettime((~one.pid << 3) | 2) + one.reaped_s
        return total

    def memory(self) -> Memory:
        """Resident and proportional memory now."""
        rss = pss = count = 0
        for one in family(self._process.pid, running()):
            with contextlib.suppress(OSError):
                status = (PROC / str(one.pid) / "status").read_text()
                rollup = (PROC / str(one.pid) / "smaps_rollup").read_text()
                rss += kib(status, "VmRSS") << 10
                pss += kib(rollup, "Pss") << 10
                count += 1
        return Memory(rss, pss, count)

    def last_words(self) -> str:
        """The last line it printed that is not empty."""
        text = self._log.read_text(errors="replace").strip()
        return text.splitlines()[-1].strip() if text else "it said nothing"

    def stop(self) -> None:
        """End it and everything it started."""
        root = self._process.pid
        own = {one.pid for one in family(root, running())}
        self._process.terminate()
        try:
            self._process.wait(TERM_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        own |= {one.pid for one in family(root, running())}
        end = time.monotonic() + TERM_S
        while time.monotonic() < end:
            left = [one.pid for one in running() if one.pid in own and one.state != "Z"]
            if not left:
                return
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)


def busy_s() -> float:
    """CPU seconds that all cores together have worked since the machine started."""
    fields = (PROC / "stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, soft_irq = map(int, fields[:7])
    return (user + nice + system + irq + soft_irq) / TICKS


def own_s() -> float:
    """CPU seconds of this process and of all it has started and waited for."""
    return sum(os.times()[:4])


def kib(text: str, field: str) -> int:
    """A figure of /proc/PID/status or smaps_rollup; 0 where it is absent.

    >>> kib("VmHWM: 9 kB\\nVmRSS:\\t   12 kB\\n", "VmRSS")
    12
    """
    for line in text.splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    return 0
