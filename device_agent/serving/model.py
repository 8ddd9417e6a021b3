"""One name: the versions that answer to it, and how they change.

The rules it keeps:

1. Changes happen one after another, under a lock; requests go on meanwhile.
2. Policy availability: the new version is loaded beside the old, the switch has no
   awaiting in it, the old one leaves then. Policy memory: the old one leaves first.
3. What leaves is drained before its session is closed, however long that takes.
4. A bundle that is refused changes nothing, or all of it is undone: what was served is
   opened again from its unpacked copy, whatever became of its file.
5. A version on trial is active while the previous one is kept, until ``commit`` or
   ``rollback``.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..config import AgentConfig
from ..contract.bundle import Bundle
from ..errors import AgentError, RefusedError, UnavailableError, UnknownError
from ..log import event
from . import loading
from .lane import Lane
from .loading import Loaded
from .served import Served

_LOG = logging.getLogger("edgeml.models")


@dataclass(frozen=True)
class Entry:
    """One line of the repository index."""

    name: str
    version: str
    state: str
    """``READY``, ``LOADING``, ``UNLOADING`` or ``UNAVAILABLE``."""
    reason: str = ""


@dataclass(frozen=True)
class Refusal:
    """Which bundle was refused last, and why; ``version`` is empty if unread."""

    version: str
    reason: str


class Model:
    """Read by the repository, changed by the coroutines here."""

    def __init__(
        self, name: str, config: AgentConfig, lane: Lane, loader: Lane,
        changed: Callable[["Model"], None],
    ) -> None:  # fmt: skip
        self.name = name
        self.versions: list[Served] = []
        """What can be asked, in the order it was given."""
        self.sources: list[Path] = []
        """Files that its versions came from, or were to come from."""
        self.trial: Served | None = None
        self.previous: Served | None = None
        """What ``rollback`` goes back to; closed where the swap policy is memory."""
        self.refusal: Refusal | None = None
        self._config = config
        self._lane = lane
        self._loader = loader
        self._changed = changed
        self._lock = asyncio.Lock()
        self._loading: str | None = None
        self._away: list[Served] = []
        """Out of memory until the version that is loading is there, or is refused."""
        self._leaving: dict[asyncio.Task[None], Served] = {}
        self._stopping = False

    @property
    def active(self) -> Served | None:
        """Who answers: the one on trial, else the newest release, else the last."""
        if self.trial is not None and self.trial in self.versions:
            return self.trial
        newest: Served | None = None
        for one in self.versions:
            if newest is None or _counter(one) >= _counter(newest):
                newest = one
        return newest

    @property
    def substitute(self) -> Served | None:
        """The previous version, where it can be asked and another is on trial."""
        return self.previous if self.previous in self.versions else None

    def absence(self, version: str | None) -> AgentError:
        """Why there is nobody of that version (None: nobody at all) to ask now."""
        coming = {self._loading, *(one.version for one in self._away)} - {None}
        if coming and (version in coming or (version is None and not self.versions)):
            return UnavailableError(f"{self.name} is being loaded; ask again", 1)
        if version is not None and self.versions:
            known = ", ".join(one.version for one in self.versions)
            return UnknownError(
                f"{self.name} has no version {version!r}; it has {known}"
            )
        reason = self.refusal.reason if self.refusal else "it was unloaded"
        if self._stopping:
            reason = "the agent is stopping"
        return UnavailableError(f"{self.name} is not served: {reason}")

    def entries(self) -> Iterator[Entry]:
        """Its lines in the index."""
        refused = self.refusal
        listed = {one.version for one in self.versions}
        for one in self.versions:
            notes = []
            if not one.breaker.closed:
                seconds = one.breaker.retry_after_s(time.monotonic())
                notes.append(f"its breaker is open; tried again in {seconds} s")
            if refused and refused.version in ("", one.version):
                notes.append(f"a newer bundle was refused: {refused.reason}")
            yield Entry(self.name, one.version, "READY", "; ".join(notes))
        for one in (*self._leaving.values(), *self._away):
            if one.version not in listed:
                listed.add(one.version)
                yield Entry(self.name, one.version, "UNLOADING")
        if self._loading is not None and self._loading not in listed:
            yield Entry(self.name, self._loading, "LOADING")
        elif (
            refused
            and refused.version not in listed
            and (refused.version or not self.versions)
        ):
            yield Entry(self.name, refused.version, "UNAVAILABLE", refused.reason)
        elif not listed and not refused:
            yield Entry(self.name, "", "UNAVAILABLE", "it was unloaded")

    def refuse(self, version: str, path: Path, error: RefusedError) -> None:
        """Remember that a bundle was refused."""
        self.refusal = Refusal(version, str(error))
        self._came_from(path)
        event(
            _LOG, logging.WARNING, "bundle refused", model=self.name, version=version,
            bundle=str(path), step=error.step, reason=error.reason,
        )  # fmt: skip

    async def install(self, bundle: Bundle, path: Path, keep_previous: bool) -> Served:
        """Load a bundle of this name and switch to it; see ``Repository.install``.

        Raises:
            RefusedError: it is not taken; what was served goes on being served.
            UnavailableError: the agent is stopping.
        """
        async with self._lock:
            for one in self.versions:
                same = one.loaded.sha256 == bundle.sha256 and one.breaker.closed
                if same and not (keep_previous and one is not self.active):
                    self._came_from(path)
                    return one
            self._loading = bundle.manifest.version
            try:
                return await self._take(bundle, path, keep_previous)
            except RefusedError as error:
                self.refuse(bundle.manifest.version, path, error)
                raise
            finally:
                self._loading = None

    async def unload(self) -> None:
        """Drain every version and give its memory back."""
        async with self._lock:
            self.refusal = None
            await self._gone(self._leave_all(), self._config.drain_s)

    async def commit(self) -> None:
        """End the trial: the previous version leaves.

        Raises:
            UnknownError: nothing is on trial.
        """
        async with self._lock:
            trial, previous = self._on_trial()
            trial.allow_inline(True)
            self.trial = self.previous = None
            self._leave([previous])
            self._forget_sources(previous)

    async def rollback(self) -> Served:
        """End the trial: the previous version is active again, the newer one leaves.

        Raises:
            UnknownError: nothing is on trial.
            RefusedError: the previous one cannot be opened again; the trial goes on.
            UnavailableError: the agent is stopping.
        """
        async with self._lock:
            trial, previous = self._on_trial()
            if previous not in self.versions:
                self._loading = previous.version
                try:
                    loaded = await self._exchange(
                        [trial], partial(loading.reopen, previous.loaded)
                    )
                finally:
                    self._loading = None
                previous = self._again(previous, loaded)
                self.versions.append(previous)
            self.trial = self.previous = None
            self._leave([trial])
            self._forget_sources(trial)
            return previous

    async def stop(self, timeout_s: float) -> None:
        """Drain and close everything, and load nothing any more."""
        self._stopping = True
        tasks = self._leave_all()
        late = await self._gone(tasks, timeout_s)
        if late:
            event(_LOG, logging.WARNING, "not drained", model=self.name, versions=late)

    async def _take(self, bundle: Bundle, path: Path, keep_previous: bool) -> Served:
        state, sandbox = self._config.state, self._config.sandbox
        version = bundle.manifest.version
        kept = (self.previous or self.active) if keep_previous else None
        gone = [
            one
            for one in self.versions
            if one is not kept
            and (
                one.loaded.source == path
                or one.version == version
                or (keep_previous and one is self.trial)
            )
        ]
        candidate = await self._loader.run(
            partial(loading.examine, bundle, path, state, sandbox)
        )
        settings = self._config.model_config(self.name)
        frugal = settings.swap == "memory"
        out = [one for one in self.versions if one in gone or one is kept]
        loaded = await self._exchange(
            out if frugal else [],
            partial(loading.bring_up, candidate, state, sandbox),
        )
        served = Served(loaded, self._lane, settings)
        served.allow_inline(not keep_previous)
        if kept is not None:
            self.trial, self.previous = served, kept
        elif self.previous in gone:
            self.trial = self.previous = None
        elif self.trial in gone:
            self.trial = served
        self.versions.append(served)
        self.refusal = None
        self._came_from(path)
        self._leave(gone)
        event(
            _LOG, logging.INFO, "model served", model=self.name, version=version,
            bundle=str(path), latency_ms=loaded.latency_ns / 1e6,
            instead_of=[one.version for one in gone],
        )  # fmt: skip
        return served

    async def _exchange(self, out: list[Served], make: Callable[[], Loaded]) -> Loaded:
        """Load while ``out`` is out of memory; it is back if that is refused."""
        self._check_running()
        before = list(self.versions)
        self._away = out
        try:
            # what left before goes first, so that no more than two are in memory
            await self._gone(list(self._leaving), self._config.drain_s)
            await self._withdraw(out)
            loaded = await self._loader.run(make)
        except RefusedError:
            await self._bring_back(before)
            raise
        finally:
            self._away = []
        if self._stopping:
            await asyncio.to_thread(loading.discard, loaded)
        self._check_running()
        return loaded

    async def _withdraw(self, out: Sequence[Served]) -> None:
        """Out of memory, but not out of the disk."""
        self.versions = [one for one in self.versions if one not in out]
        self._changed(self)
        for one in out:
            # one that hangs cannot be closed, and is not waited for: its memory is lost
            if await self._drained(one, or_hung=True):
                await asyncio.to_thread(loading.release, one.loaded)

    async def _bring_back(self, before: Sequence[Served]) -> None:
        """Every version of ``before``, opened again where it was closed."""
        back: list[Served] = []
        for old in before:
            if old.state == "ready":
                back.append(old)
                continue
            if self._stopping:
                continue
            try:
                loaded = await self._loader.run(partial(loading.reopen, old.loaded))
            except RefusedError as error:
                event(
                    _LOG, logging.ERROR, "model lost", model=self.name,
                    version=old.version, step=error.step, reason=error.reason,
                )  # fmt: skip
                await asyncio.to_thread(loading.discard, old.loaded)
                continue
            back.append(self._again(old, loaded))
        self.versions = back
        self._changed(self)

    def _again(self, old: Served, loaded: Loaded) -> Served:
        """``old`` with a new session, in its place."""
        new = Served(loaded, self._lane, old.config)
        new.statistics = old.statistics
        self.trial = new if self.trial is old else self.trial
        self.previous = new if self.previous is old else self.previous
        return new

    def _leave_all(self) -> list[asyncio.Task[None]]:
        previous = self.previous
        closed = [] if previous is None or previous in self.versions else [previous]
        self.trial = self.previous = None
        return self._leave([*self.versions, *closed])

    def _leave(self, gone: Sequence[Served]) -> list[asyncio.Task[None]]:
        """Out of the routing now, out of memory and disk when nobody is inside."""
        self.versions = [one for one in self.versions if one not in gone]
        self._changed(self)
        for one in gone:
            task = asyncio.create_task(self._part(one))
            self._leaving[task] = one
            task.add_done_callback(self._leaving.pop)
        return list(self._leaving)

    async def _part(self, served: Served) -> None:
        await self._drained(served)
        await asyncio.to_thread(loading.discard, served.loaded)

    async def _drained(self, served: Served, or_hung: bool = False) -> bool:
        """Wait until nobody is inside, or until all who are hang; whether nobody is."""
        while not await served.drain(max(self._config.drain_s, 1.0)):
            event(
                _LOG, logging.WARNING, "still draining", model=self.name,
                version=served.version, hung=served.hung,
            )  # fmt: skip
            if or_hung and served.hung:
                return False
        return True

    async def _gone(
        self, tasks: Sequence[asyncio.Task[None]], timeout_s: float
    ) -> list[str]:
        """Wait for what is leaving; the versions that are still there."""
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)
        return [self._leaving[task].version for task in tasks if task in self._leaving]

    def _on_trial(self) -> tuple[Served, Served]:
        if self.trial is None or self.previous is None:
            raise UnknownError(f"no version of {self.name} is on trial")
        return self.trial, self.previous

    def _came_from(self, path: Path) -> None:
        if path not in self.sources:
            self.sources.append(path)

    def _forget_sources(self, gone: Served) -> None:
        """The file of what has left is not loaded again with the model."""
        source = gone.loaded.source
        if all(one.loaded.source != source for one in self.versions):
            self.sources.remove(source)

    def _check_running(self) -> None:
        if self._stopping:
            raise UnavailableError("the agent is stopping")


def _counter(served: Served) -> int:
    return served.manifest.release_counter
