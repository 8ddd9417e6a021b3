"""Small files that are replaced: counters that must never go back."""

import random
from collections.abc import Sequence
from pathlib import Path

from faultflows import Say

from device_agent import durable
from device_agent.durable import Disk

NAMES = ("floors", "state", "identity/floors")
STEPS = 10


class Replace:
    """Each step raises one of the counters and says so."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        draw = random.Random(seed)
        self.steps = [draw.choice(NAMES) for _ in range(STEPS)]

    def content(self, number: int) -> bytes:
        """Of some sectors, so that it can be torn."""
        filler = random.Random(f"{self.seed} {number}")
        return b"%d:" % number + filler.randbytes(filler.randrange(3000))

    def counter(self, path: Path) -> int | None:
        """What a file says; 0: there is none, None: it is no such file."""
        if not path.exists():
            return 0
        head, _, _ = (data := path.read_bytes()).partition(b":")
        if not head.isdigit() or data != self.content(int(head)):
            return None
        return int(head)

    def prepare(self, state: Path) -> None:
        (state / "floors").write_bytes(self.content(0))

    def run(self, state: Path, disk: Disk, say: Say) -> None:
        durable.make_folder(disk, state / "identity")
        for number, name in enumerate(self.steps, 1):
            if (self.counter(state / name) or 0) < number:
                durable.replace(disk, state / name, self.content(number))
                say(f"{name} {number}")

    def recover(self, state: Path, disk: Disk) -> None:
        for folder in (state, state / "identity"):
            durable.sweep(disk, folder)

    def violations(self, state: Path, said: Sequence[str], done: bool) -> list[str]:
        least = dict.fromkeys(NAMES, 0)
        for text in said:
            name, number = text.split()
            least[name] = int(number)
        found = []
        for name in NAMES:
            counter = self.counter(state / name)
            if counter is None:
                found.append(f"{name} is torn")
            elif counter < least[name]:
                found.append(f"{name} went back from {least[name]} to {counter}")
        files = {str(p.relative_to(state)) for p in state.rglob("*") if p.is_file()}
        if files - set(NAMES):
            found.append(f"left over: {sorted(files - set(NAMES))}")
        if done and any(
            self.counter(state / name) != max(
                (n for n, one in enumerate(self.steps, 1) if one == name), default=0
            )
            for name in NAMES
        ):  # fmt: skip
            found.append("the end is not what the steps lead to")
        return found


def flow(seed: int) -> Replace:
    return Replace(seed)
