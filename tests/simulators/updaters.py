"""A device on its way to another model, in this process: only the network is not there.

::

    async def story(device: Device) -> None:
        device.publish("two", linear(2))
        device.want("two")
        assert (await device.ended()).outcome is Outcome.COMMITTED
        assert await device.ask() == 2

Repository, sandbox, slots, state database and updater are the agent's own. ``Library``
is director and registry in one: it signs nothing, but says what they would say. A power
cut leaves everything where it is and starts a second device on the same directory.
"""

import asyncio
import hashlib
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bundles
import numpy as np

from device_agent.candidates import Candidates
from device_agent.config import AgentConfig, SandboxConfig, UpdateConfig
from device_agent.contract.bundle import read_bundle
from device_agent.contract.codes import Outcome, Reason
from device_agent.contract.errors import BundleError, MessageError
from device_agent.contract.messages import (
    Attempt,
    Desired,
    Release,
    Running,
    read,
    write,
)
from device_agent.durable import REAL, Disk
from device_agent.errors import UpdateError
from device_agent.serving.lane import Lane
from device_agent.serving.repository import Repository
from device_agent.updating.facts import Goal, Held
from device_agent.updating.health import Trial
from device_agent.updating.policy import Limits
from device_agent.updating.updater import Parts, Settings, Updater

X = np.ones((1, 4), np.float32)
_Y = np.maximum(X @ bundles.WEIGHT, 0)
TRIAL = Trial(
    inferences=20, least_s=0.2, most_s=1.0, recheck_s=0.1, recheck_late_s=4.0,
    growth_bytes=48 << 20,
)  # fmt: skip
LIMITS = Limits(backoff_s=0.02, backoff_max_s=0.1)


@dataclass
class Library:
    """What may be wanted, and what is said of it. Implements Trust and Fetch."""

    files: dict[str, Path] = field(default_factory=dict)
    """By digest."""
    refusal: UpdateError | None = None
    """Said of every word while it is set."""
    offline: bool = False
    floors: dict[str, int] = field(default_factory=dict)
    """What was committed, by model."""
    fetched: list[str] = field(default_factory=list)
    authorized: int = 0

    def authorize(self, envelope: bytes) -> Goal:
        self.authorized += 1
        try:
            desired = read(envelope, Desired)
        except MessageError as error:
            raise UpdateError(Reason.DESIRED_MALFORMED, str(error)) from error
        if self.offline:
            raise UpdateError(
                Reason.METADATA_UNREACHABLE, "no network", desired=desired
            )
        if self.refusal is not None:
            refusal = self.refusal
            raise UpdateError(refusal.reason, refusal.text, {}, desired)
        path = self.files.get(desired.digest)
        if path is None:
            raise UpdateError(Reason.TARGET_UNKNOWN, "no such target", {}, desired)
        custom: dict[str, Any] = {
            "target": "cpu-x86_64",
            "compatible": ["x86_64-linux"],
        }
        return Goal(envelope, desired, path.name, path.stat().st_size, (), custom)

    def confirm(self, goal: Goal) -> None:
        self.authorize(goal.envelope)

    def committed(self, held: Held) -> None:
        before = self.floors.get(held.release.model, 0)
        self.floors[held.release.model] = max(before, held.counter)

    def fetch(self, goal: Goal, path: Path, stop: threading.Event) -> None:
        if self.offline:
            raise UpdateError(Reason.DOWNLOAD_UNREACHABLE, "no network")
        self.fetched.append(goal.desired.digest)
        file = REAL.create(path)
        REAL.write(file, self.files[goal.desired.digest].read_bytes(), 0)
        REAL.sync(file)
        REAL.close(file)
        REAL.sync_folder(path.parent)


@dataclass
class Fleet:
    """Who hears of it. Implements Outlet."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    reports: list[tuple[Running | None, Attempt | None]] = field(default_factory=list)

    def step(self, number: int, body: dict[str, Any], at: float) -> None:
        if number not in [one["step"] for one in self.steps]:
            self.steps.append(body)

    def report(self, running: Running | None, attempt: Attempt | None) -> None:
        self.reports.append((running, attempt))


class Device:
    """One agent's models and its updater, until the end of :meth:`running`."""

    def __init__(
        self, folder: Path, library: Library, disk: Disk = REAL, **changes: Any
    ) -> None:
        self.folder = folder
        self.library = library
        self.fleet = Fleet()
        self.gave_up: list[str] = []
        sandbox = SandboxConfig(memory_bytes=1 << 30, cpu_s=3, wall_s=20.0)
        settings = {"limits": LIMITS, "trial": TRIAL, **changes}
        self.config = AgentConfig(
            folder / "state", sandbox=sandbox, update=UpdateConfig(gate_latency=True)
        )
        self.config.state.mkdir(exist_ok=True)
        self.lanes = (Lane("lane-0"),)
        self.repository = Repository(self.config, self.lanes)
        self.models = Candidates(self.repository, self.config)
        self.updater = Updater(
            self.config.state,
            Parts(
                trust=library,
                fetch=library,
                models=self.models,
                outlet=self.fleet,
                disk=disk,
                thread=Lane,
                clock=time.monotonic,
                wall=time.time,
                chance=lambda: 0.5,
                give_up=self.gave_up.append,
            ),
            Settings(**settings),
        )
        self._task: asyncio.Task[None] | None = None
        self._known: Attempt | None = None
        """How the last attempt stood when it began."""

    async def start(self) -> None:
        await self.updater.boot()
        self._known = self.updater.state.attempt
        self._task = asyncio.create_task(self.updater.run())

    async def stop(self, *, orderly: bool = True) -> None:
        """End it; not orderly: as far as its state knows, the power was cut."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if orderly:
            await self.updater.stop()
        await self.repository.close()
        for lane in self.lanes:
            lane.close()

    def publish(self, raw: bytes) -> str:
        """Put a bundle into the library; its digest."""
        path = self.folder / f"{len(self.library.files)}.edgeml"
        path.write_bytes(raw)
        digest = read_any(path)
        self.library.files[digest] = path
        return digest

    def want(self, digest: str, serial: int, **changes: Any) -> None:
        """The director wants that, in its ``serial``-th word."""
        self.updater.heard(word(self.library.files[digest], digest, serial, **changes))

    async def ended(self, serial: int, within_s: float = 90.0) -> Attempt:
        """Wait until the attempt at that word has ended, and the fleet was told."""
        async with asyncio.timeout(within_s):
            while True:
                said = [self._known, *(attempt for _, attempt in self.fleet.reports)]
                for attempt in said:
                    if attempt and attempt.serial == serial and attempt.outcome:
                        return attempt
                self._check()
                await asyncio.sleep(0.01)

    async def until(self, what: Callable[[], bool], within_s: float = 90.0) -> None:
        """Wait for something."""
        async with asyncio.timeout(within_s):
            while not what():
                self._check()
                await asyncio.sleep(0.005)

    async def ask(self) -> int:
        """One request; the number of the version that has answered it."""
        served = self.repository.route("linear")
        outputs = await served.infer({"x": X})
        number = round(float(outputs["y"].sum() / _Y.sum()))
        np.testing.assert_allclose(outputs["y"], _Y * number, rtol=1e-5)
        return number

    def slots(self) -> dict[str, str | None]:
        """Which bundles lie in the slots, by what their files are."""
        found = {}
        for name in ("a", "b"):
            path = self.updater.path(name)  # type: ignore[arg-type]
            found[name] = read_any(path) if path.exists() else None
        return found

    def _check(self) -> None:
        assert self._task is not None
        if self._task.done():
            self._task.result()


def read_any(path: Path) -> str:
    """A file's digest, whatever it is."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def word(path: Path, digest: str, serial: int, **changes: Any) -> bytes:
    """What the director says, unsigned."""
    try:
        manifest = read_bundle(path, scan=False).manifest
        release = Release(model=manifest.name, version=manifest.version)
        counter = manifest.release_counter
    except BundleError:  # what is no bundle is still wanted by somebody
        release, counter = Release(model="linear", version="2.0.0"), 0
    plain = {
        "device": "pi-1", "serial": serial, "release": release, "digest": digest,
        "counter": counter, "not_after": datetime(2100, 1, 1, tzinfo=UTC),
        "rollout": "first",
    }  # fmt: skip
    return write(Desired(**{**plain, **changes}))


Story = Callable[[Device], Awaitable[None]]


def tell(folder: Path, *stories: Story, orderly: bool = True, **changes: Any) -> None:
    """Run stories one after another on one state directory: between them the device
    ends, in order or as by a power cut."""

    async def main(story: Story) -> None:
        device = Device(folder, library, **changes)
        await device.start()
        try:
            await story(device)
        finally:
            await device.stop(orderly=orderly)

    library = Library()
    for story in stories:
        asyncio.run(main(story))


__all__ = ["LIMITS", "TRIAL", "Device", "Library", "Outcome", "replace", "tell"]
