"""Keys are rotated, versions seen, releases committed: floors that never go down.

Each round is what one verification has learned: a new root with other online keys now
and then, newer metadata, a serial, a clock; every other one is committed.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from faultflows import Say

from device_agent import durable
from device_agent.durable import Disk
from device_agent.trust import floors as floors_of
from device_agent.trust.floors import Floors
from device_agent.trust.store import FILE, Store

ROUNDS = 5
KEY = "linear/cpu"


class Trust:
    """Each round saves what was learned, and then says so."""

    def __init__(self, seed: int) -> None:
        draw = random.Random(seed)
        roots = [1]
        for _ in range(ROUNDS - 1):
            roots.append(roots[-1] + draw.randrange(2))
        self.roots = roots
        self.filler = [draw.randbytes(draw.randrange(1, 4000)) for _ in roots]

    def learned(self, number: int) -> Floors:
        """What is known after a round; nothing before the first."""
        found = Floors()
        for at in range(number + 1):
            versions = {"timestamp": at + 1, "snapshot": at + 1}
            found = found.seen(self.roots[at], f"keys of {self.roots[at]}", versions)
            found = found.heard("director", at)
            found = replace(found, clock=float(at))
            if at % 2:
                found = found.committed(KEY, at, f"digest of {at}")
        return found

    def metadata(self, number: int) -> dict[str, bytes]:
        head = b"%d of root %d:" % (number, self.roots[number])
        return {
            "root.json": head + self.filler[number],
            "timestamp.json": head + self.filler[number][::-1],
        }

    def prepare(self, state: Path) -> None:
        (state / "identity").mkdir()

    def run(self, state: Path, disk: Disk, say: Say) -> None:
        store = Store(state, state / "identity", disk)
        try:
            for number in range(ROUNDS):
                wanted = self.learned(number)
                if _reaches(store.floors, wanted) and store.metadata():
                    continue
                store.save(wanted, self.metadata(number))
                say(str(number))
        finally:
            store.close()

    def recover(self, state: Path, disk: Disk) -> None:
        durable.sweep(disk, state)
        Store(state, state / "identity", disk).close()

    def violations(self, state: Path, said: Sequence[str], done: bool) -> list[str]:
        store = Store(state, state / "identity", durable.REAL)
        floors, metadata = store.floors, store.metadata()
        store.close()
        least = self.learned(int(said[-1])) if said else Floors()
        found = []
        if not _reaches(floors, least):
            found.append(f"floors {floors} are below {least}, which was said")
        for raw in metadata.values():
            number = int(raw.split(b" ")[0])
            if metadata != self.metadata(number):
                found.append("metadata of one round is mixed with another's")
            if floors.root < self.roots[number]:
                found.append("the root's floor is below the root that is kept")
            if said and number < int(said[-1]):
                found.append("metadata is older than what was said")
        second = state / "identity" / FILE
        alone = floors_of.parse(second.read_bytes()) if second.exists() else Floors()
        if not _reaches(alone, least):
            found.append("the second place alone is below what was said")
        if done and not _reaches(floors, self.learned(ROUNDS - 1)):
            found.append("it did not come to its end")
        return found


def _reaches(floors: Floors, least: Floors) -> bool:
    """Whether no floor is below another's."""
    return floors_of.merged(floors, least) == floors


def flow(seed: int) -> Trust:
    return Trust(seed)
