"""Releases that are installed, activated, committed or rolled back by the real updater.

Director, registry and runtime are simulators without a disk; state machine, state
database and slots are the agent's own, and so is every durable effect.
"""

import asyncio
import hashlib
import random
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from faultflows import Say
from repositories import linear
from updaters import Library, word
from warping import Inline, run

from device_agent.contract.codes import RETRYABLE, Outcome, Reason
from device_agent.durable import REAL, Disk, told
from device_agent.errors import UpdateError
from device_agent.updating.facts import Goal, Held
from device_agent.updating.health import Trial
from device_agent.updating.policy import Limits
from device_agent.updating.ports import Vitals
from device_agent.updating.slots import Slots
from device_agent.updating.state import StateStore
from device_agent.updating.updater import Parts, Settings, Updater

ROUNDS = 4
TRIAL = Trial(inferences=1, least_s=0.0, most_s=2.0, recheck_s=0.1, rechecks=1)
BAD = 3
"""A release that fails its trial, if there is one after it."""


@cache
def release(number: int) -> bytes:
    """A bundle; packed anew by another process, it would have another digest."""
    return linear(number, release_counter=number)


def shelf(state: Path, number: int) -> Path:
    """Where the registry has it: beside the device, for once."""
    return state / "registry" / f"{number}.edgeml"


class Registry(Library):
    """Fetches through the disk that is cut, in pieces."""

    def __init__(self, state: Path, disk: Disk) -> None:
        paths = [shelf(state, number) for number in ALL]
        super().__init__({_digest(path): path for path in paths})
        self._disk = disk

    def fetch(self, goal: Goal, path: Path, stop: threading.Event) -> None:
        with told("read the registry"):
            data = self.files[goal.desired.digest].read_bytes()
        file = self._disk.create(path)
        half = len(data) // 2
        self._disk.write(file, data[:half], 0)
        self._disk.write(file, data[half:], half)
        self._disk.sync(file)
        self._disk.close(file)
        self._disk.sync_folder(path.parent)


ALL = range(1, ROUNDS + 1)


class Runtime:
    """Serves what is in the file, if that is what it should be (``ports.Models``)."""

    def __init__(self) -> None:
        self.running: Held | None = None
        self._kept: Held | None = None

    def probe(self, held: Held, path: Path, stop: threading.Event) -> dict[str, object]:
        _load(held, path)
        return {}

    async def serve(self, held: Held, path: Path) -> None:
        _load(held, path)
        self.running, self._kept = held, None

    async def activate(self, held: Held, path: Path) -> None:
        _load(held, path)
        self.running, self._kept = held, self.running

    async def commit(self) -> None:
        self._kept = None

    async def rollback(self) -> None:
        self.running = self._kept or self.running

    async def recheck(self) -> bool:
        if self.running is not None and self.running.counter == BAD:
            raise UpdateError(Reason.GOLDEN_MISMATCH, "as always")
        return True

    def vitals(self) -> Vitals | None:
        return Vitals(9, 0, 0, False, 1, None, None)


class Outlet:
    """Nobody listens (``ports.Outlet``)."""

    def step(self, number: int, body: dict[str, object], at: float) -> None:
        pass

    def report(self, running: object, attempt: object) -> None:
        pass


class Update:
    """One release after another is wanted; each end is said."""

    def __init__(self, seed: int) -> None:
        draw = random.Random(seed)
        self.wanted = sorted(draw.sample(ALL, ROUNDS - 1))

    def prepare(self, state: Path) -> None:
        for number in ALL:
            path = shelf(state, number)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(release(number))

    def run(self, state: Path, disk: Disk, say: Say) -> None:
        run(self._run(state, disk, say))

    def recover(self, state: Path, disk: Disk) -> None:
        run(self._boot(state, disk))

    def violations(self, state: Path, said: Sequence[str], done: bool) -> list[str]:
        found = []
        store, slots = StateStore(state, REAL), Slots(state, REAL)
        known = store.load()
        store.close()
        least = max((int(one) for one in said), default=0)
        if known is None or known.committed is None:
            return ["nothing is committed any more"] if least or done else []
        for slot in (known.committed, known.fallback):
            held = known.slot(slot)
            if slot is None or held is None:
                continue
            path = slots.bundle(slot)
            if not path.exists() or _digest(path) != held.digest:
                found.append(f"slot {slot} does not hold release {held.counter}")
        held = known.slot(known.committed)
        if held is None or held.counter < least:
            found.append(f"release {least} was committed, now {held} is")
        running = run(self._boot(state, REAL))
        if running is None or held is None or running.counter != held.counter:
            found.append(f"{running} is served, not what is committed")
        last = [one for one in self.wanted if one != BAD][-1]
        attempt = known.attempt
        # the disk failed while it was tried: another word is needed, as it has said
        again = attempt is not None and attempt.reason in RETRYABLE
        if done and held is not None and held.counter != last and not again:
            found.append(f"it ended with release {held.counter}, not {last}")
        return found

    async def _run(self, state: Path, disk: Disk, say: Say) -> None:
        updater = self._updater(state, disk, Runtime())
        await updater.boot()
        task = asyncio.create_task(updater.run())
        for number in self.wanted:
            if self._ended(updater, number) is not None:
                continue
            path = shelf(state, number)
            updater.heard(word(path, _digest(path), number))
            while (outcome := self._ended(updater, number)) is None:
                await asyncio.sleep(0.1)
                if task.done():
                    task.result()
            if outcome is Outcome.COMMITTED:
                say(f"{number}")
        await asyncio.sleep(2.0)  # what is left over is cleaned, steps are handed on
        await _ended(task, updater)

    async def _boot(self, state: Path, disk: Disk) -> Held | None:
        """What is served before anything is asked for."""
        runtime = Runtime()
        updater = self._updater(state, disk, runtime)
        await updater.boot()
        store = updater._store
        assert store is not None
        store.close()
        return runtime.running

    def _ended(self, updater: Updater, number: int) -> Outcome | None:
        """How the attempt at a release ended, or a later one's."""
        attempt, running = updater.state.attempt, updater.state.committed
        held = updater.state.slot(running)
        if held is not None and held.counter >= number:
            return Outcome.COMMITTED
        if attempt is None or attempt.serial < number:
            return None
        return attempt.outcome if attempt.serial == number else Outcome.SUPERSEDED

    def _updater(self, state: Path, disk: Disk, runtime: Runtime) -> Updater:
        registry = Registry(state, disk)
        loop = asyncio.get_running_loop()
        parts = Parts(
            trust=registry, fetch=registry, models=runtime, outlet=Outlet(), disk=disk,
            thread=Inline, clock=loop.time, wall=lambda: 1e9, chance=lambda: 0.5,
            give_up=lambda why: None,
        )  # fmt: skip
        return Updater(state, parts, Settings(Limits(), TRIAL))


async def _ended(task: "asyncio.Task[None]", updater: Updater) -> None:
    """Stop it as the agent does."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await updater.stop()
    assert updater._store is not None
    updater._store.close()


def _load(held: Held, path: Path) -> None:
    try:
        right = _digest(path) == held.digest
    except OSError as error:
        raise UpdateError(Reason.STORAGE, f"{path}: {error}") from error
    if not right:
        raise UpdateError(Reason.STORAGE, f"{path} is not release {held.counter}")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def flow(seed: int) -> Update:
    return Update(seed)
