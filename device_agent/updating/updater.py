"""Drives an update: asks the table what to do, writes that down, does it.

The rules it keeps:

1. The new state is on the disk before any effect of it is begun. The one exception is
   the way back: a candidate that failed leaves at once, also when the disk is full.
2. What blocks runs in threads of its own; the event loop only waits.
3. One event after another; results of work come as events with the number of the job
   that they are of, so that what nobody waits for changes nothing.
4. Serving does not wait for the disk: what is committed is served before anything is
   written.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..contract.codes import RETRYABLE, Reason
from ..contract.messages import Running
from ..durable import Disk
from ..errors import StorageError, UpdateError
from ..log import event as log
from .events import (
    Abort,
    Activate,
    Authorize,
    Authorized,
    Clean,
    Commit,
    Confirm,
    Confirmed,
    Download,
    Downloaded,
    Effect,
    Event,
    Failed,
    Install,
    Installed,
    Lost,
    Probe,
    Probed,
    Quarantine,
    Record,
    Refused,
    Rollback,
    Serve,
    Started,
    Stopped,
    Tick,
    Verified,
    Verify,
    Wanted,
    Withdrawn,
)
from .facts import Held, Job, Slot, State
from .health import Trial
from .machine import step
from .policy import Limits
from .ports import Fetch, Models, Outlet, Thread, Trust
from .slots import Slots, verified
from .state import StateStore, body_of
from .trial import watch

Work = Callable[[Job, threading.Event], Event]
_LOG = logging.getLogger("edgeml.update")
_TICK_S = 1.0
_AGAIN_S = 30.0
"""Until what could not be written is tried again, at most."""


@dataclass(frozen=True)
class Parts:
    """What the updater works with."""

    trust: Trust
    fetch: Fetch
    models: Models
    outlet: Outlet
    disk: Disk
    thread: Callable[[str], Thread]
    """A thread of that name."""
    clock: Callable[[], float]
    """Monotonic, seconds."""
    wall: Callable[[], float]
    """Seconds since 1970."""
    chance: Callable[[], float]
    """Random, 0 to 1."""
    give_up: Callable[[str], None]
    """End this process, as only a fresh one can go on."""
    recent: Callable[[], list[str]] = list
    """The last lines of the log: evidence of what failed."""


@dataclass(frozen=True)
class Settings:
    """How it is done on this device."""

    limits: Limits = field(default_factory=Limits)
    trial: Trial = field(default_factory=Trial)
    activate_s: float = 120.0
    """A candidate that is not in memory by then hangs."""
    rollback_s: float = 60.0
    """What was served must be back by then, else the process is given up."""


class Updater:
    """One device's way to what it should run; used on its event loop."""

    def __init__(self, folder: Path, parts: Parts, settings: Settings) -> None:
        self.state = State()
        self._folder = folder
        self._parts = parts
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._slots = Slots(folder, parts.disk)
        self._store: StateStore | None = None
        self._worker, self._judge, self._writer = (
            parts.thread(f"update-{name}") for name in ("work", "judge", "state")
        )
        self._works: dict[type, Work] = {
            Download: self._download, Verify: self._verify, Install: self._install,
            Probe: self._probe, Confirm: self._confirm,
        }  # fmt: skip
        self._stop: threading.Event = threading.Event()
        """Of the work that is under way."""
        self._group: asyncio.TaskGroup | None = None
        self._trial: asyncio.Task[None] | None = None
        self._stale_steps = True
        self._kept_back = ""
        """Why they were not handed on; it is said once."""

    def heard(self, envelope: bytes) -> None:
        """A director has spoken (nothing: it wants nothing); from any thread."""
        said = Wanted(envelope) if envelope else Withdrawn()
        self._loop.call_soon_threadsafe(self._events.put_nowait, said)

    @property
    def running(self) -> Running | None:
        """What answers requests, as the fleet hears of it."""
        held = self._parts.models.running
        if held is None:
            return None
        proven = self.state.slot(self.state.committed)
        committed = proven is not None and proven.digest == held.digest
        return Running(
            release=held.release, digest=held.digest, counter=held.counter,
            committed=committed,
        )  # fmt: skip

    def path(self, slot: Slot) -> Path:
        """The file of a slot."""
        return self._slots.bundle(slot)

    async def boot(self) -> None:
        """Know what was, and serve what is committed; nothing is written yet."""
        self.state = await self._writer.run(self._read)
        for slot in (self.state.committed, self.state.fallback):
            if slot is not None and await self._served(slot):
                break
        self._events.put_nowait(Started())

    async def run(self) -> None:
        """Go on from where it was, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._group = tasks
            self._group.create_task(self._tick())
            while True:
                await self._apply(await self._events.get())

    async def stop(self, orderly: bool = True) -> None:
        """Once ``run`` has ended: the agent ends; not orderly counts as a start."""
        self._stop.set()
        state, _ = step(self.state, Stopped(), self._now(), self._settings.limits)
        if orderly and state != self.state and self._store is not None:
            store, at = self._store, self._parts.wall()
            try:
                await asyncio.wait_for(
                    self._writer.run(lambda: store.save(state, (), at)), 1.0
                )
            except (StorageError, TimeoutError) as error:
                log(_LOG, logging.WARNING, "stop not written", reason=repr(error))
        for worker in (self._worker, self._judge, self._writer):
            worker.close()

    # One event after another ---------------------------------------------------------

    async def _apply(self, event: Event) -> None:
        state, effects = step(self.state, event, self._now(), self._settings.limits)
        durable = any(isinstance(one, Record | Quarantine) for one in effects)
        if state != self.state or durable:
            effects = await self._save(state, effects)
        before, self.state = self.state, state
        for effect in effects:
            await self._act(effect)
        if durable or before.attempt != state.attempt:
            self._tell()

    async def _save(
        self, state: State, effects: tuple[Effect, ...]
    ) -> tuple[Effect, ...]:
        """Write it, however long that takes; the effects that are left to be done."""
        wait_s = 0.5
        while True:
            at = self._parts.wall()
            try:
                await self._writer.run(partial(self._write, state, effects, at))
            except StorageError as error:
                log(_LOG, logging.ERROR, "update state not written", reason=str(error))
            else:
                return effects
            for effect in effects:
                if isinstance(effect, Rollback):
                    await self._act(effect)
            effects = tuple(one for one in effects if not isinstance(one, Rollback))
            await asyncio.sleep(wait_s)
            wait_s = min(_AGAIN_S, 2 * wait_s)

    async def _act(self, effect: Effect) -> None:
        """Begin it, or do it where it is short."""
        match effect:
            case Record():
                attempt = effect.attempt
                self._stale_steps = True
                log(
                    _LOG, logging.INFO, "update", phase=attempt.phase,
                    outcome=attempt.outcome or "", reason=attempt.reason or "",
                    digest=attempt.digest[:12], why=attempt.text,
                )  # fmt: skip
            case Authorize():
                self._spawn(self._authorize(effect))
            case Download() | Verify() | Install() | Probe() | Confirm():
                self._work(effect.job, self._works[type(effect)])
            case Clean():
                self._spawn(self._clean(effect.keep))
            case Abort():
                self._stop.set()
            case Serve():
                await self._served(effect.slot)
            case Activate():
                self._end_trial()
                self._trial = self._spawn(self._watch(effect.job))
            case Commit():
                await self._commit(effect.slot)
            case Rollback():
                await self._rollback()
            case Quarantine():
                pass  # written with the state

    def _tell(self) -> None:
        self._parts.outlet.report(self.running, self.state.attempt)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self._events.put_nowait(Tick())
            if self._stale_steps and self._store is not None:
                self._stale_steps = False
                self._spawn(self._hand_on(self._store))

    # Work that blocks ----------------------------------------------------------------

    def _work(self, job: Job, work: Work) -> None:
        """Do it in the worker's thread; what comes of it is an event."""
        stop = self._stop = threading.Event()
        self._spawn(self._worked(job, work, stop))

    async def _worked(self, job: Job, work: Work, stop: threading.Event) -> None:
        try:
            event = await self._worker.run(lambda: work(job, stop))
        except UpdateError as error:
            evidence = error.evidence
            if error.reason not in RETRYABLE:
                evidence = {**evidence, "log": self._parts.recent()}
            event = Failed(
                job.number, error.reason, error.text, evidence, self._parts.chance()
            )
        except StorageError as error:
            event = Failed(
                job.number, error.reason, str(error), {}, self._parts.chance()
            )
        self._events.put_nowait(event)

    def _download(self, job: Job, stop: threading.Event) -> Event:
        path = self._slots.part(job.goal.desired.digest)
        self._parts.fetch.fetch(job.goal, path, stop)
        return Downloaded(job.number)

    def _verify(self, job: Job, stop: threading.Event) -> Event:
        path = self._slots.part(job.goal.desired.digest)
        try:
            verified(job.goal, path)
        except UpdateError:
            self._parts.disk.unlink(path)
            raise
        return Verified(job.number)

    def _install(self, job: Job, stop: threading.Event) -> Event:
        assert job.slot is not None
        self._slots.install(job.goal.desired.digest, job.slot)
        return Installed(job.number)

    def _probe(self, job: Job, stop: threading.Event) -> Event:
        assert job.slot is not None
        path = self._slots.bundle(job.slot)
        evidence = self._parts.models.probe(job.goal.held, path, stop)
        return Probed(job.number, evidence)

    def _confirm(self, job: Job, stop: threading.Event) -> Event:
        self._parts.trust.confirm(job.goal)
        return Confirmed(job.number)

    async def _authorize(self, effect: Authorize) -> None:
        def judge() -> Event | None:
            inbox = self.state.inbox
            if inbox is None or inbox.number != effect.number:
                return None  # another word has come while this one waited
            slot = self.state.committed
            proven = self.state.slot(slot)
            if slot is not None and proven is not None:  # a cut may have come before it
                self._prove(slot, proven)
            goal = self._parts.trust.authorize(effect.envelope)
            assert self._store is not None
            wrong = self._store.quarantined(goal.desired.digest)
            return Authorized(effect.number, goal, wrong)

        try:
            event = await self._judge.run(judge)
        except UpdateError as error:
            event = Refused(
                effect.number, error.reason, error.text, error.evidence,
                error.desired, self._parts.chance(),
            )  # fmt: skip
        except StorageError as error:
            event = Refused(
                effect.number, error.reason, str(error), {}, None, self._parts.chance()
            )
        if isinstance(event, Refused):
            log(
                _LOG, logging.WARNING, "desired not followed", reason=event.reason,
                why=event.text,
            )  # fmt: skip
        if event is not None:
            self._events.put_nowait(event)

    async def _clean(self, keep: str | None) -> None:
        try:
            await self._worker.run(lambda: self._slots.clean(self.state, keep))
        except StorageError as error:
            log(_LOG, logging.WARNING, "left over", reason=str(error))

    async def _hand_on(self, store: StateStore) -> None:
        """Steps go to the spool; what it has not kept is handed on again."""

        def hand_on() -> None:
            for found in iter(store.steps, []):
                for one in found:
                    self._parts.outlet.step(one.number, body_of(one), one.at)
                store.handed_on(found[-1].number)

        try:
            await self._writer.run(hand_on)
            self._kept_back = ""
        except StorageError as error:
            self._stale_steps = True
            if str(error) != self._kept_back:
                log(_LOG, logging.WARNING, "steps not handed on", reason=str(error))
            self._kept_back = str(error)

    # What is served ------------------------------------------------------------------

    async def _served(self, slot: Slot) -> bool:
        """Serve what lies in the slot; whether it is served."""
        held = self.state.slot(slot)
        if held is None:
            return False
        try:
            await self._parts.models.serve(held, self._slots.bundle(slot))
        except UpdateError as error:
            log(
                _LOG, logging.ERROR, "committed model not served", slot=slot,
                reason=error.reason, why=error.text,
            )  # fmt: skip
            if error.reason is Reason.STORAGE:
                self._events.put_nowait(Lost(slot, error.text))
            return False
        return True

    async def _watch(self, job: Job) -> None:
        assert job.slot is not None
        path = self._slots.bundle(job.slot)
        trial = self._settings.trial.asked(job.goal.desired.config)
        event = await watch(
            self._parts.models, job, path, trial, self._settings.activate_s,
            self._parts.clock, self._tell,
        )  # fmt: skip
        if isinstance(event, Failed):
            evidence = {**event.evidence, "log": self._parts.recent()}
            event = replace(event, evidence=evidence)
        self._events.put_nowait(event)

    def _end_trial(self) -> None:
        if self._trial is not None:
            self._trial.cancel()
            self._trial = None

    async def _commit(self, slot: Slot) -> None:
        held = self.state.slot(slot)
        assert held is not None
        self._end_trial()
        try:
            await self._judge.run(lambda: self._prove(slot, held))
        except (StorageError, UpdateError) as error:
            log(_LOG, logging.ERROR, "floor not raised", reason=str(error))
        await self._in_time(self._parts.models.commit(), "the old model does not leave")

    def _prove(self, slot: Slot, held: Held) -> None:
        """What a lost state must not take back; again is harmless."""
        self._slots.prove(slot, held)
        self._parts.trust.committed(held)

    async def _rollback(self) -> None:
        self._end_trial()
        await self._in_time(
            self._parts.models.rollback(), "the model on trial does not leave"
        )

    async def _in_time(self, change: Awaitable[None], why: str) -> None:
        """Wait for a change of what is served; where it hangs the process ends."""
        try:
            async with asyncio.timeout(self._settings.rollback_s):
                await change
        except TimeoutError:
            self._parts.give_up(f"{why} within {self._settings.rollback_s:g} s")
        except UpdateError as error:
            self._parts.give_up(f"{why}: {error}")

    # The rest ------------------------------------------------------------------------

    def _read(self) -> State:
        """What was written; in the writer's thread."""
        try:
            self._open()
            assert self._store is not None
            found = self._store.load()
        except StorageError as error:
            log(_LOG, logging.ERROR, "update state not opened", reason=str(error))
            found = None
        if found is not None:
            return found
        proven = self._slots.proven()
        if proven is None:
            return State()
        held, slot = proven.held, proven.slot
        log(_LOG, logging.WARNING, "update state recovered", slot=slot)
        empty = State(active=slot, committed=slot)
        return State(
            active=slot, committed=slot,
            a=held if slot == "a" else empty.a, b=held if slot == "b" else empty.b,
        )  # fmt: skip

    def _open(self) -> None:
        self._slots.prepare()
        self._store = StateStore(self._folder, self._parts.disk)
        if self._store.lost is not None:
            log(_LOG, logging.ERROR, "update state damaged", kept=self._store.lost)

    def _write(self, state: State, effects: tuple[Effect, ...], at: float) -> None:
        """Write it; in the writer's thread. After an error of the disk the database
        is opened anew."""
        if self._store is None:
            self._open()
        assert self._store is not None
        try:
            self._store.save(state, effects, at)
        except StorageError:
            self._store.close()
            self._store = None
            raise

    def _now(self) -> float:
        return self._parts.clock()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that dies ends the updater, and with it the agent."""
        assert self._group is not None, "effects follow from events"
        return self._group.create_task(work)
