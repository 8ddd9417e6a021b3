"""What the fault campaigns need to know of a flow, and where they find one.

A flow is a piece of the agent's work with durable effects. Each is a file in
``tests/faults/flows`` with a function ``flow(seed) -> Flow``; another one is picked up
by every campaign as soon as it is there.

The rules a flow keeps:

1. All durable effects of ``run`` and ``recover`` go through the disk that they are
   given; what they read, they read from the folder alone.
2. ``say`` tells the world something that must survive from then on (as an
   acknowledgement does).
3. ``run`` may begin again after any cut: it goes on, or does all of it again.
4. ``violations`` looks at a folder after ``recover``; what was said is all that it
   knows of the run that was cut. It closes what it opens.
"""

import hashlib
import importlib.util
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from device_agent.contract.errors import DeviceError
from device_agent.durable import Disk

FLOWS = Path(__file__).resolve().parent.parent / "faults" / "flows"
FAILURES = (
    DeviceError, OSError, sqlite3.Error, ValueError, LookupError, AssertionError,
    TypeError, ExceptionGroup,
)  # fmt: skip
"""What a flow that finds itself in a state that it cannot handle ends in."""
MARK = "/there/is/no/such/file"
"""Where a traced process begins with what it is for."""
Say = Callable[[str], None]


class Flow(Protocol):
    """Work that is cut off."""

    def prepare(self, state: Path) -> None:
        """Make what is there before; this is never cut."""

    def run(self, state: Path, disk: Disk, say: Say) -> None:
        """Do it."""

    def recover(self, state: Path, disk: Disk) -> None:
        """What the next start does; doing it twice changes nothing."""

    def violations(self, state: Path, said: Sequence[str], done: bool) -> list[str]:
        """What is wrong; ``done``: the last run came to its end."""


@dataclass
class Campaign:
    """What was tried, and what was found."""

    name: str
    seed: int
    points: int = 0
    """Places at which something was done to the flow."""
    faults: int = 0
    """Things that were done, each with a recovery and a look at the result."""
    violations: list[str] = field(default_factory=list)

    def found(self, where: str, texts: Sequence[str]) -> None:
        self.violations += [f"{where}: {text}" for text in texts]

    def __iadd__(self, other: "Campaign") -> "Campaign":
        self.points += other.points
        self.faults += other.faults
        self.violations += other.violations
        return self

    def __str__(self) -> str:
        first = "".join(f"\n  {one}" for one in self.violations[:5])
        return (
            f"{self.name}: seed {self.seed}, points {self.points}, "
            f"faults {self.faults}, violations {len(self.violations)}{first}"
        )


def names() -> list[str]:
    """Every flow there is."""
    return sorted(path.stem for path in FLOWS.glob("*.py"))


def load(name: str, seed: int) -> Flow:
    """A flow of that name; its steps follow from the seed."""
    spec = importlib.util.spec_from_file_location(f"flow_{name}", FLOWS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: Flow = module.flow(seed)
    return made


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory, where there is one: there are very many."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as made:
        yield Path(made)


def copied(source: Path, target: Path) -> Path:
    """``target``, with what is in ``source`` and nothing else."""
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(source, target)
    return target


def judged(
    flow: Flow,
    state: Path,
    said: Sequence[str],
    *,
    twice: bool = True,
    to_the_end: bool = True,
) -> list[str]:
    """Recover, look, recover again, go on to the end, and look again."""
    try:
        flow.recover(state, Disk())
        found = flow.violations(state, said, False)
        if twice:
            before = picture(state)
            flow.recover(state, Disk())
            if picture(state) != before:
                found.append("recovering again changes what is there")
        if not to_the_end:
            return found
        again: list[str] = []
        flow.run(state, Disk(), again.append)
        flow.recover(state, Disk())
        found += flow.violations(state, [*said, *again], True)
    except FAILURES as error:  # the campaign goes on: it is a violation
        return [f"{type(error).__name__}: {error}"]
    return found


def picture(state: Path) -> dict[str, Any]:
    """All that lies in a folder; of a database what it says, not its bytes."""
    found: dict[str, Any] = {}
    for path in sorted(state.rglob("*")):
        name = str(path.relative_to(state))
        if path.is_dir():
            found[name] = "folder"
        elif is_database(path):
            with closing(sqlite3.connect(path)) as connection:
                found[name] = "\n".join(connection.iterdump())
        elif not name.endswith(("-wal", "-shm")):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def is_database(path: Path) -> bool:
    """Whether SQLite wrote it."""
    with path.open("rb") as file:
        return file.read(15) == b"SQLite format 3"
