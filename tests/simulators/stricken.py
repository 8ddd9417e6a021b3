"""The agent as it is installed, killed or failed at its K-th system call in an update.

It runs release 1 and is told to run release 2, with everything real around it
(:mod:`fields`), under ``strace``. It is killed, or a call fails; then it is started
again, and nothing is done to it any more. It must answer with the old or the new
release, never with anything else; get to an end; and take a good release after it.

``strace`` counts calls by thread: a point is the K-th call of whichever thread or child
(verifier, sandbox) gets there first.
"""

import random
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from callers import calling
from faultflows import Campaign
from fields import Field, check, digest, fielded, release
from killing import Fault

from device_agent.contract.codes import Outcome
from device_agent.durable import REAL
from device_agent.updating.slots import Slots

CALLS: Final = (
    "pwrite64", "fsync", "fdatasync", "ftruncate", "rename", "unlink", "mkdir",
)  # fmt: skip
WHATS: Final = ("signal=SIGKILL", "error=ENOSPC", "error=EIO")
END_S: Final = 90.0
STRUCK_S: Final = 25.0
"""How long one that was struck may go on: what it has to wait for, it need not."""
_CALL = re.compile(r"(\d+) +(\w+)\(")


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

    def points(self) -> list[tuple[str, int]]:
        """Every call of an update that nothing is done to, and its number."""
        log = self.site.folder / "trace"
        self._put_back()
        serial = self._want(2)
        options = f"-o {log} -e trace={','.join(CALLS)}"
        with self.site.agent(python=self._tracing(options)):
            assert self.site.ended(serial, END_S).outcome is Outcome.COMMITTED
        counts: Counter[tuple[str, str]] = Counter(
            (found[1], found[2])
            for found in map(_CALL.match, log.read_text().splitlines())
            if found is not None
        )
        most: Counter[str] = Counter()
        for (_, call), number in counts.items():
            most[call] = max(most[call], number)
        return [(call, at) for call in CALLS for at in range(1, most[call] + 1)]

    def strike(self, fault: Fault) -> list[str]:
        """Do it; what is wrong."""
        self._put_back()
        serial = self._want(2)
        inject = f"inject={fault.call}:{fault.what}:when={fault.at}"
        options = f"-o /dev/null -e trace={fault.call} -e {inject}"
        try:
            with self.site.agent(python=self._tracing(options), end_s=10.0) as device:
                self._until_its_end(serial, lambda: device.process.poll() is not None)
        except RuntimeError:
            pass  # it ended before it was ready; the next start is what counts
        self.site.fleet.peer.heard.clear()
        try:
            return self._afterwards(serial)
        except (AssertionError, RuntimeError) as error:
            return [f"{error}"[:500]]

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

    def _until_its_end(self, serial: int, gone: Callable[[], bool]) -> None:
        until = time.monotonic() + STRUCK_S
        while time.monotonic() < until and not gone():
            said = [one.attempt for one in self.site.reported() if one.attempt]
            if any(one.serial == serial and one.outcome for one in said):
                return
            time.sleep(0.05)

    def _tracing(self, options: str) -> str:
        """A Python that is traced; -D: the process is the agent, not strace."""
        path = self.site.folder / "traced"
        path.write_text(
            f'#!/bin/sh\nexec strace -D -f -qq {options} {sys.executable} "$@"\n'
        )
        path.chmod(0o755)
        return str(path)


def strike(
    folder: Path, seed: int, sample: int | None = None, fields: int = 1
) -> Campaign:
    """Every point and every fault, or a sample of them.

    Args:
        folder: An empty one.
        seed: Of the sample.
        sample: How many faults; None: all.
        fields: In how many fields at once; much of the time is waited for.
    """
    campaign = Campaign(f"{', '.join(WHATS)} by strace, the agent in an update", seed)
    with _prepared(folder / "points") as one:
        points = one.points()
    campaign.points = len(points)
    faults = [Fault(call, at, what) for what in WHATS for call, at in points]
    if sample is not None:
        faults = random.Random(seed).sample(faults, min(sample, len(faults)))
    parts = [faults[number::fields] for number in range(fields)]
    with ProcessPoolExecutor(fields, get_context("spawn")) as pool:
        folders = [folder / f"{number}" for number in range(fields)]
        for found in pool.map(_struck, folders, parts):
            for fault, wrong in found:
                campaign.faults += 1
                campaign.found(str(fault), wrong)
    return campaign


def _struck(folder: Path, faults: Sequence[Fault]) -> list[tuple[Fault, list[str]]]:
    with _prepared(folder) as one:
        return [(fault, one.strike(fault)) for fault in faults]


@contextmanager
def _prepared(folder: Path) -> Iterator[Stricken]:
    folder.mkdir()
    with fielded(folder) as site:
        one = Stricken(site)
        one.prepare()
        yield one


def _sockets(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if (Path(folder) / name).is_socket()]
