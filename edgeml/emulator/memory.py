"""How much memory emulated programs take, without QEMU's own.

An Arm guest's addresses lie in one range of its emulator's (:data:`LOW` to
:data:`HIGH`, QEMU is told so): what is resident there is the guest's, all else is
QEMU's. An x86 guest cannot be put there; of its process, QEMU's are the code that it
makes, its program, heap and stack, and some of the rest that counts as the guest's.
Files count as they do on a device. Guests run ten to hundreds of times slower than the
poll: peaks that it misses are short on the device, too.
"""

import os
import re
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

LOW = 0x2000_0000_0000
HIGH = LOW + (64 << 30)
_MAPPING = re.compile(
    rb"^([0-9a-f]+)-[0-9a-f]+ (\S+) \S+ \S+ \S+ *([^\n]*)\n(?:[^\n]*\n){0,4}?"
    rb"Rss: +(\d+) kB\nPss: +(\d+) kB\n",
    re.MULTILINE,
)
_QEMUS = re.compile(rb"\[.*\]|.*/qemu-\w+")


@dataclass
class Usage:
    """What a tree of emulated processes has taken so far, in bytes."""

    root: int
    """Process id of the one that was started."""
    ranged: bool = True
    """Whether the guest's addresses lie in their range."""
    resident: dict[int, int] = field(default_factory=dict)
    """Process id → the most it had resident; shared pages count whole, as in VmHWM."""
    total: int = 0
    """The most that all of them had at once; shared pages count once."""

    def look(self) -> int:
        """Look at every process of the tree; what they have now, together."""
        total = 0
        for pid in tree(self.root):
            resident, share = guest_bytes(pid, self.ranged)
            self.resident[pid] = max(self.resident.get(pid, 0), resident)
            total += share
        self.total = max(self.total, total)
        return total

    def peak(self) -> int:
        """The peak of the largest process that the first one started; else its own.

        The device's check runs the artifact in a process of its own.
        """
        children = [size for pid, size in self.resident.items() if pid != self.root]
        return max(children, default=self.resident.get(self.root, 0))


def guest_bytes(pid: int, ranged: bool) -> tuple[int, int]:
    """Resident bytes of the guest in a process: whole, and its share of them."""
    try:
        text = Path(f"/proc/{pid}/smaps").read_bytes()
    except OSError:  # it has ended
        return 0, 0
    resident = share = 0
    for start, rights, path, rss, pss in _MAPPING.findall(text):
        if (
            LOW <= int(start, 16) < HIGH
            if ranged
            else not rights.startswith(b"rwx") and not _QEMUS.fullmatch(path)
        ):
            resident += int(rss)
            share += int(pss)
    return resident * 1024, share * 1024


def tree(root: int) -> list[int]:
    """A process and all that came of it, those first that came first."""
    found = [root]
    for pid in found:
        with suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                children = (task / "children").read_text()
                found += map(int, children.split())
    return found


def end(root: int) -> None:
    """Kill a process and all that came of it."""
    for pid in tree(root):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
